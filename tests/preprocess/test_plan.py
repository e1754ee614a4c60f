import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kitsattn.config import from_json, to_json
from kitsattn.errors import KitsattnError
from kitsattn.labels import KITS19_LABELS
from kitsattn.preprocess.fingerprint import Fingerprint, Foreground, pool_intensities, take_fingerprint
from kitsattn.preprocess.plan import Plan, Target, plan_dataset, read_plan
from kitsattn.volume.geometry import Geometry
from kitsattn.volume.volume import Volume

PLAN = Plan(spacing_mm=(0.8, 0.7), mean_hu=100.0, std_hu=80.0, patch_size=(320, 512))


def make_foreground(values: Sequence[int]) -> Foreground:
    """Return the histogram of a few values."""
    return Foreground(min(values), tuple(np.bincount(np.array(values) - min(values)).tolist()))


def make_fingerprint(spacing: float, *values: int, body: int = 100) -> Fingerprint:
    """Return the fingerprint of a scan whose body is a square of `body` voxels and whose foreground has `values`."""
    foreground = make_foreground(values) if values else None
    return Fingerprint(
        "case_00000", (9, 512, 512), (5.0, spacing, 2 * spacing), (10, 10 + body, 0, body), {}, foreground
    )


def test_fingerprint_by_hand() -> None:
    """Three voxels are labelled, two as kidney, with values from 0 to 900 HU."""
    array = np.array([[[0, 3, 900, -1000]]], np.int16)
    scan = Volume(array, Geometry.axial((1, 1, 4), (5.0, 0.7, 0.9)))

    found = take_fingerprint("case_00007", scan, np.array([[[1, 2, 1, 0]]], np.uint8), KITS19_LABELS, (0, 1, 0, 3))

    assert (found.case_id, found.shape, found.spacing_mm) == ("case_00007", (1, 1, 4), (5.0, 0.7, 0.9))
    assert found.body_box == (0, 1, 0, 3)
    assert found.voxels == {"kidney": 2, "tumour": 1}
    assert found.foreground == make_foreground([0, 3, 900])
    assert found.foreground.voxels == 3


def test_fractions_of_hu_are_rounded_in_the_histogram() -> None:
    """A scan in float32 is counted at whole HU, and values beyond any scanner's at its ends."""
    scan = Volume(np.array([[[-1.6, 2.4, 1e9]]], np.float32), Geometry.axial((1, 1, 3), (1.0, 1.0, 1.0)))

    found = take_fingerprint("case_00000", scan, np.ones((1, 1, 3), np.uint8), KITS19_LABELS, (0, 1, 0, 3))

    assert found.foreground == make_foreground([-2, 2, 32767])


@pytest.mark.parametrize("counts", [(), (0, 1), (1, -1)])
def test_foreground_has_voxels(counts: tuple[int, ...]) -> None:
    """A histogram of nothing in a damaged record is refused, and the case looked at again."""
    with pytest.raises(ValueError, match="counts must begin with a number above 0"):
        Foreground(0, counts)


def test_fingerprint_of_an_unlabelled_scan_has_no_foreground(abdomen: tuple[Volume, Volume]) -> None:
    """A case without kidneys still has a size."""
    scan, labels = abdomen

    found = take_fingerprint("case_00000", scan, np.zeros_like(labels.array), KITS19_LABELS, (0, 60, 0, 80))

    assert found.foreground is None
    assert found.voxels == {"kidney": 0, "tumour": 0}
    assert pool_intensities([found]) is None


def test_intensities_by_hand() -> None:
    """Of 0, 100 and 900 HU, and of the same clipped to 300."""
    fingerprints = [make_fingerprint(1.0, 0, 100, 900)]

    found = pool_intensities(fingerprints)
    assert found is not None
    assert found.mean_hu == pytest.approx(1000 / 3)
    assert found.std_hu == pytest.approx(math.sqrt((0**2 + 100**2 + 900**2) / 3 - (1000 / 3) ** 2))
    assert (found.min_hu, found.max_hu, found.median_hu) == (0, 900, 100)
    assert (found.percentile_00_5_hu, found.percentile_99_5_hu) == (0, 900)
    clipped = pool_intensities(fingerprints, (-300.0, 300.0))
    assert clipped is not None
    assert clipped.mean_hu == pytest.approx(400 / 3)
    assert clipped.std_hu == pytest.approx(math.sqrt((100**2 + 300**2) / 3 - (400 / 3) ** 2))
    assert clipped.max_hu == 300


def test_intensities_are_those_that_nnunet_samples() -> None:
    """nnU-Net draws as many voxels from every case, with replacement, and pools them: here is what that tends to."""
    generator = np.random.default_rng(3)
    cases = [generator.normal(100, 40, 900).astype(int), generator.normal(30, 90, 20000).astype(int)]
    drawn = np.concatenate([generator.choice(values, 200_000, replace=True) for values in cases])

    found = pool_intensities([make_fingerprint(1.0, *values.tolist()) for values in cases])

    assert found is not None
    assert found.mean_hu == pytest.approx(drawn.mean(), abs=0.5)
    assert found.std_hu == pytest.approx(drawn.std(), abs=0.5)
    assert (found.min_hu, found.max_hu) == (drawn.min(), drawn.max())
    percentiles = np.percentile(drawn, [50, 0.5, 99.5])
    assert [found.median_hu, found.percentile_00_5_hu, found.percentile_99_5_hu] == pytest.approx(percentiles, abs=2)


def test_plan_takes_medians_and_pools_cases_equally() -> None:
    """Means of 90 and 110 with deviations of 10 pool to 100 and the root of 200, whatever the cases' sizes."""
    plan = plan_dataset(
        [make_fingerprint(0.5, 80, 100), make_fingerprint(0.8, 100, 120, 100, 120), make_fingerprint(0.9)]
    )

    assert plan.spacing_mm == (0.8, 1.6)
    assert plan.clip_hu == (-300.0, 300.0)
    assert plan.mean_hu == pytest.approx(100)
    assert plan.std_hu == pytest.approx(math.sqrt(200))


def test_window_of_nnunet_is_that_of_the_percentiles() -> None:
    """Clipped to the 0.5 and 99.5 percentiles of the foreground, normalised by the foreground as it is."""
    values = list(range(-500, 501))

    plan = plan_dataset([make_fingerprint(1.0, *values)], window="nnunet")

    assert plan.clip_hu == (-495.0, 495.0)
    assert plan.mean_hu == pytest.approx(0)
    assert plan.std_hu == pytest.approx(np.std(values))


def test_kits19_gives_the_spacing_and_patch_of_nnunet(kits19_headers: list[Fingerprint]) -> None:
    """The 210 training cases have a median of 0.78125 mm in-plane, and most slices have 512 x 512 voxels there."""
    plan = plan_dataset(kits19_headers)

    assert len(kits19_headers) == 210
    assert plan.spacing_mm == (0.78125, 0.78125)
    assert plan.patch_size == (512, 512)


def test_patch_covers_the_median_body() -> None:
    """A body of 100 voxels at 2 mm is 250 at 0.8 mm: the patch is 256; a body of 400 needs 512, the most."""
    small = plan_dataset([make_fingerprint(2.0, 90, 100)], spacing_mm=(0.8, 1.6))
    large = plan_dataset([make_fingerprint(2.0, 90, 100, body=400)], spacing_mm=(0.8, 0.8))

    assert small.spacing_mm == (0.8, 1.6)
    assert small.patch_size == (256, 256)
    assert large.patch_size == (512, 512)


@pytest.mark.parametrize(
    ("fingerprints", "reason"),
    [
        ([make_fingerprint(0.8)], "no case has a labelled voxel"),
        ([make_fingerprint(0.8, 900, 1000)], "all labelled voxels have the value 300 HU"),
    ],
)
def test_plan_needs_a_foreground(fingerprints: list[Fingerprint], reason: str) -> None:
    """Without labels, or with labels in metal, there is nothing to normalise by."""
    with pytest.raises(KitsattnError, match=reason):
        plan_dataset(fingerprints)

    with pytest.raises(KitsattnError, match="all labelled voxels have the value 7 HU"):
        plan_dataset([make_fingerprint(0.8, *[7] * 1000, 8)], window="nnunet")


def test_window_of_one_value_is_none() -> None:
    """Where the percentiles meet there is no window."""
    with pytest.raises(KitsattnError, match="all labelled voxels have the value 7 HU"):
        plan_dataset([make_fingerprint(0.8, *[7] * 1000, 8)], window="nnunet")


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
        ({"clip_hu": [0, 0.001]}, "clip_hu must be a lower and a higher value"),
        ({"clip_hu": [-50000, 300]}, "clip_hu must be a lower and a higher value from -32768 to 32767"),
        ({"patch_size": [64, 100000]}, "patch_size must be 32 or more, 4096 at most"),
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


def test_plan_is_told_in_a_line() -> None:
    """What people read while they wait."""
    told = "0.8 x 0.7 mm, -300 to 300 HU, mean 100.0 HU, deviation 80.0 HU, patches of 320 x 512"
    assert str(PLAN) == told


def test_air_is_the_prepared_value_of_air() -> None:
    """-300 HU, minus 100, over 80."""
    assert PLAN.air == -5


def test_target_is_what_decides_the_stored_values() -> None:
    """Another spacing or window makes other cases; patch size, mean and deviation do not."""
    assert replace(PLAN, patch_size=(64, 64), mean_hu=0.0, std_hu=1.0).target == PLAN.target
    assert replace(PLAN, spacing_mm=(0.8, 0.8)).target == Target((0.8, 0.8), PLAN.clip_hu)
    assert replace(PLAN, clip_hu=(-200.0, 300.0)).target == Target(PLAN.spacing_mm, (-200.0, 300.0))
