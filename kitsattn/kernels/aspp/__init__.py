"""Atrous spatial pyramid pooling: what `blocks.aspp` calls."""

from kitsattn.kernels.aspp.reference import BatchNormParameters, BatchStatistics, aspp

__all__ = ["BatchNormParameters", "BatchStatistics", "aspp"]
