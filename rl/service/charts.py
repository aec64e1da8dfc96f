"""Curves as inline SVG: drawn by the server, coloured by the page's style sheet, readable without a script.

Numbers and colours only: a name that somebody chose goes through the template, which escapes it.
"""

import json
import math
import threading
from bisect import bisect
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from markupsafe import Markup, escape

from rl.ledger import Step
from rl.reports.pages import number, visible
from rl.reports.series import in_order, lags, mapping, spans

POINTS = 150
"""A line has so many at most; a point of a longer run is the mean of its steps."""
COLOURS = 8
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 400, 190, 46, 8, 8, 22
_SMOOTHED = 10
_KEPT = 16
Values = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Line:
    """A name and its values, one a point."""

    name: str
    values: Values
    colour: int = 0
    dashed: bool = False
    faint: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart: what `rl.service.charts` draws."""

    title: str
    unit: str
    x: tuple[int, ...]
    """Steps."""
    lines: tuple[Line, ...]
    zero: bool = True
    """The scale begins at zero."""
    smooth: bool = False
    """Lines are running means; the values themselves stand faint behind them."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A panel, drawn."""

    panel: Panel
    svg: Markup


class Gallery:
    """Pictures that were drawn last, by whatever they show. Used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[Hashable, list[Picture]] = OrderedDict()

    def get(self, shown: Hashable, draw_all: Callable[[], list[Picture]]) -> list[Picture]:
        """Draws them unless they are there."""
        with self._lock:
            if shown not in self._held:
                self._held[shown] = draw_all()
            self._held.move_to_end(shown)
            while len(self._held) > _KEPT:
                self._held.popitem(last=False)
            return self._held[shown]


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened at a step."""

    step: float
    kind: str
    """`checkpoint` or `fault`."""


def panels(steps: Sequence[Step], others: Mapping[str, Sequence[Step]]) -> list[Panel]:
    """A run's pictures; `others` are laid over them, dashed."""
    runs = {"": steps, **others}
    parts = {name: _parts(found) for name, found in runs.items()}
    overlapping = {name: _parts(found, before=1) for name, found in runs.items()}
    every = sorted({part[-1].step for found in parts.values() for part in found})
    return [
        _panel(parts, every, "Reward by domain", "mean", lambda part: _by_domain(part, "reward"), smooth=True),
        _panel(
            parts, every, "Pass rate by domain", "share solved", lambda part: _by_domain(part, "correct"), smooth=True
        ),
        _panel(parts, every, "Length", "sampled tokens an episode", lambda part: {"": _length(part)}),
        _panel(parts, every, "Entropy", "nats a token", lambda part: {"": _stat(part, "entropy")}),
        _panel(parts, every, "Mismatch of engine and learner", "KL, k3", lambda part: {"": _stat(part, "kl_k3")}),
        _panel(parts, every, "Clipped", "share of tokens", lambda part: {"": _stat(part, "clip_fraction")}),
        _panel(parts, every, "Gradient norm", "before clipping", lambda part: {"": _stat(part, "grad_norm")}),
        _panel(parts, every, "Lag", "versions behind", lambda part: {"mean": _lag(part), "most": _most(part)}),
        _panel(overlapping, every, "Throughput", "trained tokens a second", lambda part: {"": _speed(part)}),
    ]


def between(at: Sequence[float], moment: float, steps: Sequence[Step]) -> float:
    """Where a moment falls on the scale of steps; `at` are their times, in order."""
    place = bisect(at, moment)
    return steps[place - 1].step + 0.5 if place else float(steps[0].step) if steps else 0.0


def draw(panel: Panel, marks: Sequence[Mark] = ()) -> Markup:
    """An <svg>; its points stand in `data-points`, for the module that reads them out."""
    low, high = _range(panel)
    last = max(panel.x, default=1)
    first = min(panel.x, default=1)

    def x(step: float) -> float:
        return round(_LEFT + (step - first) / max(last - first, 1) * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(value: float) -> float:
        return round(_TOP + (high - value) / (high - low) * (_HEIGHT - _TOP - _BOTTOM), 1)

    parts = [_grid(low, high, y), _steps(first, last, x)]
    for mark in marks:
        if first <= mark.step <= last:
            at = x(mark.step)
            parts.append(f'<line class="mark {mark.kind}" x1="{at}" x2="{at}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
    for line in panel.lines:
        for drawn in _strokes(line) if panel.smooth and len(panel.x) >= _SMOOTHED else [line]:
            parts += _polylines(panel.x, drawn, x, y)
    points = {"x": panel.x, "at": [x(step) for step in panel.x], "lines": [_told(line) for line in panel.lines]}
    said = ", ".join(f"{one.name} {number(_last(one.values), '.3g')}".strip() for one in panel.lines[:COLOURS])
    label = escape(visible(f"{panel.title}, {panel.unit}; last: {said}"))
    # What goes in is numbers, our own words, and escaped text.
    return Markup(  # noqa: S704
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}" tabindex="0" '
        f'data-points="{escape(json.dumps(points, separators=(",", ":")))}">{"".join(parts)}</svg>'
    )


def spark(values: Sequence[float]) -> Markup:
    """A small line without a scale."""
    if len(values) < 2:
        return Markup("")
    low, high = min(values), max(values)
    step = 96 / (len(values) - 1)
    spread = (high - low) or 1.0
    points = " ".join(f"{2 + step * at:.1f},{21 - 18 * (value - low) / spread:.1f}" for at, value in enumerate(values))
    label = f"reward from {values[0]:+.2f} to {values[-1]:+.2f}"
    return Markup(  # noqa: S704 - numbers only
        f'<svg class="spark" viewBox="0 0 100 24" role="img" aria-label="{label}"><polyline points="{points}"/></svg>'
    )


def heat(logprob: float | None) -> int:
    """From 0, certain, to 5: a step a nat."""
    return 5 if logprob is None else min(5, max(0, math.floor(-logprob)))


def bars(rows: Sequence[tuple[str, float]]) -> list[tuple[str, float, float]]:
    """(name, value, share of the largest in per cent), for a <meter>-like bar."""
    most = max((value for _, value in rows), default=0.0) or 1.0
    return [(name, value, round(100 * value / most, 1)) for name, value in rows]


def _panel(
    parts: Mapping[str, Sequence[Sequence[Step]]],
    every: Sequence[int],
    title: str,
    unit: str,
    of: Callable[[Sequence[Step]], Mapping[str, float | None]],
    *,
    smooth: bool = False,
) -> Panel:
    lines = []
    names: list[str] = []
    for run, found in parts.items():
        rows = {part[-1].step: of(part) for part in found}
        for name in in_order({name for row in rows.values() for name in row}):
            if name not in names:
                names.append(name)
            values = tuple(rows.get(step, {}).get(name) for step in every)
            shown = ": ".join(word for word in (run, name) if word) or unit
            lines.append(Line(shown, values, names.index(name) % COLOURS, dashed=bool(run)))
    drawn = tuple(line for line in lines if any(value is not None for value in line.values))
    lowest = min((value for line in drawn for value in line.values if value is not None), default=0.0)
    return Panel(title, unit, tuple(every), drawn, lowest >= 0, smooth)


def _parts(steps: Sequence[Step], before: int = 0) -> list[Sequence[Step]]:
    """At most POINTS of them, each with so many steps more that stand before it."""
    size = max(1, -(-len(steps) // POINTS))
    return [steps[max(0, start - before) : start + size] for start in range(0, len(steps), size)]


def _by_domain(part: Sequence[Step], name: str) -> dict[str, float | None]:
    found: dict[str, list[float]] = {}
    for step in part:
        for domain, value in mapping(step.stats.get(name)).items():
            if isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(domain, []).append(value)
    return {domain: fmean(values) for domain, values in found.items()}


def _stat(part: Sequence[Step], name: str) -> float | None:
    return _mean(step.stats.get(name) for step in part)


def _length(part: Sequence[Step]) -> float | None:
    return _mean(step.sampled_tokens / step.episodes for step in part if step.episodes)


def _lag(part: Sequence[Step]) -> float | None:
    found = lags(part)
    tokens = sum(found.values())
    return sum(lag * count for lag, count in found.items()) / tokens if tokens else None


def _most(part: Sequence[Step]) -> float | None:
    found = [value for step in part if isinstance(value := step.stats.get("lag_max"), int | float)]
    return float(max(found)) if found else None


def _speed(part: Sequence[Step]) -> float | None:
    """Nothing of a first step, and where the learner fell back in between."""
    known = list(spans(part))
    seconds = sum(span for _, span in known)
    return sum(step.sampled_tokens for step, _ in known) / seconds if seconds > 0 else None


def _mean(values: Iterable[object]) -> float | None:
    known = [float(one) for one in values if isinstance(one, int | float) and math.isfinite(one)]
    return fmean(known) if known else None


def _last(values: Values) -> float | None:
    return next((value for value in reversed(values) if value is not None), None)


def _range(panel: Panel) -> tuple[float, float]:
    values = [value for line in panel.lines for value in line.values if value is not None]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if panel.zero:
        low = min(low, 0.0)
    if high - low < 1e-12:
        high = low + (abs(low) or 1.0)
    size = _tick(high - low)
    return math.floor(low / size + 1e-9) * size, math.ceil(high / size - 1e-9) * size


def _tick(spread: float) -> float:
    """A round distance of which some four fit."""
    power = 10.0 ** math.floor(math.log10(spread / 4))
    return next((power * one for one in (1, 2, 2.5, 5) if spread / (power * one) <= 5), power * 10)


def _grid(low: float, high: float, y: Callable[[float], float]) -> str:
    size = _tick(high - low)
    parts = []
    for count in range(round((high - low) / size) + 1):
        value = low + count * size
        at = y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{at + 4}" text-anchor="end">{_short(value, size)}</text>')
    return "".join(parts)


def _short(value: float, size: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.{max(0, -math.floor(math.log10(size) + 1e-9))}f}" if size >= 1e-4 else f"{value:.0e}"


def _steps(first: int, last: int, x: Callable[[float], float]) -> str:
    wanted = sorted({first, last, *(round(first + (last - first) * share) for share in (0.25, 0.5, 0.75))})
    return "".join(f'<text x="{x(step)}" y="{_HEIGHT - 6}" text-anchor="middle">{step}</text>' for step in wanted)


def _polylines(
    steps: Sequence[int], line: Line, x: Callable[[float], float], y: Callable[[float], float]
) -> Iterable[str]:
    """Stretches of what is known; a lone point is a dot."""
    style = f"line s{line.colour}{' dashed' if line.dashed else ''}{' faint' if line.faint else ''}"
    known = [(x(step), y(value)) for step, value in zip(steps, line.values, strict=True) if value is not None]
    if len(known) == 1:
        return [f'<circle class="{style}" cx="{known[0][0]}" cy="{known[0][1]}" r="2"/>']
    points = " ".join(f"{one},{other}" for one, other in known)
    return [f'<polyline class="{style}" points="{points}"/>'] if known else []


def _strokes(line: Line) -> list[Line]:
    """The values, faint, and their running mean on top; of a line that is laid over, the mean alone."""
    mean = replace(line, values=_smoothed(line.values))
    return [mean] if line.dashed else [replace(line, faint=True), mean]


def _smoothed(values: Values) -> Values:
    """Means over a window of an eighth of all points, centred on each; at both ends over what there is of it."""
    reach = max(1, len(values) // 16)
    found: list[float | None] = []
    for at, value in enumerate(values):
        near = [one for one in values[max(0, at - reach) : at + reach + 1] if one is not None]
        found.append(fmean(near) if near and value is not None else None)
    return tuple(found)


def _told(line: Line) -> dict[str, object]:
    values = [None if value is None else float(f"{value:.4g}") for value in line.values]
    return {"name": visible(line.name), "colour": line.colour, "values": values}
