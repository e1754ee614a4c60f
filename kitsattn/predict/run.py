"""Prediction of many cases: the next one is read and the last one written while the networks are at work on one."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from kitsattn.errors import KitsattnError
from kitsattn.jobs import Progress, silent, unforeseen
from kitsattn.predict.case import DEFAULT_RULES, Prediction, predict_scan, read_case, recall_case, write_case
from kitsattn.predict.cases import PredictionCase
from kitsattn.predict.infer import Ensemble, Inference
from kitsattn.predict.postprocess import Postprocessing
from kitsattn.ranks import Ranks
from kitsattn.volume.volume import Volume

Result = TypeVar("Result")


def predict_cases(
    ensemble: Ensemble,
    cases: Sequence[PredictionCase],
    inference: Inference | None = None,
    *,
    locator: Ensemble | None = None,
    rules: Postprocessing | None = DEFAULT_RULES,
    overwrite: bool = False,
    first_scan: Callable[[], Volume] | None = None,
    progress: Progress = silent,
) -> list[Prediction | KitsattnError]:
    """Predict cases, whatever becomes of some of them. Three scans are held at most.

    Args:
        ensemble: The networks.
        cases: What to read and write.
        inference: How the networks are run.
        locator: Networks that find the kidneys first, see `predict_volume`.
        rules: Of post-processing, see `write_case`.
        overwrite: Whether existing targets may be replaced.
        first_scan: What `cases.read_ahead` gave for the first case, if its scan is being read already.
        progress: Called with the cases done, if there are several, and with the slices done of each.

    Returns:
        For each case, in their order, what was predicted, or the error it failed with.
    """

    def read(case: PredictionCase, scan: Callable[[], Volume] | None = None) -> Volume | KitsattnError:
        return attempt(case, lambda: read_case(case, overwrite=overwrite, scan=scan))

    def predict_and_write(case: PredictionCase, scan: Volume) -> Callable[[], Prediction | KitsattnError]:
        predicted = attempt(
            case, lambda: predict_scan(ensemble, case, scan, inference, locator=locator, progress=progress)
        )
        if isinstance(predicted, KitsattnError):
            return lambda: predicted
        return lambda: attempt(
            case, lambda: write_case(ensemble, case, scan, predicted, rules=rules, overwrite=overwrite)
        )

    results: list[Prediction | KitsattnError] = []
    writing: Future[Prediction | KitsattnError] | None = None
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        try:
            reading = [reader.submit(read, case, first_scan) for case in cases[:1]]
            for number, case in enumerate(cases):
                if len(cases) > 1:
                    progress("cases", number, len(cases))
                scan = reading.pop().result()
                reading += [reader.submit(read, case) for case in cases[number + 1 : number + 2]]
                write = (lambda error=scan: error) if isinstance(scan, KitsattnError) else predict_and_write(case, scan)
                if writing is not None:
                    results.append(writing.result())
                writing = writer.submit(write)
        except BaseException:
            reader.shutdown(cancel_futures=True)  # Ctrl-C need not wait for another scan
            raise
    if writing is not None:
        results.append(writing.result())
    if len(cases) > 1:
        progress("cases", len(cases), len(cases))
    return results


def predict_shared(
    ensemble: Ensemble,
    cases: Sequence[PredictionCase],
    inference: Inference | None = None,
    *,
    ranks: Ranks,
    locator: Ensemble | None = None,
    rules: Postprocessing | None = DEFAULT_RULES,
    overwrite: bool = False,
    first_scan: Callable[[], Volume] | None = None,
    progress: Progress = silent,
) -> dict[str, Prediction | KitsattnError]:
    """Predict cases in several processes, each of which does its share; see `predict_cases`.

    Returns:
        In every process, what was predicted of all cases by name, or the error that a case failed with.
    """
    own = predict_cases(
        ensemble,
        ranks.share(cases),
        inference,
        locator=locator,
        rules=rules,
        overwrite=overwrite,
        first_scan=first_scan,
        progress=progress,
    )
    return _join(cases, ranks.all_gather(own))


def recall_shared(
    ensemble: Ensemble, cases: Sequence[PredictionCase], ranks: Ranks
) -> dict[str, Prediction | KitsattnError]:
    """Read what was predicted of cases earlier, each process its share; see `recall_case`."""
    own = [attempt(case, partial(recall_case, ensemble, case)) for case in ranks.share(cases)]
    return _join(cases, ranks.all_gather(own))


def _join(cases: Sequence[PredictionCase], shares: Sequence[Sequence[Result]]) -> dict[str, Result]:
    """Return the results by name of the case, from the shares of all processes."""
    return {case.name: shares[number % len(shares)][number // len(shares)] for number, case in enumerate(cases)}


def attempt(case: PredictionCase, work: Callable[[], Result]) -> Result | KitsattnError:
    """Return what some work on a case gives, or the error it fails with: without traceback, which holds its arrays."""
    try:
        return work()
    except KitsattnError as error:
        return KitsattnError(str(error))
    except Exception as error:  # noqa: BLE001 - any: it costs this case
        return unforeseen(case.name, error)
