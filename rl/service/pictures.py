"""Curves as SVG, kept until the run has something new to show."""

import hashlib
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rl import curves, series
from rl.ledger import Reader

_RARELY = 10.0
"""Seconds. A picture takes half a second of a core, which the run that is watched can use."""
_KEPT = 32
_FILES = ("report.json", "eval/before.jsonl", "eval/after.jsonl")


@dataclass(frozen=True, slots=True)
class _Drawn:
    edition: str
    svg: str


class Pictures:
    """Used from several threads; draws one picture at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._editions: dict[Path, tuple[str, float]] = {}
        self._drawn: OrderedDict[tuple[Path, bool], _Drawn] = OrderedDict()

    def edition(self, run: Path) -> str:
        """A name for what the picture shows now: it changes with the last step and the evaluations, but rarely."""
        fresh, now = _edition(run), time.monotonic()
        with self._lock:
            held = self._editions.get(run)
            if held is None or (held[0] != fresh and now - held[1] >= _RARELY):
                held = self._editions[run] = (fresh, now)
            return held[0]

    def svg(self, run: Path, *, narrow: bool) -> str:
        """The present edition. Raises LedgerError."""
        edition = self.edition(run)
        with self._lock:
            held = self._drawn.pop((run, narrow), None)
            if held is None or held.edition != edition:
                held = _Drawn(edition, curves.svg(curves.figure(series.gather(run), narrow=narrow)))
            self._drawn[run, narrow] = held
            while len(self._drawn) > _KEPT:
                self._drawn.popitem(last=False)
            return held.svg


def _edition(run: Path) -> str:
    with Reader(run) as reader:
        steps = reader.steps()
    seen: list[object] = [(steps[-1].lineage, steps[-1].step, steps[-1].at)] if steps else []
    for name in _FILES:
        with suppress(OSError):
            seen.append((name, (run / name).stat().st_mtime_ns))
    return hashlib.sha256(repr(seen).encode()).hexdigest()[:16]
