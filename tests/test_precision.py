"""Device and number format."""

import pytest
import torch

from kitsattn.errors import KitsattnError
from kitsattn.precision import DeviceChoice, choose_device, choose_precision, mixed_precision


def test_a_device_that_is_not_there_is_refused_with_those_that_are() -> None:
    """The CPU is always there; asking for what is not names the choices."""
    assert choose_device("cpu") == torch.device("cpu")
    missing: DeviceChoice = "cuda" if torch.backends.mps.is_available() else "mps"
    with pytest.raises(KitsattnError, match=f"no {missing} device: use one of auto, .*cpu"):
        choose_device(missing)


def test_fp16_is_refused_on_a_cpu() -> None:
    """A CPU computes fp16 slowly and without need."""
    with pytest.raises(KitsattnError, match="use auto, bf16 or fp32"):
        choose_precision("fp16", torch.device("cpu"))


def test_what_is_asked_for_is_taken_and_auto_is_a_native_format() -> None:
    """On a CPU, auto is bf16 or fp32."""
    assert choose_precision("bf16", torch.device("cpu")) == "bf16"
    assert choose_precision("auto", torch.device("cpu")) in ("bf16", "fp32")


def test_mixed_precision_computes_products_in_the_format() -> None:
    """Matrix products come out in bf16 under bf16, in fp32 under fp32."""
    x = torch.ones(2, 2)
    with mixed_precision(torch.device("cpu"), "bf16"):
        assert (x @ x).dtype == torch.bfloat16
    with mixed_precision(torch.device("cpu"), "fp32"):
        assert (x @ x).dtype == torch.float32
