"""Training: folds, recipe, losses, schedule, and the loop that fits one fold."""
