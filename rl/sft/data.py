"""Conversations to batches of rows, in an order that the seed alone decides, so that a stage can go on anywhere."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rl.learner.packing import Row
from rollout_workers.renderer import Renderer
from verifiers.errors import UserError
from verifiers.task import Message

Conversations = Callable[[int], Sequence[Message]]
"""An endless stream: the same index gives the same conversation at any time."""

CHUNK = 256
"""Conversations that are shuffled together, so that batches mix what the stream brings in blocks."""


class NothingFits(UserError):
    """No conversation is short enough."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place between two batches."""

    chunk: int = 0
    batch: int = 0
    """Batches of this chunk that are used."""
    left_out: int = 0
    """Conversations of the chunks before this one that were too long."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one optimiser step."""

    rows: tuple[Row, ...]
    after: Cursor
    left_out: int
    """Conversations that were too long so far, those of this batch's chunk included."""


def batches(
    conversations: Conversations, renderer: Renderer, start: Cursor, *, context: int, tokens: int, seed: int
) -> Iterator[Batch]:
    """Endless batches from `start` on, each filled up to `tokens` tokens; a longer row is a batch of its own.

    Conversations of more than `context` tokens are left out. Raises NothingFits if that is a whole chunk.
    """
    chunk, used, before = start.chunk, start.batch, start.left_out
    while True:
        first = chunk * CHUNK
        rows = [demonstration_row(renderer, conversations(index)) for index in range(first, first + CHUNK)]
        fitting = [row for row in rows if len(row.tokens) <= context]
        if not fitting:
            raise NothingFits(
                f"{CHUNK} conversations in a row are longer than the context of {context} tokens, "
                f"the shortest {min(len(row.tokens) for row in rows)}: nothing is left to learn from"
            )
        left_out = before + len(rows) - len(fitting)
        random.Random(f"{seed}/{chunk}").shuffle(fitting)  # noqa: S311
        cut = _cut(fitting, tokens)
        for index in range(used, len(cut)):
            yield Batch(cut[index], Cursor(chunk, index + 1, before), left_out)
        chunk, used, before = chunk + 1, 0, left_out


def demonstration_row(renderer: Renderer, messages: Sequence[Message]) -> Row:
    """A conversation as the learner takes it; nothing in it was sampled, so its log-probabilities are 0."""
    tokens, mask = renderer.demonstration(messages)
    size = len(tokens)
    none = np.full(size, -1, np.int64)
    return Row(np.array(tokens, np.int64), np.array(mask, np.bool_), np.zeros(size, np.float32), none, 1.0)


def _cut(rows: Sequence[Row], tokens: int) -> list[tuple[Row, ...]]:
    """Cut a sequence of rows into the longest runs of at most `tokens` tokens."""
    runs: list[list[Row]] = []
    room = 0
    for row in rows:
        if not runs or len(row.tokens) > room:
            runs.append([])
            room = tokens
        runs[-1].append(row)
        room -= len(row.tokens)
    return [tuple(run) for run in runs]
