"""Prediction of many cases: the next one is read and the last one written while the networks are at work on one."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial

from kitsattn.errors import KitsattnError
from kitsattn.jobs import Progress, silent, unforeseen
from kitsattn.predict.case import DEFAULT_RULES, Prediction, predict_scan, read_case, write_case
from kitsattn.predict.cases import PredictionCase
from kitsattn.predict.infer import Ensemble, Inference
from kitsattn.predict.postprocess import Postprocessing
from kitsattn.volume.volume import Volume


def predict_cases(
    ensemble: Ensemble,
    cases: Sequence[PredictionCase],
    inference: Inference | None = None,
    *,
    rules: Postprocessing | None = DEFAULT_RULES,
    overwrite: bool = False,
    progress: Progress = silent,
) -> list[Prediction | KitsattnError]:
    """Predict cases, whatever becomes of some of them. Three scans are held at most.

    Args:
        ensemble: The networks.
        cases: What to read and write.
        inference: How the networks are run.
        rules: Of post-processing, see `write_case`.
        overwrite: Whether existing targets may be replaced.
        progress: Called with the cases done, if there are several, and with the slices done of each.

    Returns:
        For each case, in their order, what was predicted, or the error it failed with.
    """

    def predict(case: PredictionCase, reading: Future[Volume]) -> Callable[[], Prediction]:
        scan = reading.result()
        predicted = predict_scan(ensemble, case, scan, inference, progress=progress)
        return partial(write_case, ensemble, case, scan, predicted, rules=rules, overwrite=overwrite)

    written: list[Future[Prediction]] = []
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        reading = [reader.submit(read_case, case, overwrite=overwrite) for case in cases[:1]]
        for number, case in enumerate(cases):
            if len(cases) > 1:
                progress("cases", number, len(cases))
            (scan,) = reading
            reading = [reader.submit(read_case, case, overwrite=overwrite) for case in cases[number + 1 : number + 2]]
            try:
                write = predict(case, scan)
            except Exception as error:  # noqa: BLE001 - any: it costs this case
                written.append(Future())
                written[-1].set_exception(error)
            else:
                wait(written[-1:])
                written.append(writer.submit(write))
    if len(cases) > 1:
        progress("cases", len(cases), len(cases))
    return [_outcome(case, future) for case, future in zip(cases, written, strict=True)]


def _outcome(case: PredictionCase, written: Future[Prediction]) -> Prediction | KitsattnError:
    try:
        return written.result()
    except KitsattnError as error:
        return error
    except Exception as error:  # noqa: BLE001 - see above
        return unforeseen(case.name, error)
