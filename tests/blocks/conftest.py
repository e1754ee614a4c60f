"""What tests of blocks share."""

from collections.abc import Callable

import pytest
from torch import nn


@pytest.fixture
def trained_alike() -> Callable[[nn.Module], nn.Module]:
    """Return a network in evaluation, whose statistics and normalisations are not those of a new one."""

    def change(model: nn.Module) -> nn.Module:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2.0)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.1)
        return model.eval()

    return change
