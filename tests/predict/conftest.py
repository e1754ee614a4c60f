"""What tests of prediction share."""

import pytest

from kitsattn.checkpoint.header import Header, Provenance
from kitsattn.labels import KITS19_LABELS


@pytest.fixture(scope="session")
def header() -> Header:
    """What a network says of itself that was made for a test."""
    made = Provenance(
        kitsattn="0", torch="0", dataset="d", synthetic=False, licence="l", citation="c", recipe="r", precision="fp32",
        fold=0, folds=5, seed=0, epoch=1, created="now",
    )  # fmt: skip
    return Header(model="m", config={}, plan={}, labels=KITS19_LABELS, provenance=made)
