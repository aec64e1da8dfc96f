"""`cwm-rl top`: the essentials of a run's page, in a terminal, kept up to date."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rl.ledger import LedgerError, Reader, Step
from rl.reports.pages import ago, number, visible
from rl.reports.series import mapping
from rl.service import models, runs
from rl.service.history import Histories

_PERIOD = 1.0
_STEPS = 8
_BLOCKS = "▁▂▃▄▅▆▇█"
_COLOURS = {"running": "green", "stopped": "yellow", "failed": "red", "crashed": "red", "unreadable": "red"}


def show(run: Path, *, once: bool) -> None:
    """Until Ctrl-C, or until the run ends; `once`, or where there is no terminal, a single time. Raises LedgerError."""
    histories, console = Histories(), Console()
    if once or not sys.stdout.isatty():
        console.print(_screen(run, histories)[0])
        return
    with Live(console=console, auto_refresh=False, screen=False) as live:
        while True:
            screen, alive = _screen(run, histories)
            live.update(screen, refresh=True)
            if not alive:
                return
            time.sleep(_PERIOD)


def newest(root: Path) -> Path:
    """The run below `root` that was written last. Raises LedgerError."""
    found = next(runs.listed(root), None) if root.is_dir() else None
    if found is None:
        raise LedgerError(f"there is no run in {root}: name the directory of one")
    return found


def _screen(run: Path, histories: Histories) -> tuple[RenderableType, bool]:
    """What to show, and whether the run goes on."""
    with Reader(run) as reader:
        steps = histories.steps(reader)
        found = runs.detail(reader, histories.multi_version_fraction(reader))
        fleet = runs.fleet(reader)
    parts: list[RenderableType] = [_facts(found), _actors(fleet), _steps(steps[-_STEPS:])]
    parts += [_text(f"{one.actor}: {one.kind}, {one.detail}"[: _width()], "red") for one in found.faults[:3]]
    return Group(*parts), found.state == "running"


def _facts(run: models.RunDetail) -> Text:
    of = f" of {run.steps}" if run.steps else ""
    line = _text(f"{run.name}  ", "bold")
    line.append(run.state, _COLOURS.get(run.state, ""))
    line.append(f"  step {run.step}{of}  weights {run.version}  {_spark(run.trend)}\n")
    if said := run.waiting or run.problem:
        line.append(visible(f"waits for {run.waiting}\n" if run.waiting else f"{said}\n"))
    dropped = ", ".join(f"{reason} {count}" for reason, count in run.dropped.items() if count) or "none"
    pending = sum(run.pending.values())
    line.append(f"episodes {run.dispatched:,} = trained {run.trained:,} + pending {pending:,} + dropped: {dropped}")
    if not run.balanced:
        line.append("\nthe ledger does not add up", "red")
    return line


def _actors(fleet: models.Fleet) -> RenderableType:
    table = _table(("actor", "state"), ("heartbeat", "weights", "acting", "graded", "sandboxes", "most of its time"))
    now = time.time()
    for one in fleet.actors:
        most = max(one.seconds.items(), key=lambda spent: spent[1], default=("", 0.0))
        _add(
            table,
            one.name,
            one.state,
            ago(now - one.seen) if one.seen else "–",
            str(one.version) if one.version is not None else "–",
            f"{one.acting}/{one.slots}" if one.slots else "–",
            str(one.grading) if one.slots else "–",
            str(one.sandboxes) if one.slots else "–",
            f"{most[0]} {most[1]:,.0f} s" if most[0] else "–",
        )
    return table


def _steps(steps: Sequence[Step]) -> RenderableType:
    domains = list(mapping(steps[-1].stats.get("reward"))) if steps else []
    table = _table((), ("step", *domains, "episodes", "tokens", "lag ≤", "entropy", "|g|", "KL", "clipped"))
    for step in steps:
        stats, reward = step.stats, mapping(step.stats.get("reward"))
        _add(
            table,
            str(step.step),
            *(number(reward.get(domain), "+.2f") for domain in domains),
            str(step.episodes),
            f"{step.sampled_tokens:,}",
            number(stats.get("lag_max"), "d"),
            number(stats.get("entropy"), ".2f"),
            number(stats.get("grad_norm"), ".3g"),
            number(stats.get("kl_k3"), ".4f"),
            number(stats.get("clip_fraction"), ".1%"),
        )
    return table


def _table(names: Sequence[str], numbers: Sequence[str]) -> Table:
    """Columns of words, and then of numbers."""
    table = Table(box=None, pad_edge=False, expand=False)
    for name in names:
        table.add_column(_text(name))
    for name in numbers:
        table.add_column(_text(name), justify="right")
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*map(_text, cells))


def _text(words: str, style: str = "") -> Text:
    """Not as rich's markup, in which somebody's words could mean something."""
    return Text(visible(words), style)


def _spark(values: tuple[float, ...]) -> str:
    shown = values[-40:]
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    spread = (high - low) or 1.0
    return "".join(_BLOCKS[round((value - low) / spread * (len(_BLOCKS) - 1))] for value in shown)


def _width() -> int:
    return os.get_terminal_size().columns if sys.stdout.isatty() else 120
