"""The order of tasks."""

from itertools import islice

from fakes import task_of
from hypothesis import given
from hypothesis import strategies as st

from rl.tasks.stream import stream

TASKS = [task_of(f"t{i}") for i in range(7)]


def drawn(count: int, seed: int = 0, skip: int = 0) -> list[str]:
    return [task.id for task in islice(stream(TASKS, seed, skip), count)]


def test_every_task_once_an_epoch_in_another_order() -> None:
    epochs = [drawn(21)[start : start + 7] for start in (0, 7, 14)]
    assert all(sorted(epoch) == [task.id for task in TASKS] for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3


def test_the_seed_makes_the_order() -> None:
    assert drawn(30, seed=1) == drawn(30, seed=1)
    assert drawn(30, seed=1) != drawn(30, seed=2)


@given(skip=st.integers(0, 40), seed=st.integers(0, 5))
def test_a_resumed_run_goes_on_where_it_was(skip: int, seed: int) -> None:
    assert drawn(10, seed, skip) == drawn(10 + skip, seed)[skip:]
