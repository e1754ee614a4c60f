"""What is known to be odd about cases of the KiTS challenges, each remark with its source.

The remarks say what others found; nothing is left out or changed for them. Many tell of label maps that were corrected
later: they matter for copies older than the correction, and for comparing with results that were made on one.
"""

import re
from collections.abc import Mapping

from kitsattn.datasets.dataset import Dataset
from kitsattn.datasets.kits import CITATIONS

_CHANGELOG = "changelog of KiTS19, https://github.com/neheller/kits19/blob/master/changelog.md"
_README = "README of KiTS19, https://github.com/neheller/kits19"
_ISSUE_6 = "KiTS19 issue 6, https://github.com/neheller/kits19/issues/6"
_ISSUE_12 = "KiTS19 issue 12, https://github.com/neheller/kits19/issues/12"
_ISSUE_21 = "KiTS19 issue 21, https://github.com/neheller/kits19/issues/21"
_ISSUE_58_OF_KITS21 = "KiTS21 issue 58, https://github.com/neheller/kits21/issues/58"
_WINNER = "Isensee and Maier-Hein, winners of KiTS19, arXiv:1908.02182"

_SECOND_SERIES = f"Until April 2019 a series of another contrast phase followed its last slice ({_CHANGELOG})."
_CYSTS = f"Another patient since April 2019; the tumours of the one before were complex cysts ({_CHANGELOG})."
_MOVED_TUMOUR = f"Place and extent of its tumour were corrected in December 2019 ({_CHANGELOG})."
_HOLES = f"Until April 2019 there were holes in the label of its tumour ({_ISSUE_12})."
_EXCLUDED = f"The winners left it out of training, because they suspected a labelling error ({_WINNER})."
_REPLACED = f"The winners trained on a label map predicted by a network instead of this one ({_WINNER})."

_LAYOUT_REMARKS: Mapping[str, tuple[str, ...]] = {
    "kits19": (f"The files have the slice axis first, unlike most NIfTI files ({_README}).",),
}

_REMARKS: Mapping[str, Mapping[int, tuple[str, ...]]] = {
    "kits19": {
        15: (
            f"Another patient since April 2019; what was labelled tumour in the one before was none ({_CHANGELOG}).",
            f"Until December 2019 its kidney label held fluid in the spleen ({_CHANGELOG}; {_ISSUE_21}).",
            _REPLACED,
        ),
        22: (_SECOND_SERIES,),
        23: (_MOVED_TUMOUR, _EXCLUDED),
        25: (f"In the first release a series of another contrast phase followed its last slice ({_ISSUE_6}).",),
        37: (f"A large cystic lesion became tumour instead of cyst in December 2019 ({_CHANGELOG}).", _REPLACED),
        40: (f"Its pelvic kidney is labelled since April 2019 ({_CHANGELOG}).",),
        42: (f"The hilum of both kidneys was corrected in April 2019 ({_CHANGELOG}).", _HOLES),
        60: (_CYSTS,),
        61: (_SECOND_SERIES,),
        68: (_EXCLUDED,),
        102: (f"Another patient since April 2019; the tumour of the one before was adrenal ({_CHANGELOG}).",),
        114: (_HOLES,),
        117: (_SECOND_SERIES,),
        125: (_MOVED_TUMOUR, _EXCLUDED),
        133: (_EXCLUDED,),
        155: (f"A cyst had been taken for hydronephrosis until April 2019 ({_CHANGELOG}).",),
        160: (f"Its slices have 512 x 796 voxels, those of all other cases 512 x 512 ({_ISSUE_6}).",),
        166: (f"Hydronephrosis had been taken for a cyst until April 2019 ({_CHANGELOG}).",),
        174: (_CYSTS,),
        205: (f"One of its tumours had been taken for a cyst, the organisers found later ({_ISSUE_58_OF_KITS21}).",),
    },
    "kits21": {
        205: (f"Until March 2023 one of its tumours was annotated as a cyst too ({_ISSUE_58_OF_KITS21}).",),
    },
}


def is_of_challenge(dataset: Dataset) -> bool:
    """Tell whether these are certainly a challenge's own cases, which alone the remarks are about.

    Anybody's data may be in KiTS's folders; the citation is the challenge's only where its marks were found, or where
    `kitsattn download` said so.
    """
    return not dataset.synthetic and dataset.citation == CITATIONS.get(dataset.layout)


def layout_remarks(layout: str) -> tuple[str, ...]:
    """Return what is odd about all cases of a challenge, as sentences with their source; nothing for other layouts."""
    return _LAYOUT_REMARKS.get(layout, ())


def known_remarks(layout: str, case_id: str) -> tuple[str, ...]:
    """Return what is known about one case, as sentences with their source.

    Args:
        layout: One of `kitsattn.datasets.find.LAYOUTS`; other layouts than KiTS's have no known cases.
        case_id: Such as `case_00160`.
    """
    match = re.fullmatch(r"case_(\d+)", case_id)
    return () if match is None else _REMARKS.get(layout, {}).get(int(match[1]), ())
