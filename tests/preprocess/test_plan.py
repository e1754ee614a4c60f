import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kitsattn.config import from_json, to_json
from kitsattn.errors import KitsattnError
from kitsattn.preprocess.fingerprint import Fingerprint, Foreground, take_fingerprint
from kitsattn.preprocess.plan import Plan, plan_dataset, read_plan
from kitsattn.volume.geometry import Geometry
from kitsattn.volume.volume import Volume

PLAN = Plan(spacing_mm=(0.8, 0.7), mean_hu=100.0, std_hu=80.0, patch_size=(320, 512))


def make_fingerprint(spacing: float, mean: float | None, std: float = 0.0, body: int = 100) -> Fingerprint:
    """Return the fingerprint of a scan whose body is a square of `body` voxels."""
    foreground = None if mean is None else Foreground(10, mean, std, mean, mean, mean, mean)
    return Fingerprint("case_00000", (9, 512, 512), (5.0, spacing, 2 * spacing), (10, 10 + body, 0, body), foreground)


def test_fingerprint_by_hand() -> None:
    """Labelled voxels of 0, 100 and 900 HU, clipped at 300, have the mean 133.3."""
    array = np.array([[[0, 100, 900, -1000]]], np.int16)
    scan = Volume(array, Geometry.axial((1, 1, 4), (5.0, 0.7, 0.9)))

    found = take_fingerprint("case_00007", scan, np.array([[[1, 2, 1, 0]]], np.uint8), (-300.0, 300.0))

    assert (found.case_id, found.shape, found.spacing_mm) == ("case_00007", (1, 1, 4), (5.0, 0.7, 0.9))
    assert found.foreground is not None
    assert found.foreground.voxels == 3
    assert found.foreground.mean_hu == pytest.approx(400 / 3)
    assert found.foreground.std_hu == pytest.approx(math.sqrt((100**2 + 300**2) / 3 - (400 / 3) ** 2))
    assert (found.foreground.min_hu, found.foreground.max_hu) == (0, 300)
    assert found.foreground.percentile_99_5_hu == pytest.approx(298)


def test_fingerprint_of_an_unlabelled_scan_has_no_foreground(abdomen: tuple[Volume, Volume]) -> None:
    """A case without kidneys still has a size."""
    scan, labels = abdomen

    assert take_fingerprint("case_00000", scan, np.zeros_like(labels.array), (-300.0, 300.0)).foreground is None


def test_plan_takes_medians_and_pools_cases_equally() -> None:
    """Means of 90 and 110 with deviations of 10 pool to 100 and the root of 200, whatever the cases' sizes."""
    plan = plan_dataset(
        [make_fingerprint(0.5, 90.0, 10.0), make_fingerprint(0.8, 110.0, 10.0), make_fingerprint(0.9, None)]
    )

    assert plan.spacing_mm == (0.8, 1.6)
    assert plan.clip_hu == (-300.0, 300.0)
    assert plan.mean_hu == pytest.approx(100)
    assert plan.std_hu == pytest.approx(math.sqrt(200))


def test_patch_covers_the_median_body() -> None:
    """A body of 100 voxels at 2 mm is 250 at 0.8 mm: the patch is 256; a body of 400 needs 512, the most."""
    small = plan_dataset([make_fingerprint(2.0, 90.0, 10.0)], spacing_mm=(0.8, 1.6))
    large = plan_dataset([make_fingerprint(2.0, 90.0, 10.0, body=400)], spacing_mm=(0.8, 0.8))

    assert small.spacing_mm == (0.8, 1.6)
    assert small.patch_size == (256, 256)
    assert large.patch_size == (512, 512)


@pytest.mark.parametrize(
    ("fingerprints", "reason"),
    [
        ([make_fingerprint(0.8, None)], "no case has a labelled voxel"),
        ([make_fingerprint(0.8, 300.0)], "all labelled voxels have the value 300 HU"),
    ],
)
def test_plan_needs_a_foreground(fingerprints: list[Fingerprint], reason: str) -> None:
    """Without labels, or with labels in metal, there is nothing to normalise by."""
    with pytest.raises(KitsattnError, match=reason):
        plan_dataset(fingerprints)


def test_plan_survives_json() -> None:
    """A plan that is written and read is the same plan."""
    assert from_json(Plan, json.loads(json.dumps(to_json(PLAN))), "plan") == PLAN


def test_users_plan_is_read_with_the_spacing_that_is_given(tmp_path: Path) -> None:
    """A spacing on top of a plan file replaces that of the file."""
    (tmp_path / "plan.json").write_text(json.dumps(to_json(PLAN)))

    assert read_plan(tmp_path / "plan.json") == PLAN
    assert read_plan(tmp_path / "plan.json", spacing_mm=1.5) == replace(PLAN, spacing_mm=(1.5, 1.5))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"spacing_mm": [0.0, 1.0]}, "spacing_mm must be finite and above 0"),
        ({"spacing_mm": 0.8}, "spacing_mm must be a list"),
        ({"clip_hu": [300, -300]}, "clip_hu must be a lower and a higher value"),
        ({"std_hu": 0}, "std_hu above 0"),
        ({"patch_size": [16, 128]}, "patch_size must be 32 or more"),
        ({"patch": [128, 128]}, "unknown key 'patch'"),
    ],
)
def test_impossible_plans_are_refused(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    """A mistake in an edited plan names file, key and value."""
    (tmp_path / "plan.json").write_text(json.dumps({**to_json(PLAN), **change}))

    with pytest.raises(KitsattnError, match=rf"plan\.json: .*{reason}"):
        read_plan(tmp_path / "plan.json")


def test_air_is_the_prepared_value_of_air() -> None:
    """-300 HU, minus 100, over 80."""
    assert PLAN.air == -5


def test_identity_changes_with_what_changes_values() -> None:
    """Another spacing makes other cases, another patch size does not."""
    assert replace(PLAN, patch_size=(64, 64)).identity == PLAN.identity
    assert replace(PLAN, spacing_mm=(0.8, 0.8)).identity != PLAN.identity
