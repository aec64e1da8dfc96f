"""A number in a configuration means a CPU that the process may use."""

import os
import threading

import pytest

from rollout_workers.cores import allowed, left


@pytest.mark.parametrize(
    ("usable", "numbers", "expected"),
    [
        ({0, 1}, [0], [0]),
        ({0, 1}, [1], [1]),
        ({4, 5}, [0, 1], [4, 5]),
        ({7}, [0, 1], [7]),
        ({3, 9, 11}, [4], [9]),
    ],
)
def test_cpus_are_counted_among_the_usable(
    monkeypatch: pytest.MonkeyPatch, usable: set[int], numbers: list[int], expected: list[int]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: usable)
    assert allowed(numbers) == expected


def test_every_thread_leaves_them_and_comes_back() -> None:
    usable, end = os.sched_getaffinity(0), threading.Event()
    if len(usable) < 2:
        pytest.skip("this process may use one CPU, which it cannot leave")
    thread = threading.Thread(target=end.wait)
    thread.start()

    def everywhere() -> list[set[int]]:
        return [os.sched_getaffinity(one) for one in (0, thread.native_id or 0)]

    try:
        with left([0]):
            assert everywhere() == [usable - {min(usable)}] * 2
        assert everywhere() == [usable] * 2
        with left(range(len(usable))):
            assert everywhere() == [usable] * 2, "there are no others"
    finally:
        end.set()
        thread.join()
