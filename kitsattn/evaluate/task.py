"""What an evaluation scores: predictions with their references, how their labels are scored, and its outputs."""

from dataclasses import dataclass
from pathlib import Path

from kitsattn.datasets.dataset import read_description
from kitsattn.evaluate.match import MatchedCases, add_scans, choose_protocol, match_cases
from kitsattn.evaluate.report import PICTURES, draw_case, write_report
from kitsattn.evaluate.scores import Scores
from kitsattn.jobs import Progress, silent
from kitsattn.labels import ScoringProtocol
from kitsattn.version import __version__
from kitsattn.words import readable


@dataclass(frozen=True)
class Task:
    """What is scored.

    Attributes:
        name: Of the predictions.
        matched: The cases.
        protocol: How their labels are scored.
        references: A path whose surroundings tell where the scans are; None where the cases know theirs.
        synthetic: Whether the scans are phantoms.
    """

    name: str
    matched: MatchedCases
    protocol: ScoringProtocol
    references: Path | None
    synthetic: bool


def find_task(predictions: Path, references: Path, protocol: ScoringProtocol | None = None) -> Task:
    """Match two label maps, or two folders of them.

    Args:
        predictions: A label map, or a folder, see `match_cases`.
        references: The same for the references.
        protocol: How labels are scored; None goes by the references, see `choose_protocol`.

    Raises:
        KitsattnError: If they cannot be matched.
    """
    place = references.absolute()
    matched, chosen = match_cases(predictions, references), protocol or choose_protocol(references)
    synthetic = read_description(place, *place.parents).synthetic
    return Task(readable(str(predictions)), matched, chosen, references, synthetic)


def report_task(path: Path, task: Task, scores: Scores, *, progress: Progress = silent) -> None:
    """Write the scores as one HTML page with pictures of the worst cases, atomically, replacing an existing one.

    Args:
        path: The HTML file.
        task: What was scored.
        scores: Its scores.
        progress: Called after each picture.

    Raises:
        KitsattnError: If a label map cannot be read, or the file cannot be written.
    """
    matched = task.matched if task.references is None else add_scans(task.matched, task.references)
    pairs = {pair.case: pair for pair in matched.pairs}
    provenance = {
        "predictions": task.name,
        **({} if task.references is None else {"references": str(task.references)}),
        "protocol": task.protocol.title,
        "versions": f"kitsattn {__version__}",
    }
    worst = [case.case for case in scores.worst_first()[:PICTURES]]
    images = {}
    progress("pictures", 0, len(worst))
    for done, case in enumerate(worst, start=1):
        images[case] = draw_case(pairs[case], task.protocol)
        progress("pictures", done, len(worst))
    write_report(
        path,
        scores,
        title=f"Evaluation of {task.name}",
        provenance=provenance,
        synthetic=task.synthetic,
        images=images,
    )
