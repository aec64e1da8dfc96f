"""Which task is drawn when: pools, mixtures, and a resumed run."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import count, islice

import pytest
from fakes import task_of
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rl.tasks.generated import GeneratedSource
from rl.tasks.stream import (
    AGAIN,
    FilePool,
    GeneratedPool,
    MixtureStage,
    Pool,
    SoftTokens,
    interest,
    softened,
    stage_at,
    stream,
)
from verifiers.task import Task

MATH = [task_of(f"m{i}") for i in range(7)]
CODE = [task_of(f"c{i}", domain="code", verifier="code") for i in range(5)]
EVEN = (MixtureStage(weights={"math": 1, "code": 1, "trace": 2}),)


def pools(seed: int = 0) -> list[Pool]:
    """Two finite ones, and two generators that share a domain."""
    traces = [GeneratedSource(generator="trace", difficulty=difficulty, seed=seed) for difficulty in (1, 2)]
    return [FilePool("math", MATH, seed), FilePool("code", CODE, seed), *map(GeneratedPool, traces)]


def drawn(
    amount: int,
    of: Sequence[Pool],
    mixture: Sequence[MixtureStage] = (),
    seed: int = 0,
    counts: Mapping[str, int] | None = None,
    step: Callable[[], int] = lambda: 0,
) -> list[Task]:
    return list(islice(stream(of, mixture, seed, counts or {}, step), amount))


def ids(tasks: Sequence[Task]) -> list[str]:
    return [task.id for task in tasks]


def test_every_file_task_once_an_epoch_in_another_order() -> None:
    found = ids(drawn(21, [FilePool("", MATH, 0)]))
    epochs = [found[start : start + 7] for start in (0, 7, 14)]
    assert all(sorted(epoch) == ids(MATH) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3


@given(seed=st.integers(0, 5), amount=st.integers(1, 60))
def test_no_file_task_is_drawn_twice_before_all_are_once(seed: int, amount: int) -> None:
    times = Counter(ids(drawn(amount, pools(seed), EVEN, seed)))
    for tasks in (MATH, CODE):
        seen = [times[task.id] for task in tasks]
        assert max(seen) - min(seen) <= 1


def test_a_generator_is_drawn_in_its_order_and_never_twice_the_same() -> None:
    source = GeneratedSource(generator="math", difficulty=1)
    found = drawn(30, [GeneratedPool(source)])
    assert found == [source.task(index) for index in range(30)]
    assert len(set(ids(found))) == 30


def test_the_seed_makes_the_order() -> None:
    assert ids(drawn(30, pools(1), EVEN, 1)) == ids(drawn(30, pools(1), EVEN, 1))
    assert ids(drawn(30, pools(1), EVEN, 1)) != ids(drawn(30, pools(2), EVEN, 2))


def test_a_pool_gives_any_place_at_any_time() -> None:
    one, other = FilePool("", MATH, 3), FilePool("", MATH, 3)
    forward = [one.task(number) for number in range(21)]
    assert [other.task(number) for number in reversed(range(21))] == forward[::-1]


@given(skip=st.integers(0, 40), seed=st.integers(0, 3))
def test_a_resumed_run_goes_on_where_it_was(skip: int, seed: int) -> None:
    whole = ids(drawn(skip + 10, pools(seed), EVEN, seed))
    assert ids(drawn(10, pools(seed), EVEN, seed, Counter(whole[:skip]))) == whole[skip:]


def test_a_resumed_run_goes_on_in_the_stage_it_was_in() -> None:
    mixture = (MixtureStage(weights={"math": 1}), MixtureStage(from_step=3, weights={"code": 1}))
    steps = count()
    whole = ids(drawn(6, pools(), mixture, step=lambda: next(steps)))
    assert [name[0] for name in whole] == list("mmmccc")
    later = count(4)
    assert ids(drawn(2, pools(), mixture, counts=Counter(whole[:4]), step=lambda: next(later))) == whole[4:]


def test_counts_of_others_are_none_of_a_pools() -> None:
    counts = {"m0": 2, "m6": 1, "x": 5, "trace-1-train-0/7": 3, "trace-1-train-1/7": 1, "trace-1-held_out-0/2": 1}
    assert [pool.drawn(counts) for pool in pools()] == [3, 0, 3, 0]


def test_the_mixture_weighs_domains_and_not_pools() -> None:
    found = Counter(task.domain for task in drawn(4000, pools(), EVEN))
    assert found["trace"] / 4000 == pytest.approx(0.5, abs=0.03), "two pools share its weight"
    assert found["math"] / 4000 == pytest.approx(0.25, abs=0.03)
    assert found["code"] / 4000 == pytest.approx(0.25, abs=0.03)
    levels = Counter(task.id[:7] for task in drawn(2000, pools(), EVEN) if task.domain == "trace")
    assert min(levels.values()) / sum(levels.values()) == pytest.approx(0.5, abs=0.06)


def test_without_a_mixture_all_domains_are_alike() -> None:
    found = Counter(task.domain for task in drawn(3000, pools()))
    assert all(times / 3000 == pytest.approx(1 / 3, abs=0.04) for times in found.values())


def test_the_mixture_follows_the_step_as_it_goes_on() -> None:
    mixture = (MixtureStage(weights={"math": 1}), MixtureStage(from_step=10, weights={"code": 2, "trace": 0}))
    now = [0]
    order = stream(pools(), mixture, 0, {}, lambda: now[0])
    domains = []
    for step in (0, 9, 10, 11, 500):
        now[0] = step
        domains.append({task.domain for task in islice(order, 20)})
    assert domains == [{"math"}, {"math"}, {"code"}, {"code"}, {"code"}]


def test_the_last_stage_that_has_begun_holds() -> None:
    mixture = (MixtureStage(weights={"math": 1}), MixtureStage(from_step=10, weights={"code": 1}))
    assert [stage_at(mixture, step) for step in (0, 9, 10, 99)] == [mixture[0]] * 2 + [mixture[1]] * 2
    assert stage_at((), 3) is None


def test_tasks_that_are_solved_too_often_or_never_are_hardly_drawn_and_harder_ones_more_often_from_a_stage_on() -> None:
    rates = {"m0": 0.0, "m1": 0.1, "m2": 0.4, "m3": 0.7, "m4": 0.9, "m5": 1.0}
    mixture = (MixtureStage(weights={"math": 1}), MixtureStage(from_step=5, weights={"math": 1}, solve_rate=(0.1, 0.7)))
    now = [0]
    order = stream([FilePool("math", MATH, 0)], mixture, 0, {}, lambda: now[0], rates.get)
    assert sorted(ids(list(islice(order, 7)))) == ids(MATH)
    now[0] = 5
    found = Counter(ids(list(islice(order, 4000))))
    share = {name: times / found["m6"] for name, times in found.items()}  # m6 was never tried
    expected = {"m0": 0.05, "m1": 1.0, "m2": 0.75, "m3": 0.5, "m4": 0.05, "m5": 0.05, "m6": 1.0}
    assert share == pytest.approx(expected, abs=0.08)


def test_the_mixture_stays_what_it_is_where_many_tasks_of_a_domain_are_left_out() -> None:
    rates = dict.fromkeys(ids(MATH[1:]), 1.0)
    mixture = (MixtureStage(weights={"math": 1, "code": 1}, solve_rate=(0.1, 0.7)),)
    found = Counter(task.domain for task in islice(stream(pools(), mixture, 0, {}, lambda: 0, rates.get), 2000))
    assert found["math"] / 2000 == pytest.approx(0.5, abs=0.05)


def test_where_all_are_left_out_they_are_drawn_all_the_same() -> None:
    mixture = (MixtureStage(weights={"math": 1}, solve_rate=(0.1, 0.7)),)
    found = Counter(
        ids(list(islice(stream([FilePool("math", MATH, 0)], mixture, 0, {}, lambda: 0, lambda _: 1.0), 400)))
    )
    assert found.keys() == set(ids(MATH))


def test_a_range_of_one_rate() -> None:
    assert [interest(rate, 0.5, 0.5) for rate in (None, 0.5, 0.6)] == [1.0, 1.0, AGAIN]


@pytest.mark.parametrize("rates", [(0.7, 0.1), (-0.1, 0.5), (0.5, 1.1)])
def test_a_solve_rate_that_is_no_range(rates: tuple[float, float]) -> None:
    with pytest.raises(ValidationError, match="from one share to another"):
        MixtureStage(weights={"math": 1}, solve_rate=rates)


@pytest.mark.parametrize(
    "weights", [{}, {"math": 0}, {"math": -1, "code": 3}, {"math": math.inf}, {"math": math.nan, "code": 1}]
)
def test_a_stage_that_draws_nothing_is_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="one must be positive"):
        MixtureStage(weights=weights)


def test_a_pool_names_its_verifiers() -> None:
    assert [set(pool.verifiers) for pool in pools()] == [{"math"}, {"code"}, {"trace"}, {"trace"}]


def test_a_length_limit_grows_with_the_steps() -> None:
    now, schedule = [0], SoftTokens(first=100, last=300, steps=10)
    order = softened(iter(MATH), schedule, lambda: now[0])
    seen = []
    for now[0] in (0, 5, 10, 99):
        seen.append(next(order).limits.soft_tokens)
    assert seen == [100, 200, 300, 300]
    assert next(softened(iter(MATH), None, lambda: 0)) is MATH[0]
