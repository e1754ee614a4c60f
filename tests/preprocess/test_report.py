from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kitsattn.datasets.find import find_dataset
from kitsattn.errors import KitsattnError
from kitsattn.jobs import HERE, Workers
from kitsattn.notices import RESEARCH_NOTICE
from kitsattn.preprocess.fingerprint import Fingerprint, Foreground
from kitsattn.preprocess.plan import Plan
from kitsattn.preprocess.report import report_dataset, write_report
from kitsattn.preprocess.run import preprocess_dataset
from kitsattn.preprocess.verify import Finding

WEBP = b"RIFF\x00\x00\x00\x00WEBP and so on"
FOREGROUND = Foreground(90, (1, 2, 1))
PLAN = Plan(spacing_mm=(0.78, 0.8), mean_hu=101.25, std_hu=76.5, patch_size=(416, 544))


def fingerprint(
    case_id: str,
    shape: tuple[int, int, int] = (10, 500, 512),
    spacing_mm: tuple[float, float, float] = (4.0, 0.5, 0.5),
    voxels: Mapping[str, int] | None = None,
    foreground: Foreground | None = FOREGROUND,
) -> Fingerprint:
    """Return the fingerprint of a case of 200 ml of kidney and 30 ml of tumour."""
    voxels = {"kidney": 200_000, "tumour": 30_000} if voxels is None else voxels
    return Fingerprint(case_id, shape, spacing_mm, (0, shape[1], 0, shape[2]), voxels, foreground)


class Report(HTMLParser):
    """Reads a page: its tags, its links with their text, and the text of each table row."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.links: list[tuple[str | None, str]] = []
        self.rows: list[list[str]] = []
        self.text = path.read_text(encoding="utf-8")
        self._target: str | None = None
        self._cell = False
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in {"td", "th"}:
            self.rows[-1].append("")
            self._cell = True
        elif tag == "a":
            self._target = dict(attrs)["href"]

    def handle_endtag(self, tag: str) -> None:
        if tag in {"td", "th"}:
            self._cell = False
        elif tag == "a":
            self._target = None

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1][-1] += data.strip()
        if self._target is not None:
            self.links.append((self._target, data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of every element named `tag`."""
        return [attributes for name, attributes in self.tags if name == tag]

    def row(self, name: str) -> list[str]:
        """Return the cells after the first of the only row with that heading."""
        (row,) = [row for row in self.rows if row and row[0] == name]
        return row[1:]


@pytest.fixture
def preview(tmp_path: Path) -> Path:
    """A file that counts as a preview."""
    (tmp_path / "preview.webp").write_bytes(WEBP)
    return tmp_path / "preview.webp"


def write(
    folder: Path,
    fingerprints: list[Fingerprint],
    previews: Mapping[str, Path],
    findings: tuple[Finding, ...] = (),
    *,
    synthetic: bool = False,
) -> Report:
    """Write a report and read it."""
    write_report(
        folder / "report.html",
        title="kits19: prepared data",
        plan=PLAN,
        fingerprints=fingerprints,
        findings=findings,
        previews=previews,
        synthetic=synthetic,
        provenance={"data set": "kits19"},
        next_steps={"kitsattn train --fold 0": "Train the first fold."},
    )
    return Report(folder / "report.html")


def test_report_needs_nothing_from_elsewhere(tmp_path: Path, preview: Path) -> None:
    """Whatever a browser would load is inside the page, and every link stays on it."""
    report = write(tmp_path, [fingerprint("a"), fingerprint("b")], {"a": preview, "b": preview})

    assert not {tag for tag, _ in report.tags} & {"link", "iframe", "object", "embed", "base", "form"}
    assert all(str(image["src"]).startswith("data:image/") for image in report.all("img"))
    assert [script.get("src") for script in report.all("script")] == [None]
    assert "url(" not in report.text
    assert "@import" not in report.text
    assert "://" not in report.text
    places = {attributes["id"] for _, attributes in report.tags if "id" in attributes}
    assert {target for target, _ in report.links} <= {f"#{place}" for place in places}


def test_every_case_is_shown_once_and_linked(tmp_path: Path, preview: Path) -> None:
    """The table leads to each case's preview; they follow each other in its order."""
    cases = ["case_00002", "case_00000", "case_00001"]

    report = write(tmp_path, [fingerprint(case) for case in cases], dict.fromkeys(cases, preview))

    anchors = [article["id"] for article in report.all("article")]
    assert anchors == ["case-1", "case-2", "case-3"]
    assert [link for link in report.links if link[1] in cases] == list(
        zip(("#case-1", "#case-2", "#case-3"), cases, strict=True)
    )
    assert [target for target, text in report.links if "next" in text] == ["#case-2", "#case-3"]
    assert [target for target, text in report.links if "previous" in text] == ["#case-1", "#case-2"]
    assert [target for target, text in report.links if text == "all cases"] == ["#cases"] * 3


def test_numbers_are_those_of_the_cases(tmp_path: Path) -> None:
    """Worked by hand: 200,000 voxels of 4 x 0.5 x 0.5 mm are 200 ml."""
    thick = fingerprint("thick", (5, 500, 512), (8.0, 0.5, 0.5), {"kidney": 50_000, "tumour": 0})

    report = write(tmp_path, [fingerprint("thin"), thick], {})

    assert report.row("thin") == ["10", "500 x 512", "4 x 0.5 x 0.5", "200.0", "30.0", ""]
    assert report.row("thick") == ["5", "500 x 512", "8 x 0.5 x 0.5", "100.0", "0.0", ""]
    assert report.row("Slices") == ["5", "8", "10"]
    assert report.row("Distance of slices, mm") == ["4.00", "6.00", "8.00"]
    assert report.row("Kidney, ml") == ["100.0", "150.0", "200.0"]
    assert report.row("Tumour, ml") == ["30.0", "30.0", "30.0"]
    assert "Tumour: absent from 1 of 2 cases, left out above." in report.text
    assert report.row("spacing_mm")[0] == "0.78 x 0.8 mm"
    assert report.row("patch_size")[0] == "416 x 544"


def test_findings_stand_in_a_table_and_with_their_case(tmp_path: Path, preview: Path) -> None:
    """Errors, warnings and notes keep their order; a case that was not prepared is listed as such."""
    findings = (
        Finding("gone", "error", "gone.nii.gz is truncated: download it again"),
        Finding("a", "warning", "a.nii.gz: cut off"),
        Finding("a", "warning", "a.nii.gz: thick"),
        Finding(None, "note", "1 of 4 cases has no label map"),
    )

    report = write(tmp_path, [fingerprint("a"), fingerprint("b")], {"a": preview, "b": preview}, findings)

    start = report.rows.index(["Case", "Severity", "What was found"]) + 1
    assert report.rows[start : start + 4] == [
        ["gone", "error", "gone.nii.gz is truncated: download it again"],
        ["a", "warning", "a.nii.gz: cut off"],
        ["a", "warning", "a.nii.gz: thick"],
        ["all", "note", "1 of 4 cases has no label map"],
    ]
    # Both findings, and the row of the case itself.
    assert [target for target, text in report.links if text == "a"] == ["#case-1"] * 3
    assert [row[-1] for row in report.rows[-4:-1]] == ["2 warnings", "", "not prepared, 1 error"]
    assert "Found: 1 error, 2 warnings, 1 note." in report.text
    assert report.text.count("<p>warning: a.nii.gz") == 2


def test_nothing_found_is_said(tmp_path: Path) -> None:
    """An empty table would leave open whether anything was looked for."""
    assert "Nothing wrong or odd was found." in write(tmp_path, [fingerprint("a")], {}).text


def test_names_from_files_are_never_markup(tmp_path: Path, preview: Path) -> None:
    """A hostile case id or message adds no element and no attribute, in tables, plots and previews."""
    evil = '"><img src=x onerror=alert(1)> $\\frac$ \x01'
    findings = (Finding(evil, "warning", evil), Finding(evil + "2", "error", evil))

    report = write(tmp_path, [fingerprint(evil, voxels={evil: 5})], {evil: preview}, findings)

    assert "<img src=x" not in report.text
    assert not [attributes for _, attributes in report.tags if "onerror" in attributes]
    assert len(report.all("img")) == 5
    assert [article["id"] for article in report.all("article")] == ["case-1"]


def test_report_can_be_read_aloud(tmp_path: Path, preview: Path) -> None:
    """Pictures have descriptions, table headings their scope, and headings come in order."""
    report = write(tmp_path, [fingerprint("a")], {"a": preview})

    assert all(image["alt"] for image in report.all("img"))
    assert {th["scope"] for th in report.all("th")} == {"col", "row"}
    levels = [int(tag[1]) for tag, _ in report.tags if tag in {"h1", "h2", "h3"}]
    assert levels[:2] == [1, 2]
    assert set(levels[2:]) == {2, 3}


def test_case_without_preview_or_foreground_is_listed(tmp_path: Path) -> None:
    """Where nothing is labelled or drawn there is no plot of values and no preview, but the case stands there."""
    report = write(tmp_path, [fingerprint("a", voxels={"kidney": 0}, foreground=None)], {})

    assert report.row("a")[0] == "10"
    assert len(report.all("img")) == 3
    assert report.all("article") == []
    assert report.all("script") == []


@pytest.mark.parametrize("synthetic", [False, True])
def test_report_says_what_its_data_are(tmp_path: Path, synthetic: bool) -> None:  # noqa: FBT001 - a parameter
    """Research use only, always; phantoms are never taken for patients."""
    report = write(tmp_path, [fingerprint("a")], {}, synthetic=synthetic)

    assert RESEARCH_NOTICE in report.text
    assert ("SYNTHETIC" in report.text) == synthetic


def test_210_cases_make_a_page_that_can_be_opened(tmp_path: Path) -> None:
    """With previews of 80 kB, the most they take, KiTS19's 210 cases stay under 25 MB."""
    (tmp_path / "preview.webp").write_bytes(WEBP.ljust(80_000))
    cases = [f"case_{number:05}" for number in range(210)]
    wide = Foreground(-300, (5,) * 900)

    report = write(
        tmp_path,
        [fingerprint(case, foreground=wide) for case in cases],
        dict.fromkeys(cases, tmp_path / "preview.webp"),
    )

    assert (tmp_path / "report.html").stat().st_size < 25e6
    lazy = [image for image in report.all("img") if image.get("loading") == "lazy"]
    assert len(lazy) == 210


def test_prepared_data_set_is_reported_with_a_preview_of_every_case(kits_folder: Path, tmp_path: Path) -> None:
    """The page lies beside the plan; previews are drawn once, and again only where a case is newer."""
    result = preprocess_dataset(find_dataset(kits_folder), tmp_path / "out", workers=HERE)

    path = report_dataset(result, workers=HERE)

    report = Report(path)
    assert path == tmp_path / "out" / "report.html"
    assert report.row("case_00003")[:2] == ["14", "64 x 72"]
    assert len([image for image in report.all("img") if (image["src"] or "").startswith("data:image/webp")]) == 6
    assert "SYNTHETIC" in report.text
    drawn = {preview.name: preview.stat().st_mtime_ns for preview in (tmp_path / "out" / "previews").iterdir()}
    assert sorted(drawn) == [f"case_0000{number}.webp" for number in range(6)]
    (tmp_path / "out" / "cases" / "case_00002" / "case.json").touch()
    report_dataset(result, workers=Workers(2))
    again = {preview.name: preview.stat().st_mtime_ns for preview in (tmp_path / "out" / "previews").iterdir()}
    assert [name for name in drawn if again[name] != drawn[name]] == ["case_00002.webp"]


def test_damaged_case_is_named_rather_than_drawn(kits_folder: Path, tmp_path: Path) -> None:
    """A prepared case that cannot be read stops the report with the file and its fix."""
    result = preprocess_dataset(find_dataset(kits_folder), tmp_path / "out", workers=HERE)
    (tmp_path / "out" / "cases" / "case_00004" / "image.b2nd").write_bytes(b"broken")

    with pytest.raises(KitsattnError, match=r"case_00004.image\.b2nd is missing or damaged: .*--restart"):
        report_dataset(result, workers=HERE)
