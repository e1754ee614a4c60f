"""The registered networks; importing this package registers every one of them by name."""

from kitsattn.models import attention_deeplab
from kitsattn.models.registry import ModelEntry, build_model, model_entry, model_names, register_model

__all__ = ["ModelEntry", "attention_deeplab", "build_model", "model_entry", "model_names", "register_model"]
