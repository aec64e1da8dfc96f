"""A run's curves as a picture: reward, held-out skill, lag, and the optimiser's health.

Drawn on figures of their own, never through pyplot, and every property is set on its object: nothing global is read
or changed, so that a server may draw. Glyph caches are shared all the same: one drawing at a time.
"""

from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from itertools import cycle
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from matplotlib.typing import HashableList

from rl.reports.series import EVALUATIONS, USUAL, Curves, Points

_SURFACE, _INK, _MUTED, _GRID = "#ffffff", "#1f2328", "#59636e", "#dde2e7"
_SERIES = ("#0072b2", "#d55e00", "#009e73", "#b3589a", "#c98a00", "#3b9dd6", "#7a6a00", "#6b5bd0")
"""After Okabe and Ito, so that colour-blind people tell them apart; some are darker, to stand out from white."""
_MARKERS = "osD^vPX*"
_TIMES = {"before": "#a3b1bf", "after": "#0b5cad"}
_DARK = {
    _SURFACE: "#161b22",
    _INK: "#e6edf3",
    _MUTED: "#9aa5b1",
    _GRID: "#30363d",
    "#0072b2": "#3fa0e0",
    "#d55e00": "#f07f35",
    "#009e73": "#2dbf94",
    "#b3589a": "#d98bc2",
    "#c98a00": "#e6a91f",
    "#3b9dd6": "#7cc4f0",
    "#7a6a00": "#d6c84a",
    "#6b5bd0": "#a297f2",
    _TIMES["before"]: "#5d6b79",
    _TIMES["after"]: "#4c9be8",
}
"""What a colour of the SVG becomes for readers who prefer dark pages."""
_FONT = "DejaVu Sans"  # matplotlib brings it
_TITLE, _TEXT = 10.5, 8.5


def figure(curves: Curves, *, narrow: bool = False) -> Figure:
    """All panels, 10 inches wide; `narrow`: in one column of 4 inches, for a telephone."""
    panels = dict(_PANELS)
    if not curves.held_out:
        del panels["held_out"]
    small = list(_PANELS)[2:]
    top = ["reward"] * (7 if curves.held_out else 12) + ["held_out"] * (5 if curves.held_out else 0)
    if narrow:
        rows = [[name] for name in panels]
        heights = [1.0 if name in small else 1.7 for name in panels]
    else:
        rows, heights = [top, [name for name in small for _ in range(3)]], [2.0, 1.0]
    size = (4.0, 1.9 * sum(heights)) if narrow else (10.0, 6.2)
    mosaic: list[HashableList[str]] = [list(row) for row in rows]
    whole = Figure(figsize=size, dpi=100, facecolor=_SURFACE, layout="constrained")
    said = f"Run {_label(curves.run, 64)}, {curves.steps} optimiser steps"
    title = whole.suptitle(said, x=0.008, ha="left", fontsize=_TEXT, fontfamily=_FONT, color=_MUTED)
    title.set_parse_math(False)
    for name, axes in whole.subplot_mosaic(mosaic, height_ratios=heights).items():
        _style(axes)
        panels[name](axes, curves)
    return whole


def write_png(whole: Figure, path: Path) -> None:
    """Two pixels for every hundredth of an inch: sharp on fine screens."""
    whole.savefig(path, format="png", dpi=200)


def svg(whole: Figure) -> str:
    """An <svg> element of class `curves`, with no script and nothing from outside; it turns dark with the page."""
    text = StringIO()
    whole.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    drawn = text.getvalue()
    names = {light: f"--curves-{place}" for place, light in enumerate(_DARK)}
    for light, name in names.items():
        drawn = drawn.replace(light, f"var({name})")
    drawn = drawn[drawn.index("<svg ") :]
    return drawn.replace("<svg ", '<svg class="curves" role="img" aria-label="Curves of the run" ', 1).replace(
        '<style type="text/css">', f'<style type="text/css">{_themes(names)}', 1
    )


def _themes(names: Mapping[str, str]) -> str:
    light = "".join(f"{name}:{colour};" for colour, name in names.items())
    dark = "".join(f"{name}:{_DARK[colour]};" for colour, name in names.items())
    return f"svg.curves{{{light}}}@media screen and (prefers-color-scheme:dark){{svg.curves{{{dark}}}}}"


def _reward(axes: Axes, curves: Curves) -> None:
    """Every step faint, and its running mean on top."""
    window = _window(curves.steps)
    looks = _looks(list(curves.reward))
    for place, (domain, points) in enumerate(curves.reward.items()):
        colour, marker = looks[domain]
        x, y = _columns(points)
        if window > 1:
            axes.plot(x, y, color=colour, alpha=0.28, linewidth=0.8)
            y = _smoothed(y, window)
        every = max(1, len(x) // 6)
        (line,) = axes.plot(x, y, color=colour, linewidth=1.9, marker=marker, markersize=4.5, label=_label(domain))
        line.set_markevery((place * every // 4 % every, every))  # so that they do not hide each other
    values = [value for points in curves.reward.values() for _, value in points]
    if values and min(values) >= -1.0 and max(values) <= 1.0:
        axes.set_ylim(-1.05, 1.05)  # the whole range, so that noise does not look like progress
        axes.set_yticks([-1.0, -0.5, 0.0, 0.5, 1.0])
    _steps(axes, curves)
    if window > 1:
        axes.set_xlabel(f"optimiser step (line: mean of {window}; faint: every one)")
    axes.set_ylabel("mean reward")
    _legend(axes, "Reward by domain", columns=4)


def _held_out(axes: Axes, curves: Curves) -> None:
    """A pair of bars a domain, from 0 to 1 whatever they are."""
    times = [when for when in EVALUATIONS if any(when in one for one in curves.held_out.values())]
    width = 0.8 / len(times)
    for place, when in enumerate(times):
        shares = [(at, one[when]) for at, one in enumerate(curves.held_out.values()) if when in one]
        x = [at + (place - (len(times) - 1) / 2) * width for at, _ in shares]
        values = [share.value for _, share in shares]
        axes.bar(x, values, width * 0.94, color=_TIMES[when], label=f"{when} training")
        spread = [[max(0.0, share.value - share.low) for _, share in shares]]
        spread.append([max(0.0, share.high - share.value) for _, share in shares])
        axes.errorbar(x, values, spread, fmt="none", ecolor=_INK, elinewidth=1.1, capsize=2.5)
        for at, (_, share) in zip(x, shares, strict=True) if len(curves.held_out) <= 6 else ():
            axes.text(at, share.high + 0.02, f"{share.value:.2f}", ha="center", fontsize=_TEXT - 1, color=_INK)
    names = [_label(domain) for domain in curves.held_out]
    axes.set_xticks(range(len(names)), names)
    for text in axes.get_xticklabels():
        text.set_parse_math(False)
        if len(names) * max(map(len, names)) * 7 > _room(axes):
            text.set(rotation=30.0, ha="right")
    axes.grid(visible=False, axis="x")
    axes.set_ylim(0.0, 1.1)
    axes.set_yticks([0.0, 0.25, 0.5, 0.75, 1.0])
    axes.set_ylabel("share of samples solved (pass@1)")
    _legend(axes, "Held-out tasks, with 95 % intervals", columns=2)


def _lag(axes: Axes, curves: Curves) -> None:
    total = sum(curves.lag.values()) or 1
    lags, shares = list(curves.lag), [100 * tokens / total for tokens in curves.lag.values()]
    axes.bar(lags, shares, 0.8, color=_TIMES["after"])
    axes.grid(visible=False, axis="x")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    if not lags:
        axes.set_xlim(-0.5, 4.5)
    axes.set_ylim(0, max([10.0, *shares]) * 1.08)
    _titles(axes, "Lag of trained tokens", "weight versions behind", "share of tokens")


def _entropy(axes: Axes, curves: Curves) -> None:
    _line(axes, curves, curves.entropy, _SERIES[7])
    _titles(axes, "Entropy of the policy", "optimiser step", "nats per token")


def _grad_norm(axes: Axes, curves: Curves) -> None:
    _line(axes, curves, curves.grad_norm, _SERIES[1])
    _titles(axes, "Gradient norm", "optimiser step", "L2 norm, unclipped")


def _speed(axes: Axes, curves: Curves) -> None:
    _line(axes, curves, curves.tokens_per_second, _SERIES[2])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    _titles(axes, "Trained tokens", "optimiser step", "tokens per second")


_PANELS: dict[str, Callable[[Axes, Curves], None]] = {
    "reward": _reward,
    "held_out": _held_out,
    "lag": _lag,
    "entropy": _entropy,
    "grad_norm": _grad_norm,
    "speed": _speed,
}


def _line(axes: Axes, curves: Curves, points: Points, colour: str) -> None:
    """From zero: none of these quantities is below it."""
    x, y = _columns(points)
    axes.plot(x, y, color=colour, linewidth=1.5, marker="o" if curves.steps <= 20 else "", markersize=3.5)
    axes.set_ylim(0, max(y, default=0.0) * 1.15 or 1.0)
    _steps(axes, curves)


def _steps(axes: Axes, curves: Curves) -> None:
    axes.set_xlabel("optimiser step")
    axes.set_xlim(0.5, max(curves.steps, 2) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, steps=[1, 2, 5, 10], min_n_ticks=1))


def _style(axes: Axes) -> None:
    axes.set_facecolor(_SURFACE)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_MUTED)
        spine.set_linewidth(0.8)
    axes.set_axisbelow(True)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.tick_params(colors=_MUTED, labelcolor=_INK, labelsize=_TEXT, labelfontfamily=_FONT, length=3, width=0.8)
    for text in (axes.xaxis.label, axes.yaxis.label):
        text.set(color=_INK, fontsize=_TEXT, fontfamily=_FONT)


def _titles(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=_TITLE, fontfamily=_FONT, color=_INK)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _legend(axes: Axes, title: str, columns: int) -> None:
    """Between title and curves, where it hides nothing."""
    names = axes.get_legend_handles_labels()[1]
    columns = min(columns, max(1, int(_room(axes) // (6 * max(map(len, names), default=1) + 44))))
    rows = -(-len(names) // columns)
    if names:
        legend = axes.legend(
            loc="lower left",
            bbox_to_anchor=(-0.01, 0.99),
            ncols=columns,
            frameon=False,
            prop={"family": _FONT, "size": _TEXT},
            labelcolor=_INK,
            borderaxespad=0.2,
            columnspacing=1.4,
            handlelength=1.8,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    axes.set_title(title, loc="left", fontsize=_TITLE, fontfamily=_FONT, color=_INK, pad=6 + 14 * rows)


def _room(axes: Axes) -> float:
    """How wide they are, in hundredths of an inch, without what stands left of them."""
    place = axes.get_subplotspec()
    share = 1.0 if place is None else len(place.colspan) / place.get_gridspec().ncols
    return share * 100 * axes.get_figure(root=True).get_figwidth() - 70  # type: ignore[union-attr]


def _looks(domains: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker by domain; the usual ones keep theirs from run to run, whichever others are there."""
    looks = list(zip(_SERIES, _MARKERS, strict=True))
    usual = dict(zip(USUAL, looks, strict=False))
    free = [look for look in looks if look not in [usual[domain] for domain in domains if domain in usual]]
    others = cycle(free)
    return {domain: usual[domain] if domain in usual else next(others) for domain in domains}


def _window(steps: int) -> int:
    """Steps that a point of the smooth line stands for: few, odd, and one while there is nothing to smooth."""
    return 1 if steps < 10 else max(3, steps // 16 * 2 + 1)


def _smoothed(values: list[float], window: int) -> list[float]:
    """Means of what lies in a window centred on every point; at both ends that is half of it."""
    reach = window // 2
    return [fmean(values[max(0, at - reach) : at + reach + 1]) for at in range(len(values))]


def _columns(points: Points) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [value for _, value in points]


def _label(name: str, length: int = 14) -> str:
    """Anybody's name in characters that the font has. matplotlib leaves out what begins with `_`."""
    font = get_font(findfont(_FONT))
    shown = "".join(one if one.isprintable() and font.get_char_index(ord(one)) else "?" for one in name)
    shown = shown.lstrip("_") or "?"
    return shown if len(shown) <= length else shown[: length - 1] + "…"
