"""Atrous spatial pyramid pooling: what `blocks.aspp` calls."""

from kitsattn.kernels.aspp.operation import aspp
from kitsattn.kernels.aspp.statistics import BatchNormParameters, BatchStatistics

__all__ = ["BatchNormParameters", "BatchStatistics", "aspp"]
