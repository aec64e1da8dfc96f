"""A number in a configuration means a CPU that the process may use."""

import os

import pytest

from rollout_workers.cores import allowed


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
