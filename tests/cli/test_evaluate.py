"""`kitsattn evaluate` as people type it."""

import json
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from typer.testing import Result

from kitsattn.evaluate.metrics import METRICS
from kitsattn.files import write_json
from kitsattn.labels import KITS23_LABELS
from kitsattn.notices import SYNTHETIC_SCORES_NOTICE

Command = Callable[..., Result]
Process = Callable[..., subprocess.CompletedProcess[str]]
Refused = Callable[..., list[Path]]


def write_labels(path: Path, *values: int) -> Path:
    """Write a label map of one row of voxels of 2 x 2.5 x 5 mm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.array(values, np.uint8).reshape(len(values), 1, 1)
    nib.save(nib.Nifti1Image(array, np.diag([2, 2.5, 5, 1])), path)
    return path


def write_pairs(predictions: str, **cases: tuple[list[int], list[int]]) -> None:
    """Write predictions into a folder, and references into `references`."""
    for case, (predicted, true) in cases.items():
        write_labels(Path(predictions) / f"{case}.nii.gz", *predicted)
        write_labels(Path("references") / f"{case}.nii.gz", *true)


def test_two_label_maps_are_scored(command: Command, home: Path) -> None:
    """`evaluate dice PRED REF` of a label map against itself is 1."""
    labels = home / "raw" / "painted" / "case_00002" / "segmentation.nii.gz"
    result = command("evaluate", "dice", labels, labels, "--json", "--workers", "1")
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout)["composite"] == 1


def test_label_maps_with_cysts_are_scored_in_three_regions(command: Command) -> None:
    """`--protocol kits23`, or the data set's own description, scores kidney with masses, masses, and tumour."""
    write_pairs("predictions", case_00001=([2, 2, 3, 1, 0], [1, 2, 2, 3, 3]))
    words = ["evaluate", "dice", "predictions", "references", "--workers", "1"]
    named = command(*words, "--protocol", "kits23", "--json")
    assert (named.exit_code, named.stderr) == (0, "")
    content = json.loads(named.stdout)
    # Voxels predicted, true and both: 4, 5, 4 labelled; 3, 4, 2 in masses; 2, 2, 1 in tumours.
    dice = {"kidney_and_masses": 8 / 9, "masses": 4 / 7, "tumour": 1 / 2}
    expected = {region: {"dice": pytest.approx(value)} for region, value in dice.items()}
    assert (content["protocol"], content["mean"]) == ("kits23", expected)
    assert content["composite"] == pytest.approx(sum(dice.values()) / 3)

    write_json(Path("references") / "kitsattn-dataset.json", {"labels": dict(KITS23_LABELS)})
    assert json.loads(command(*words, "--json").stdout) == content
    table = command(*words).stdout
    assert all(word in table for word in ["Dice (KiTS23); composite 0.6534", *dice, "0.8889", "0.5714", "0.5000"])


def test_a_run_is_scored_by_the_labels_it_was_trained_on(
    command: Command, home: Path, tmp_path: Path, changed_checkpoint: Callable[..., Path]
) -> None:
    """Without paths the newest run's checkpoint says which regions there are, and --protocol overrules it."""
    shutil.copytree(home, tmp_path / "ws")
    changed_checkpoint(
        tmp_path / "ws" / "runs" / "first" / "fold_0" / "best.safetensors",
        lambda header: replace(header, labels=KITS23_LABELS),
    )
    words = ["evaluate", "dice", "--workspace", "ws", "--workers", "1", "--json"]
    found = [json.loads(command(*words, *more).stdout) for more in ([], ["--protocol", "kits19"])]
    assert [content["protocol"] for content in found] == ["kits23", "kits19"]
    assert list(found[0]["mean"]) == ["kidney_and_masses", "masses", "tumour"]


def test_every_metric_has_a_table_and_all_has_all_of_them(command: Command, home: Path) -> None:
    """Values in millimetres or shares, and what is not defined says so."""
    raw = home / "raw" / "painted"
    pair = (raw / "case_00000" / "segmentation.nii.gz", raw / "case_00001" / "segmentation.nii.gz")
    for metric in METRICS:
        result = command("evaluate", metric.command, pair[0], pair[0], "--workers", "1")
        assert f"{metric.heading} (KiTS19)" in result.stdout
        assert ("Tolerances of surface Dice: " in result.stdout) == (metric.command == "surface-dice")
    result = command("evaluate", "all", pair[0], pair[0], "--workers", "1", "--json")
    perfect = {metric.key: 1.0 if metric.share else 0.0 for metric in METRICS}
    assert json.loads(result.stdout)["mean"]["tumour"] == perfect
    shutil.copytree(raw / "case_00002", Path("predictions") / "case_00002")
    result = command("evaluate", "all", "predictions", raw, "--workers", "1", "--csv", "scores/evaluation.csv")
    assert result.stdout.count("not defined") > 4
    rows = Path("scores/evaluation.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["caseID", *(f"case_0000{number}" for number in range(6)), "average"]


def test_a_missing_prediction_is_told_even_when_quiet(command: Command, home: Path) -> None:
    """A case that counts as empty lowers the mean, so that it must not go unseen."""
    raw = home / "raw" / "painted"
    shutil.copytree(raw / "case_00002", Path("predictions") / "case_00002")
    shutil.copytree(raw / "case_00002", Path("predictions") / "case_00099")
    result = command("-q", "evaluate", "dice", "predictions", raw, "--workers", "1", "--json")
    missing = [f"case_0000{number}" for number in (0, 1, 3, 4, 5)]
    assert result.stderr.splitlines() == [
        f"warning: predictions has no prediction, counted as empty, of {', '.join(missing)}",
        "warning: predictions has predictions without a reference, left out: case_00099",
    ]
    assert json.loads(result.stdout)["mean"]["tumour"]["dice"] == pytest.approx(1 / 6)


def test_detection_is_told_by_region_and_size(command: Command) -> None:
    """One of two tumours is found; the sentence below the table has the intervals."""
    write_pairs("predictions", a=([1, 2, 0, 0], [1, 2, 0, 0]), b=([1, 0, 0, 2], [1, 2, 0, 0]))

    result = command("evaluate", "detection", "predictions", "references", "--workers", "1")

    assert (result.exit_code, result.stderr) == (0, "")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line]
    assert rows[0] == ["Tumour", "all", "2", "1", "0.500", "2", "1", "0.500"]
    assert rows[1] == ["Tumour", "0 to 20 mm", "2", "1", "0.500", "2", "1", "0.500"]
    assert rows[-1][1:3] == ["from 70 mm", "0"]
    assert "Tumour: precision 0.500 (0.000 to 1.000), recall 0.500 (0.000 to 1.000), f1 0.500" in result.stdout
    found = json.loads(command("evaluate", "detection", "predictions", "references", "--workers", "1", "--json").stdout)
    assert found["detection"]["tumour"]["found"] == 1
    assert [lesion["found"] for case in found["cases"] for lesion in case["tumour"]["lesions"]] == [True, False]
    assert found["mean"] == {"kidney_and_tumour": {}, "tumour": {}}


def test_labels_without_lesions_are_not_searched_for_them(command: Command, refused: Refused) -> None:
    """The error says what makes a class one of lesions."""
    write_pairs("predictions", a=([1, 2], [1, 2]))
    write_json(Path("references") / "kitsattn-dataset.json", {"labels": {"background": 0, "kidney": 1, "liver": 2}})
    words = ["evaluate", "detection", "predictions", "references", "--workers", "1"]
    refused(*words, names="kidney, liver", fix="a class is if its name says tumour, mass, cyst or lesion")


def test_one_bad_case_costs_no_other(command: Command) -> None:
    """It is told in one line that names the file; the others are scored and written, and the exit code is 1."""
    write_pairs("predictions", a=([1, 2], [1, 2]), b=([1, 2], [1, 2]), c=([1, 0], [1, 2]))
    (Path("predictions") / "b.nii.gz").write_bytes(b"no label map")

    words = ["-q", "evaluate", "dice", "predictions", "references", "--workers", "1", "--csv", "scores.csv"]
    result = command(*words, "--json")

    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("warning: not scored: predictions/b.nii.gz ")
    content = json.loads(result.stdout)
    assert [case["case"] for case in content["cases"]] == ["a", "c"]
    assert content["failed"] == {"b": line.removeprefix("warning: not scored: ")}
    rows = Path("scores.csv").read_text(encoding="utf-8").splitlines()
    assert [row.split(",")[0] for row in rows] == ["caseID", "a", "c", "average"]


def test_a_turned_prediction_is_told(command: Command) -> None:
    """A prediction in another orientation is brought onto the reference's grid, and that is said."""
    write_pairs("predictions", a=([1, 2, 0], [1, 2, 0]))
    path = Path("predictions") / "a.nii.gz"
    image = nib.load(path).as_reoriented([[0, -1], [1, 1], [2, 1]])  # type: ignore[attr-defined]
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine), path)

    result = command("evaluate", "dice", "predictions", "references", "--workers", "1", "--json")

    assert result.stderr == "predictions: stored in another orientation than the reference, and turned: a\n"
    content = json.loads(result.stdout)
    assert (content["composite"], content["turned"]) == (1, ["a"])


@pytest.mark.parametrize(("definition", "share"), [("surface-distance", 0.5), ("medpy", 0.0), ("monai", 0.0)])
def test_the_definition_of_surfaces_is_chosen(command: Command, definition: str, share: float) -> None:
    """A voxel beside another one of 2 mm: half of the elements between voxels coincide, and no border voxel does."""
    write_pairs("predictions", a=([1, 0], [0, 1]))
    words = ["evaluate", "surface-dice", "predictions", "references", "--workers", "1", "--json"]
    content = json.loads(command(*words, "--definition", definition).stdout)
    assert content["mean"]["kidney_and_tumour"] == {"surface_dice": share}
    assert f"Definition of surfaces: {definition}." in content["rules"]


def test_two_sets_of_predictions_are_compared(command: Command) -> None:
    """Each case with itself: means, their difference, and which cases moved."""
    write_pairs("first", a=([1, 2], [1, 2]), b=([1, 0], [1, 2]))
    write_pairs("second", a=([1, 2], [1, 2]), b=([1, 2], [1, 2]))
    words = ["evaluate", "dice", "--compare", "first", "second", "references", "--workers", "1"]

    result = command(*words)

    assert (result.exit_code, result.stderr) == (0, "")
    assert "Dice: A is first, B is second" in result.stdout
    assert "Cases that moved most, Dice" in result.stdout
    found = json.loads(command(*words, "--json").stdout)
    tumour = found["differences"][1]
    assert (tumour["region"], tumour["mean_a"], tumour["mean_b"], tumour["better"]) == ("tumour", 0.5, 1.0, 1)
    assert tumour["changes"][0] == {"case": "b", "a": 0.0, "b": 1.0, "difference": 1.0}


def test_a_comparison_tells_whose_cases_are_amiss(command: Command) -> None:
    """Of which side a prediction is missing or cannot be read; the exit code is 1, and lesions are not compared."""
    write_pairs("first", a=([1, 2], [1, 2]), b=([1, 2], [1, 2]), c=([1, 2], [1, 2]))
    write_pairs("second", a=([1, 2], [1, 2]), b=([1, 2], [1, 2]))
    (Path("second") / "b.nii.gz").write_bytes(b"no label map")

    words = ["-q", "evaluate", "all", "--compare", "first", "second", "references", "--workers", "1", "--json"]
    result = command(*words)

    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert lines[0].startswith("warning: not scored: second/b.nii.gz ")
    assert lines[1:] == [
        "warning: second has no prediction, counted as empty, of c",
        "warning: in one of both only, left out: b",
    ]
    content = json.loads(result.stdout)
    assert (content["missing"], content["unpaired"]) == ({"a": [], "b": ["c"]}, ["b"])
    assert list(content["failed"]["b"]) == ["b"]
    assert not any("lesion" in rule for rule in content["rules"])


def test_sides_with_other_labels_are_not_compared(
    home: Path, tmp_path: Path, changed_checkpoint: Callable[..., Path], refused: Refused
) -> None:
    """Runs of two data sets are scored by other regions, unless a protocol is named."""
    shutil.copytree(home, tmp_path / "ws")
    run = next((tmp_path / "ws" / "runs").iterdir())
    shutil.copytree(run, run.with_name("other"))
    changed_checkpoint(
        run.with_name("other") / "fold_0" / "best.safetensors", lambda header: replace(header, labels=KITS23_LABELS)
    )
    words = ["evaluate", "dice", "--compare", run.name, "other", "--workspace", "ws", "--workers", "1"]
    refused(*words, names=f"{run.name} and other have different labels", fix="name the --protocol")


def test_a_run_is_compared_by_its_name(command: Command, home: Path) -> None:
    """Without REF both are runs of the workspace; here one run with itself."""
    run = next((home / "runs").iterdir())
    words = ["evaluate", "dice", "--compare", run.name, run, "--workspace", home, "--workers", "1", "--json"]
    found = json.loads(command(*words).stdout)
    assert (found["a"], found["b"]) == (run.name, run.name)
    assert all(difference["mean_difference"] == 0 for difference in found["differences"])


def test_what_cannot_be_compared_is_refused(refused: Refused) -> None:
    """A name that is no run, and options that are for one set of predictions."""
    write_pairs("first", a=([1, 2], [1, 2]))
    words = ["evaluate", "dice", "--compare", "first", "second", "--workers", "1"]
    refused(*words, names="first is not a run in", fix="or folders of predictions with a REF behind them")
    refused(*words, "references", "--csv", "scores.csv", names="--compare A B", fix="leave the rest out")
    refused(*words, "references", names="second does not exist", fix="give a label map, or a folder of label maps")


def test_the_worst_cases_stand_first_in_tables(command: Command) -> None:
    """Above the mean and its interval."""
    write_pairs("predictions", a=([1, 2], [1, 2]), b=([0, 0], [1, 2]), c=([1, 0], [1, 2]))
    table = command("evaluate", "dice", "predictions", "references", "--workers", "1").stdout
    names = [line.split("│")[1].strip() for line in table.splitlines() if "│" in line]
    assert names == ["b", "c", "a", "mean", "95 % interval", "median", "standard deviation"]


def test_names_are_not_taken_for_markup(command: Command) -> None:
    """A case is called as its file is."""
    write_pairs("predictions", **{"[red]a[_red]": ([1, 2], [1, 2]), "t:smile:": ([1, 2], [1, 2]), "[_x]": ([1], [1])})
    table = command("evaluate", "dice", "predictions", "references", "--workers", "1").stdout
    assert all(name in table for name in ("[red]a[_red]", "t:smile:", "[_x]"))


def test_many_regions_are_rows(command: Command) -> None:
    """40 labels as columns could not be read: there are means, and the cases are in JSON and files."""
    write_pairs("predictions", a=(list(range(41)), list(range(41))))
    labels = {"background": 0, **{f"organ_{value}": value for value in range(1, 41)}}
    write_json(Path("references") / "kitsattn-dataset.json", {"labels": labels})
    table = command("evaluate", "dice", "predictions", "references", "--workers", "1").stdout
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines() if "│" in line]
    assert len(rows) == 40
    assert rows[0] == ["organ_1", "1.0000", "not defined", "1.0000", "not defined"]


@pytest.mark.parametrize("width", ["60", "200"])
def test_tables_are_whole_on_narrow_terminals(command: Command, width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal breaks lines; no name is lost and no number cut."""
    monkeypatch.setenv("COLUMNS", width)
    write_pairs("first", a=([1, 2], [1, 2]), b=([1, 0], [1, 2]))
    write_pairs("second", a=([0, 2], [1, 2]), b=([1, 2], [1, 2]))
    shown = command("evaluate", "detection", "first", "references", "--workers", "1").stdout
    row = next(line for line in shown.splitlines() if "0 to 20 mm" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == [
        "Tumour",
        "0 to 20 mm",
        "2",
        "1",
        "0.500",
        "1",
        "1",
        "1.000",
    ]
    words = ["evaluate", "dice", "--compare", "first", "second", "references", "--workers", "1"]
    row = next(line for line in command(*words).stdout.splitlines() if "kidney and tumour" in line)
    assert "-0.3333 to 0.3333" in row


def test_who_reads_the_first_line_gets_the_files(process: Process) -> None:
    """`| head` closes the pipe before all is printed."""
    write_pairs("predictions", **{f"case_{number}": ([1, 2], [1, 2]) for number in range(3)})
    program = (
        "import sys; from kitsattn.cli import evaluate; from kitsattn.__main__ import main\n"
        "def broken(*_, **__): raise BrokenPipeError\n"
        "evaluate._print = broken; main()"
    )
    process("evaluate", "dice", "predictions", "references", "--csv", "scores.csv", program=program)
    assert len(Path("scores.csv").read_text(encoding="utf-8").splitlines()) == 5


def test_a_name_that_is_no_utf8_is_written_and_drawn(process: Process) -> None:
    """A byte that is no character is a question mark."""
    for folder in ("predictions", "references"):
        write_labels(Path(folder) / "a.nii.gz", 1, 2)
        (Path(folder) / "a.nii.gz").rename(Path(folder) / "a\udcff.nii.gz")
    run = process("evaluate", "dice", "predictions", "references", "--html", "a.html", "--csv", "a.csv")
    assert (run.returncode, run.stderr) == (0, "")
    assert "a?" in run.stdout
    assert "a?" in Path("a.html").read_text(encoding="utf-8")


def test_without_tables_the_scores_are_not_lost(command: Command) -> None:
    """They are printed before a file is written that cannot be."""
    write_pairs("predictions", a=([1, 2], [1, 2]))
    Path("folder.csv").mkdir()
    result = command("evaluate", "dice", "predictions", "references", "--workers", "1", "--csv", "folder.csv")
    assert result.exit_code == 1
    assert "composite 1.0000" in result.stdout
    assert result.stderr.startswith("error: folder.csv ")


def test_phantoms_are_told_on_the_page_and_in_the_picture(command: Command) -> None:
    """What the references' folder says of itself."""
    write_pairs("predictions", a=([1, 2], [1, 2]))
    write_json(Path("references") / "kitsattn-dataset.json", {"synthetic": True})
    outputs = ["--html", "scores.html", "--png", "scores.png"]
    command("evaluate", "dice", "predictions", "references", "--workers", "1", *outputs)
    assert SYNTHETIC_SCORES_NOTICE in Path("scores.html").read_text(encoding="utf-8")
    assert SYNTHETIC_SCORES_NOTICE.encode() in Path("scores.png").read_bytes()


def test_the_page_shows_the_worst_cases(command: Command) -> None:
    """Six of seven; the best one is left out."""
    cases = {name: ([1, 1, 2] if name == "d" else [1, 0, 0], [1, 1, 2]) for name in "abcdefg"}
    write_pairs("predictions", **cases)
    command("evaluate", "dice", "predictions", "references", "--workers", "1", "--html", "scores.html")
    page = Path("scores.html").read_text(encoding="utf-8")
    assert [name for name in cases if f"CT slices of {name} with" in page] == list("abcefg")


def test_scoring_a_small_pair_loads_little(process: Process) -> None:
    """What is not loaded keeps nobody waiting, and one pair needs no other process; nibabel looks for scipy itself."""
    write_pairs("predictions", a=([1, 2], [1, 2]))
    program = (
        "import sys; from kitsattn.__main__ import main\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'scipy.spatial', 'joblib', 'matplotlib', 'SimpleITK'} & sys.modules.keys()))"
    )
    run = process("evaluate", "dice", "predictions", "references", program=program)
    assert run.stdout.splitlines()[-1] == "[]"


def test_a_page_a_picture_and_a_table_are_written(command: Command, home: Path) -> None:
    """The page has a table for each metric, plots, and the worst cases on their scans; nothing else is needed."""
    raw = home / "raw" / "painted"
    for number in range(3):
        shutil.copytree(raw / f"case_0000{number}", Path("predictions") / f"case_0000{number}")

    outputs = ["--html", "scores.html", "--png", "scores.png", "--csv", "evaluation.csv"]
    result = command("evaluate", "all", "predictions", raw, "--workers", "1", *outputs)

    assert result.exit_code == 0
    page = Path("scores.html").read_text(encoding="utf-8")
    for part in (
        "<h1>Evaluation of predictions</h1>",
        "Dice (6 cases), composite ",
        "Volume difference, ml (6 cases)",
        "Detection of lesions",
        "Bland-Altman plot of the volume of tumour.",
        "No prediction was found for case_00003, case_00004, case_00005",
        "CT slices of case_00003 with the outlines of kidney and tumour",
    ):
        assert part in page
    assert "The scan is not known" not in page
    assert Path("scores.png").read_bytes().startswith(b"\x89PNG")
    header = Path("evaluation.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header.startswith("caseID,Dice_kidney_and_tumour,Dice_tumour,SD_kidney_and_tumour,SD_tumour,HD95_mm_")
    assert header.endswith("Lesions_tumour,Found_tumour,Predicted_lesions_tumour,True_lesions_tumour")


def test_the_page_works_in_a_browser(command: Command, home: Path, browser: Any) -> None:
    """Each table of cases sorts, plots and pictures are shown, and nothing is loaded or complained of."""
    raw = home / "raw" / "painted"
    for number in range(3):
        shutil.copytree(raw / f"case_0000{number}", Path("predictions") / f"case_0000{number}")
    command("evaluate", "all", "predictions", raw, "--workers", "1", "--html", "scores.html")

    browser.get(Path("scores.html").absolute().as_uri())
    tables = browser.find_elements("css selector", "table:has(button)")
    for table in tables:
        table.find_element("css selector", "th:first-child button").click()
    orders = [[row.text for row in table.find_elements("css selector", "tbody th")] for table in tables]
    images = (
        "const done = arguments[0]; for (const image of document.images) image.loading = 'eager';"
        "Promise.allSettled([...document.images].map((image) => image.decode()))"
        ".then(() => done([...document.images].map((image) => image.naturalWidth)))"
    )
    widths = browser.execute_async_script(images)

    assert orders == [[f"case_0000{number}" for number in range(6)]] * len(METRICS)
    assert len(widths) == len(METRICS) + 2 + 6
    assert all(width > 0 for width in widths)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0


@pytest.mark.parametrize(("option", "suffix"), [("--csv", ".csv"), ("--html", ".html"), ("--png", ".png")])
def test_outputs_are_named_as_what_they_are(refused: Refused, option: str, suffix: str) -> None:
    """A label map in the place of an output is not lost."""
    write_pairs("predictions", a=([1, 2], [1, 2]))
    bad = "predictions/a.nii.gz"
    refused("evaluate", "all", "predictions", "references", option, bad, names=bad, fix=f"name it {suffix}")


def test_submissions_are_ranked(command: Command, refused: Refused) -> None:
    """By the tables that `--csv` writes; a folder without one is told how to make it."""
    for name, tumour in (("worse", 0), ("better", 2)):
        write_pairs(name, a=([1, tumour], [1, 2]))
        command("evaluate", "all", name, "references", "--workers", "1", "--csv", f"{name}/evaluation.csv")

    ranking = json.loads(command("evaluate", "rank", "worse", "better", "--json").stdout)["ranking"]

    assert [(place["rank"], place["submission"]) for place in ranking] == [(1, "better"), (2, "worse")]
    assert "Ranking (KiTS19)" in command("evaluate", "rank", "worse", "better").stdout
    refused("evaluate", "rank", "better", "references", names="references", fix="--csv references/evaluation.csv")


def test_a_submission_is_checked_and_zipped(command: Command) -> None:
    """Files go in under the challenge's names; what is missing is told."""
    for number in range(210, 300):
        write_labels(Path("predictions") / f"case_00{number}.nii.gz", 1, 2, 0)

    result = command("evaluate", "submission", "predictions", "--workers", "1")

    assert result.exit_code == 0
    assert result.stdout == "predictions.zip: 90 files for KiTS19\n"
    with zipfile.ZipFile("predictions.zip") as archive:
        assert archive.namelist() == [f"prediction_00{number}.nii.gz" for number in range(210, 300)]


def test_a_submission_with_problems_is_not_zipped(command: Command) -> None:
    """Each problem is a line, and the exit code is 1."""
    write_labels(Path("predictions") / "case_00589.nii.gz", 1, 2, 0)
    (Path("predictions") / "case_00590.nii.gz").write_bytes(b"no label map")

    result = command("-q", "evaluate", "submission", "predictions", "--workers", "1")

    assert (result.exit_code, result.stdout) == (1, "")
    assert "warning: predictions/case_00590.nii.gz " in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: predictions.zip was not written")
    assert not Path("predictions.zip").exists()
