"""What is read of a ledger again and again, kept: of a run's steps only the new ones are read."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rl.ledger import Reader, Step
from rl.service.runs import flat_stats

_KEPT = 32
Row = Mapping[str, float | None]


@dataclass
class _Held:
    of: tuple[float, int]
    """When the run was made, and its lineage."""
    steps: list[Step] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    mixed: tuple[int, float] = (-1, 0.0)
    """The step after which the share of several versions was counted, and that share."""


class Histories:
    """Of the runs that were looked at last. Used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[Path, _Held] = OrderedDict()

    def steps(self, reader: Reader) -> Sequence[Step]:
        """The steps that count, 1 to the last."""
        with self._lock:
            return tuple(self._read(reader).steps)

    def rows(self, reader: Reader) -> Sequence[tuple[Step, Row]]:
        """The steps that count, each with its numbers by dotted name."""
        with self._lock:
            held = self._read(reader)
            held.rows += map(flat_stats, held.steps[len(held.rows) :])
            return tuple(zip(held.steps, held.rows, strict=True))

    def multi_version_fraction(self, reader: Reader) -> float:
        """As the reader has it, counted anew once a step."""
        with self._lock:
            held, step = self._of(reader), reader.step
            if held.mixed[0] != step:
                held.mixed = step, reader.multi_version_fraction()
            return held.mixed[1]

    def _read(self, reader: Reader) -> _Held:
        held = self._of(reader)
        held.steps += reader.steps(after=held.steps[-1].step if held.steps else 0)
        return held

    def _of(self, reader: Reader) -> _Held:
        """A rollback, or another ledger in its place, begins anew."""
        of = reader.made_at, reader.lineage  # a file that was made again may have the number of the one before
        held = self._held.pop(reader.path, None)
        if held is None or held.of != of:
            held = _Held(of)
        self._held[reader.path] = held
        while len(self._held) > _KEPT:
            self._held.popitem(last=False)
        return held
