"""Scores: how well predicted label maps agree with reference label maps, per case and over a cohort."""
