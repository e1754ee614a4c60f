"""What every output says of its limits, in one wording."""

RESEARCH_NOTICE = "Research use only, not a medical device."
SYNTHETIC_SCORES_NOTICE = "SYNTHETIC: phantoms, not patients. The numbers say nothing about clinical accuracy."
SYNTHETIC_MODEL_NOTICE = (
    "SYNTHETIC: made by a model trained on phantoms. It shows that the pipeline runs, not what is in the scan."
)
