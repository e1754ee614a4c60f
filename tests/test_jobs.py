"""Work over cases."""

import os

from kitsattn.jobs import run_cases


def test_results_keep_the_order_and_progress_counts_them() -> None:
    """One worker runs in this process, and every finished case is reported."""
    seen = []
    results = run_cases(lambda value: (2 * value, os.getpid()), [3, 1, 2], progress=lambda *report: seen.append(report))
    assert [value for value, _ in results] == [6, 2, 4]
    assert {process for _, process in results} == {os.getpid()}
    assert seen == [("cases", done, 3) for done in (0, 1, 2, 3)]


def test_several_workers_give_the_same_results_from_other_processes() -> None:
    """The order does not depend on the number of workers."""
    results = run_cases(lambda value: (2 * value, os.getpid()), list(range(6)), workers=2)
    assert [value for value, _ in results] == [0, 2, 4, 6, 8, 10]
    assert os.getpid() not in {process for _, process in results}
