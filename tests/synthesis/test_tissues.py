"""Tissues by the names of organs, and their values."""

import numpy as np
import pytest

from kitsattn.errors import KitsattnError
from kitsattn.synthesis.tissues import ATTENUATION, Tissue, draw_palette, tissue_of, tissue_table

NAMES = {
    "spleen": Tissue.SPLEEN,
    "kidney_right": Tissue.RIGHT_KIDNEY,
    "kidney_left": Tissue.LEFT_KIDNEY,
    "right kidney": Tissue.RIGHT_KIDNEY,
    "Left-Kidney": Tissue.LEFT_KIDNEY,
    "kidney_cyst_left": Tissue.KIDNEY_CYST,
    "kidney_cyst_right": Tissue.KIDNEY_CYST,
    "gallbladder": Tissue.GALLBLADDER,
    "urinary_bladder": Tissue.BLADDER,
    "liver": Tissue.LIVER,
    "stomach": Tissue.STOMACH,
    "pancreas": Tissue.PANCREAS,
    "adrenal_gland_right": Tissue.ADRENAL,
    "lung_lower_lobe_left": Tissue.LUNG,
    "esophagus": Tissue.OESOPHAGUS,
    "thyroid_gland": Tissue.THYROID,
    "small_bowel": Tissue.SMALL_BOWEL,
    "duodenum": Tissue.DUODENUM,
    "colon": Tissue.COLON,
    "prostate": Tissue.PROSTATE,
    "sacrum": Tissue.SPONGY_BONE,
    "vertebrae_L5": Tissue.SPONGY_BONE,
    "intervertebral_disc_L4": Tissue.DISC,
    "heart": Tissue.HEART,
    "pulmonary_vein": Tissue.HEART,
    "aorta": Tissue.ARTERY,
    "thoracic_aorta": Tissue.ARTERY,
    "brachiocephalic_trunk": Tissue.ARTERY,
    "left_renal_artery": Tissue.ARTERY,
    "inferior_vena_cava": Tissue.VEIN,
    "iliac_vena_left": Tissue.VEIN,
    "portal_vein_and_splenic_vein": Tissue.PORTAL_VEIN,
    "hip_left": Tissue.SPONGY_BONE,
    "femur_right": Tissue.SPONGY_BONE,
    "rib_left_12": Tissue.COMPACT_BONE,
    "costal_cartilages": Tissue.CARTILAGE,
    "skull": Tissue.COMPACT_BONE,
    "clavicula_left": Tissue.COMPACT_BONE,
    "subclavian_artery_left": Tissue.ARTERY,
    "gluteus_medius_left": Tissue.MUSCLE,
    "autochthon_right": Tissue.MUSCLE,
    "iliopsoas_left": Tissue.MUSCLE,
    "spinal_cord": Tissue.CORD,
    "left_renal_pelvis": Tissue.URETER,
    "what nobody knows": Tissue.SOFT_TISSUE,
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_decides_the_tissue(name: str) -> None:
    """Names of TotalSegmentator and of atlases, whatever stands between the words."""
    assert tissue_of(name) == NAMES[name]


def test_values_without_a_name_stay_open() -> None:
    """The table has the tissue of each named value, and `UNLABELLED` elsewhere."""
    table = tissue_table({2: "kidney_right", 3: "kidney_left", 200: "liver"})
    assert table.shape == (256,)
    assert {value: Tissue(table[value]) for value in np.flatnonzero(table).tolist()} == {
        2: Tissue.RIGHT_KIDNEY,
        3: Tissue.LEFT_KIDNEY,
        200: Tissue.LIVER,
    }


def test_names_without_a_kidney_are_refused() -> None:
    """They are the names of something else."""
    with pytest.raises(KitsattnError, match=r"the names liver, spleen, … include no kidney_left or kidney_right"):
        tissue_table({1: "liver", 2: "spleen"})


def test_every_tissue_has_values() -> None:
    """No tissue is drawn with 0 HU because it was forgotten."""
    assert set(ATTENUATION) == set(Tissue)


def test_palettes_follow_the_phase() -> None:
    """Fat and air are what they are in each; contrast medium makes kidneys brighter."""
    kidneys: dict[int | None, list[float]] = {}
    for seed in range(300):
        palette = draw_palette(np.random.default_rng(seed))
        assert palette.mean_hu[Tissue.AIR] == -1000
        assert -160 < palette.mean_hu[Tissue.VISCERAL_FAT] < -40
        kidneys.setdefault(palette.phase, []).append(float(palette.mean_hu[Tissue.RIGHT_KIDNEY]))
    assert set(kidneys) == {0, 1, 2, 3, None}
    assert max(kidneys[0]) < 100 < np.mean(kidneys[2])
    assert all(-40 < value < 300 for values in kidneys.values() for value in values)
    assert 0.1 < len(kidneys[None]) / 300 < 0.2
