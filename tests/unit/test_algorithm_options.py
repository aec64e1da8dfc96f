"""The losses beyond CWM's: against slow references in float64, and by what they come to in special cases."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from rl.algorithm.losses import cispo, clipped_surrogate, decoupled, dppo_tv, gspo, sequences
from rl.config import AlgorithmConfig
from rl.learner.objective import Objective

LOW, HIGH, NORM, CAP, FLOOR, APART = 0.2, 0.25, 8.0, 2.0, 0.5, 0.2
TOKEN = st.tuples(*[st.floats(-4, -1 / 128, width=32)] * 3, st.floats(-2, 2, width=32), st.booleans())
TOKENS = st.lists(TOKEN, min_size=1, max_size=24)
Columns = tuple[Tensor, ...]


def tensors(tokens: list[Any]) -> Columns:
    """logp, proximal, behaviour, advantage, mask."""
    return tuple(torch.tensor(column) for column in zip(*tokens, strict=True))


def weight(correction: str, w: float) -> float:
    match correction:
        case "tis":
            return min(w, CAP)
        case "mis":
            return w if w <= CAP else 0.0
        case "icepop":
            return w if FLOOR <= w <= CAP else 0.0
    return w


def by_hand(loss: Callable[..., float], columns: Columns) -> float:
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return -sum(loss(*row[:-1]) for row in rows if row[-1]) / NORM


def with_gradient(loss: Callable[[Tensor], Tensor], logp: Tensor) -> tuple[float, Tensor]:
    leaf = logp.clone().requires_grad_()
    value = loss(leaf)
    value.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return value.item(), leaf.grad


@pytest.mark.parametrize("correction", ["icepop", "mis"])
def test_a_weight_that_overflows_is_masked_too(correction: Any) -> None:
    logp = torch.tensor([-1.0, -1.0], requires_grad=True)
    behaviour, ones = torch.tensor([-120.0, -1.0]), torch.ones(2)
    bounds: Any = {"correction": correction, "cap": CAP, "floor": FLOOR, "low": LOW, "high": HIGH, "norm": 1.0}
    decoupled(logp, logp.detach(), behaviour, ones, ones, **bounds).backward()  # type: ignore[no-untyped-call]
    assert logp.grad is not None and logp.grad.tolist() == [0.0, -1.0]


def test_dppo_gives_no_gradient_to_a_ratio_that_overflows() -> None:
    logp = torch.tensor([-0.01, -1.0], requires_grad=True)
    behaviour, ones = torch.tensor([-120.0, -1.0]), torch.ones(2)
    dppo_tv(logp, behaviour, ones, ones, divergence=APART, norm=1.0).backward()  # type: ignore[no-untyped-call]
    assert logp.grad is not None and logp.grad.tolist() == [0.0, -1.0]


@pytest.mark.parametrize("correction", ["decoupled", "tis", "icepop", "mis"])
@given(TOKENS)
def test_decoupled(correction: Any, tokens: list[Any]) -> None:
    columns = tensors(tokens)
    bounds: Any = {"correction": correction, "cap": CAP, "floor": FLOOR, "low": LOW, "high": HIGH, "norm": NORM}

    def slow(logp: float, proximal: float, behaviour: float, advantage: float) -> float:
        u, w = math.exp(logp - proximal), math.exp(proximal - behaviour)
        return weight(correction, w) * min(u * advantage, min(max(u, 1 - LOW), 1 + HIGH) * advantage)

    assert decoupled(*columns, **bounds).item() == pytest.approx(by_hand(slow, columns), rel=1e-3, abs=1e-4)


@given(TOKENS)
def test_decoupled_at_the_sampler_is_the_clipped_surrogate(tokens: list[Any]) -> None:
    logp, _, behaviour, advantage, mask = tensors(tokens)
    bounds: Any = {"low": LOW, "high": HIGH, "norm": NORM}
    same = decoupled(
        logp, behaviour, behaviour, advantage, mask, correction="decoupled", cap=CAP, floor=FLOOR, **bounds
    )
    torch.testing.assert_close(same, clipped_surrogate(logp, behaviour, advantage, mask, **bounds))


@given(TOKENS)
def test_cispo(tokens: list[Any]) -> None:
    logp, _, behaviour, advantage, mask = tensors(tokens)

    def slow(logp: float, behaviour: float, advantage: float) -> float:
        return min(math.exp(logp - behaviour), 1 + HIGH) * advantage * logp

    value, gradient = with_gradient(lambda leaf: cispo(leaf, behaviour, advantage, mask, high=HIGH, norm=NORM), logp)
    assert value == pytest.approx(by_hand(slow, (logp, behaviour, advantage, mask)), rel=1e-3, abs=1e-4)
    weights = (logp - behaviour).exp().clamp(max=1 + HIGH)
    torch.testing.assert_close(gradient, -torch.where(mask, weights * advantage, 0.0) / NORM)


@given(TOKENS)
def test_dppo_tv(tokens: list[Any]) -> None:
    logp, _, behaviour, advantage, mask = tensors(tokens)

    def slow(logp: float, behaviour: float, advantage: float) -> float:
        away = (advantage > 0 and logp > behaviour) or (advantage < 0 and logp < behaviour)
        apart = abs(np.float32(math.exp(logp)) - np.float32(math.exp(behaviour)))
        return 0.0 if away and apart > APART else math.exp(logp - behaviour) * advantage

    apart = (logp.exp() - behaviour.exp()).abs()
    if bool(((apart - APART).abs() < 1e-5).any()):
        return  # rounding decides
    value = dppo_tv(logp, behaviour, advantage, mask, divergence=APART, norm=NORM).item()
    assert value == pytest.approx(by_hand(slow, (logp, behaviour, advantage, mask)), rel=1e-3, abs=1e-4)


@given(TOKENS, st.integers(1, 23), st.integers(0, 24))
def test_gspo_in_any_pieces(tokens: list[Any], row: int, piece: int) -> None:
    """Two rows; the loss is asked for in two pieces that need not be the rows."""
    logp, _, behaviour, advantage, mask = tensors(tokens)
    row = min(row, len(logp))
    lengths = [row, len(logp) - row] if row < len(logp) else [row]
    advantage = torch.cat([part[:1].expand(len(part)) for part in advantage.split(lengths)])
    log_ratio, sizes = sequences(logp, behaviour, mask, lengths)
    bounds: Any = {"low": LOW, "high": HIGH, "norm": NORM}

    def both(leaf: Tensor) -> Tensor:
        parts = [slice(None, piece), slice(piece, None)]
        return torch.stack(
            [gspo(leaf[p], log_ratio[p], sizes[p], advantage[p], mask[p], **bounds) for p in parts]
        ).sum()

    def whole(leaf: Tensor) -> Tensor:
        total = leaf.new_zeros((), dtype=torch.float64)
        start = 0
        for length in lengths:
            p = slice(start, start + length)
            start += length
            if mask[p].any():
                s = (leaf[p].double() - behaviour[p].double())[mask[p]].mean().exp()
                a = advantage[p][0].double()
                total = total - torch.minimum(s * a, s.clamp(1 - LOW, 1 + HIGH) * a) / NORM
        return total if total.requires_grad else total + 0 * leaf.sum()

    (value, gradient), (wanted, reference) = with_gradient(both, logp), with_gradient(whole, logp)
    assert value == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    s = log_ratio.exp()
    if not bool((((s - 1 + LOW).abs() < 1e-4) | ((s - 1 - HIGH).abs() < 1e-4)).any()):  # where rounding decides
        torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-5)


OPTIONS: list[dict[str, Any]] = [
    {},
    *({"loss": name} for name in ("gspo", "cispo", "dppo_tv")),
    *({"correction": name} for name in ("decoupled", "tis", "icepop", "mis")),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_on_policy_every_option_is_the_policy_gradient(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    logp, advantage, mask = -torch.rand(10), torch.randn(10), torch.rand(10) < 0.7
    objective = Objective(AlgorithmConfig.model_validate({"norm": NORM, **options}))
    loss, first = objective.on(logp.clone(), advantage, mask, [10])
    if first is not None:
        first(logp)
    _, gradient = with_gradient(lambda leaf: loss(leaf, torch.arange(10)), logp)
    expected = -torch.where(mask, advantage, 0.0) / NORM
    if options.get("loss") == "gspo":
        expected = expected / mask.sum()
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_nothing_flows_from_context_not_even_what_is_no_number(options: dict[str, Any]) -> None:
    logp, behaviour = torch.tensor([-1.0, math.nan, -2.0]), torch.tensor([-1.1, math.nan, -1.9])
    mask = torch.tensor([True, False, True])
    objective = Objective(AlgorithmConfig.model_validate(options))
    loss, first = objective.on(behaviour, torch.tensor([1.0, math.nan, -1.0]), mask, [3])
    if first is not None:
        first(logp)
    value, gradient = with_gradient(lambda leaf: loss(leaf, torch.arange(3)), logp)
    assert math.isfinite(value)
    assert gradient[1] == 0 and bool(gradient.isfinite().all())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss": "gspo", "correction": "tis"}, "goes with loss = 'clip'"),
        ({"correction": "icepop", "correction_floor": 3.0}, "below correction_cap"),
        ({"loss": "ppo"}, "'clip', 'gspo', 'cispo' or 'dppo_tv'"),
    ],
)
def test_options_that_exclude_each_other(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        AlgorithmConfig.model_validate(options)
