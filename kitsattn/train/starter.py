"""The training of a network on made scans, such as the starter that ships: from a data folder to one small file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from kitsattn.checkpoint.file import Checkpoint, load_checkpoint, save_checkpoint
from kitsattn.checkpoint.header import Header, TrainingSource
from kitsattn.config import to_json
from kitsattn.errors import KitsattnError
from kitsattn.files import write_json
from kitsattn.labels import KITS19_LABELS
from kitsattn.preprocess.store import PreparedDataset, open_dataset
from kitsattn.synthesis import data as known
from kitsattn.synthesis.prepare import PLAN, PreparedMaterial
from kitsattn.train.job import FoldJob
from kitsattn.train.names import JOURNAL, STARTER

NAME = "starter"


def made_dataset(material: PreparedMaterial) -> PreparedDataset:
    """Return what a checkpoint and the loop need to know of made scans; it has no cases of its own."""
    used = [info for info in known.SOURCES_OF_DATA if _count(material, info)]
    citations = [info.citation for info in used]
    licences = {info.licence for info in used}
    name, licence = NAME, "CC BY-NC-SA 4.0" if any("NC" in one for one in licences) else "CC BY 4.0"
    real = material.real
    if real is not None:
        name, licence = f"{NAME}-{real.name}", f"{licence}; {real.name}: {real.licence}"
        citations.append(real.citation)
    return PreparedDataset(
        folder=material.folder,
        name=name,
        synthetic=False,
        licence=licence,
        citation="; ".join(dict.fromkeys(citations)),
        labels=KITS19_LABELS,
        plan=PLAN,
        sources={},
    )


def open_real(folder: Path, plan_file: Path) -> PreparedDataset:
    """Open a prepared data set of real scans that is mixed into made ones.

    Args:
        folder: The data set.
        plan_file: Plan that it must have been prepared with; written if the data set has another one.

    Raises:
        KitsattnError: If it was prepared for another grid or window, or has other labels.
    """
    dataset = open_dataset(folder)
    if dataset.plan.target != PLAN.target:
        write_json(plan_file, to_json(PLAN))
        msg = f"{folder} was prepared with another plan: run `kitsattn preprocess RAW_FOLDER --plan {plan_file}`"
        raise KitsattnError(msg)
    if dict(list(dataset.labels.items())[:3]) != dict(KITS19_LABELS):
        msg = f"{folder} has the labels {', '.join(dataset.labels)}: it needs background 0, kidney 1, tumour 2"
        raise KitsattnError(msg)
    return dataset


def describe_sources(material: PreparedMaterial) -> tuple[TrainingSource, ...]:
    """Return the sources of a training with their counts, licences and citations."""
    sources = [
        TrainingSource(
            name=info.content.split(",")[0],
            count=_count(material, info),
            unit="real slices" if info in {known.CURVAS, known.KITS19_SLICES} else "label maps",
            licence=info.licence,
            citation=info.citation,
        )
        for info in known.SOURCES_OF_DATA
        if _count(material, info)
    ]
    if not material.data.label_maps:
        sources.append(_describe(open_dataset(material.painted), "procedural phantoms"))
    if material.real is not None:
        sources.append(_describe(material.real, "real scans"))
    return tuple(sources)


def _describe(dataset: PreparedDataset, unit: str) -> TrainingSource:
    return TrainingSource(
        name=dataset.name,
        count=len(dataset.cases),
        unit=unit,
        licence=dataset.licence,
        citation=dataset.citation,
    )


def _count(material: PreparedMaterial, info: known.SourceInfo) -> int:
    found = material.data
    if info in {known.KITS19_LABELS, known.KITS23_LABELS}:
        return sum(path.parent.name == Path(info.path).name for path in found.label_maps)
    if info is known.TOTALSEGMENTATOR:
        return len(found.bodies)
    if info is known.ATLAS:
        return int(found.atlas is not None)
    prefix = "CURVAS" if info is known.CURVAS else "KiTS19"
    return sum(one.name.startswith(prefix) for one in found.slices)


def ship(job: FoldJob, checkpoint: Path) -> Path:
    """Write a checkpoint as it ships: matrices in fp16, vectors in fp32, hours of training in its provenance.

    Returns:
        `starter.safetensors` beside the checkpoint.
    """
    loaded = load_checkpoint(checkpoint)
    seconds = _seconds(job.folder / JOURNAL)
    provenance = replace(loaded.header.provenance, hours=round(sum(seconds) / 3600, 2))
    header = replace(loaded.header, provenance=provenance, tta="sides")  # measured in docs/how-to/starter.md
    target = job.folder / STARTER
    save_small(target, header, loaded.model)
    return target


def save_small(path: Path, header: Header, model: Mapping[str, Tensor]) -> None:
    """Write a network without the state of its training, matrices in fp16, vectors in fp32."""
    small = {name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in model.items()}
    save_checkpoint(path, Checkpoint(header, small, {}))


def _seconds(journal: Path) -> Sequence[float]:
    lines = journal.read_text("utf-8").splitlines()
    return [float(json.loads(line)["seconds"]) for line in lines]
