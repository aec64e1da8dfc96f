"""Packed rows see what they would see alone: against transformers' own attention, forwards and backwards."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

from rl.learner import model
from rl.learner.packing import Row, pack, row
from rollout_workers.trajectory import Completion, Context, Trajectory

WINDOW = 8
TEMPERATURE = 0.7
LENGTHS = [[1], [2], [1, 1, 1], [5, 3, 1], [7], [8], [9], [16, 16], [17, 1, 40], [8, 9, 7, 1, 33, 2], [33, 32, 5]]
brief = settings(max_examples=15)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights large enough that attention is far from uniform."""
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny", sliding_window=WINDOW, initializer_range=0.3, seed=5)


@cache
def packed_model(path: Path) -> torch.nn.Module:
    return model.load(str(path), dtype="float32", device="cpu")


@cache
def reference_model(path: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa")  # type: ignore[no-any-return]


def rows_of(lengths: list[int], seed: int = 0) -> list[Row]:
    """Longest first, which is the order they are packed in."""
    random = np.random.default_rng(seed)
    ordered = sorted(lengths, reverse=True)
    return [sampled(random.integers(0, 280, size).tolist()) for size in ordered]


def sampled(tokens: list[int]) -> Row:
    """All but the first by the policy."""
    first, rest = Context(tuple(tokens[:1])), tuple(tokens[1:])
    return row(Trajectory((first, Completion(rest, (0.0,) * len(rest), 0)) if rest else (first,)), 1.0)


def packed(path: Path, rows: list[Row]) -> list[Tensor]:
    """Log-probabilities of every row, its first token left out."""
    (batch,) = pack(rows, 10_000)
    assert batch.row_lengths == tuple(len(one.tokens) for one in rows)
    logp = model.forward(packed_model(path), batch, TEMPERATURE).logp
    return [part[1:] for part in logp.split(batch.row_lengths)]


def alone(path: Path, one: Row) -> Tensor:
    tokens = torch.from_numpy(one.tokens)
    logits = reference_model(path)(input_ids=tokens[None], use_cache=False).logits[0, :-1]
    scores = torch.log_softmax(logits.float() / TEMPERATURE, -1)
    return scores.gather(-1, tokens[1:, None]).squeeze(-1)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_log_probabilities_are_those_of_each_row_alone(path: Path, lengths: list[int]) -> None:
    rows = rows_of(lengths)
    with torch.no_grad():
        for found, one in zip(packed(path, rows), rows, strict=True):
            torch.testing.assert_close(found, alone(path, one), atol=1e-5, rtol=1e-5)


@brief
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_log_probabilities_of_any_rows(path: Path, lengths: list[int], seed: int) -> None:
    rows = rows_of(lengths, seed)
    with torch.no_grad():
        for found, one in zip(packed(path, rows), rows, strict=True):
            torch.testing.assert_close(found, alone(path, one), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("lengths", [[5, 3, 1], [17, 1, 40], [8, 9, 7, 33, 2]], ids=str)
def test_gradients_are_those_of_the_rows_alone(path: Path, lengths: list[int]) -> None:
    rows = rows_of(lengths)
    weights = [torch.linspace(-1, 1, len(one.tokens) - 1) for one in rows]
    for side in (packed_model(path), reference_model(path)):
        side.zero_grad(set_to_none=True)
    torch.stack([(w * logp).sum() for w, logp in zip(weights, packed(path, rows), strict=True)]).sum().backward()
    torch.stack([(w * alone(path, one)).sum() for w, one in zip(weights, rows, strict=True)]).sum().backward()
    expected = dict(reference_model(path).named_parameters())
    scale = max(one.grad.abs().max() for one in expected.values())
    for name, parameter in packed_model(path).named_parameters():
        gap = (parameter.grad - expected[name].grad).abs().max()
        assert gap <= 1e-5 * scale, f"{name}: {gap} of {scale}"


@pytest.mark.parametrize("lengths", [[9, 8, 7, 6], [33, 17, 16, 1]], ids=str)
def test_no_row_sees_another(path: Path, lengths: list[int]) -> None:
    rows = rows_of(lengths)
    with torch.no_grad():
        before = packed(path, rows)
        for changed in range(len(rows)):
            others = [*rows[:changed], rows_of(lengths, seed=1)[changed], *rows[changed + 1 :]]
            after = packed(path, others)
            for index in set(range(len(rows))) - {changed}:
                torch.testing.assert_close(after[index], before[index], atol=1e-6, rtol=0)
            if len(rows[changed].tokens) > 1:
                assert (after[changed] - before[changed]).abs().max() > 0.01


def test_the_entropy_is_that_of_the_distribution(path: Path) -> None:
    (one,) = rows_of([20])
    (batch,) = pack([one], 64)
    with torch.no_grad():
        found = model.forward(packed_model(path), batch, TEMPERATURE).entropy[1:]
        logits = reference_model(path)(input_ids=torch.from_numpy(one.tokens)[None]).logits[0, :-1] / TEMPERATURE
    torch.testing.assert_close(found, torch.distributions.Categorical(logits=logits).entropy(), atol=1e-5, rtol=0)
