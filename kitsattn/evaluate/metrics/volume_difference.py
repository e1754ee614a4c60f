"""Difference of volumes, with both volumes."""

from kitsattn.evaluate.metrics.metric import Metric, Value

PREDICTED = Value("predicted_ml", "predicted", "Predicted_ml", lambda pair: pair.overlap.predicted * pair.voxel_ml)
REFERENCE = Value("reference_ml", "reference", "Reference_ml", lambda pair: pair.overlap.reference * pair.voxel_ml)

VOLUME_DIFFERENCE = Metric(
    key="volume_difference_ml",
    command="volume",
    title="Volume difference",
    unit="ml",
    column="Difference_ml",
    digits=2,
    better="zero",
    order=40,
    help="Volume of each region in ml: predicted minus reference, with bias and limits of agreement (Bland-Altman).",
    describe=lambda _: "Volume differences are prediction minus reference.",
    parts=(PREDICTED, REFERENCE),
    compute=lambda pair: (pair.overlap.predicted - pair.overlap.reference) * pair.voxel_ml,
)
"""|P| - |R| in ml. `kitsattn.evaluate.agreement` makes bias and limits of agreement of it."""
