"""Synthetic abdominal CT: `paint` is what others call, `patient` the recipe, the rest paints its parts."""
