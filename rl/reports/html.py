"""What a run did, as one file for a browser: words, curves, tables, and episodes worth reading. No script in it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rl.evaluation.reading import WorthReading
from rl.reports import curves, pages, series
from rl.reports.pages import number
from rl.reports.report import in_words
from rollout_workers.files import replacing

FILE = "report.html"


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as they are shown."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    names: int = 1
    """So many columns, from the left, hold words."""


def write(directory: Path, report: Mapping[str, Any], worth_reading: Sequence[WorthReading]) -> Path:
    """Write report.html into a run's directory, whole or not at all. What an older report lacks is left out.

    Raises LedgerError if the run has no ledger, OSError if the file cannot be written.
    """
    gathered = series.gather(directory, report)
    drawn = curves.svg(curves.figure(gathered)) if gathered.steps or gathered.held_out else ""
    tables = [table for build in _TABLES if (table := build(report)).rows]
    text = (
        pages.environment()
        .get_template("report.html")
        .render(
            title=f"Run {gathered.run}, {gathered.steps} optimiser step{'' if gathered.steps == 1 else 's'}",
            words=_words(report),
            curves=Markup(drawn),  # noqa: S704 - our own drawing; names in it are glyphs, not text
            wide=[table for table in tables if len(table.columns) > 2],
            small=[table for table in tables if len(table.columns) == 2],
            faults=report.get("faults", ()),
            worth_reading=worth_reading,
        )
    )
    path = directory / FILE
    with replacing(path) as whole:
        whole.write_text(text, encoding="utf-8")
    return path


def _words(report: Mapping[str, Any]) -> str:
    with suppress(KeyError, IndexError):  # a report of an older program
        return in_words(report)
    return ""


def _evaluation(report: Mapping[str, Any]) -> Table:
    found = _part(report, "eval")
    before, after = _part(found, "before"), _part(found, "after")
    rows = tuple(_before_and_after(domain, before, after) for domain in series.in_order({*before, *after}))
    note = "pass@1 is the share of samples that solve their task; the interval covers 95 %."
    return Table("Held-out tasks", ("domain", "before", "after", "change", "tasks"), rows, note)


def _before_and_after(domain: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    old, new = _part(before, domain), _part(after, domain)
    tasks = new.get("tasks", old.get("tasks"))
    return domain, _share(old), _share(new), _difference(old.get("pass@1"), new.get("pass@1")), number(tasks, "d")


def _second_turn(report: Mapping[str, Any]) -> Table:
    found = _part(report, "second_turn")
    tasks = _part(found, "tasks")
    rows = tuple(
        (f"{name}, of {number(tasks[name], ',d')} tasks" if name in tasks else name, number(found[name]))
        for name in ("before", "after", "gain")
        if name in found
    )
    note = "Of the code tasks whose first reply failed, the share that was solved at a later turn."
    return Table("Second turns that used the tool's output", ("", "share"), rows, note)


def _controls(report: Mapping[str, Any]) -> Table:
    """Each control is an evaluation, as `eval` is."""
    rows = []
    for name, control in _part(report, "controls").items():
        before, after = _part(control, "before"), _part(control, "after")
        rows += [(name, *_before_and_after(one, before, after)) for one in series.in_order({*before, *after})]
    note = "The same run where nothing can be learned. A change here would mean that the instrument is wrong."
    return Table("Controls", ("control", "domain", "before", "after", "change", "tasks"), tuple(rows), note, 2)


def _dropped(report: Mapping[str, Any]) -> Table:
    ledger = _part(report, "ledger")
    rows = [("trained", number(ledger.get("trained"), ",d"))] if "trained" in ledger else []
    rows += [(reason, number(count, ",d")) for reason, count in _part(report, "dropped").items() if count]
    return Table("What became of the episodes", ("trained, or dropped for", "episodes"), tuple(rows))


def _seconds(report: Mapping[str, Any]) -> Table:
    rows = ((phase, number(taken, ",.1f")) for phase, taken in _part(report, "seconds").items())
    return Table("Time by phase", ("phase", "seconds"), tuple(rows))


def _time(report: Mapping[str, Any]) -> Table:
    rows = (
        (f"{actor}: {cause}", number(taken, ",.1f"))
        for actor, causes in _part(report, "time").items()
        for cause, taken in sorted(causes.items(), key=lambda one: -one[1])
    )
    note = "A worker's episodes run side by side: their times add up to more than the clock's."
    return Table("Time by actor", ("actor: what took it", "seconds"), tuple(rows), note)


def _throughput(report: Mapping[str, Any]) -> Table:
    rows = [
        (name.removesuffix("_per_s").replace("_", " ") + " a second", number(rate, ",.0f"))
        for name, rate in _part(report, "throughput").items()
    ]
    if "multi_version_fraction" in report:
        rows.append(("episodes of several versions", number(report["multi_version_fraction"], ".0%")))
    if "peak_rss_bytes" in report:
        rows.append(("memory at the peak", f"{number(report['peak_rss_bytes'] / 2**30, '.1f')} GiB"))
    return Table("Throughput", ("", ""), tuple(rows))


def _gap(report: Mapping[str, Any]) -> Table:
    gap = _part(report, "logprob_gap")
    rows = [(f"version {name}", number(worst, ".1e")) for name, worst in _part(gap, "by_version").items()]
    if "max" in gap:
        rows.append((f"all, {number(gap.get('tokens'), ',d')} tokens", number(gap["max"], ".1e")))
    return Table("Engine against learner", ("", "largest difference, nats"), tuple(rows))


_TABLES: tuple[Callable[[Mapping[str, Any]], Table], ...] = (
    _evaluation,
    _second_turn,
    _controls,
    _dropped,
    _throughput,
    _gap,
    _seconds,
    _time,
)


def _part(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A branch, empty if it is not there."""
    found = tree.get(name)
    return found if isinstance(found, Mapping) else {}


def _share(one: Mapping[str, Any]) -> str:
    if "pass@1" not in one:
        return "–"
    return f"{number(one['pass@1'])} ({number(one.get('low'))} – {number(one.get('high'))})"


def _difference(old: object, new: object) -> str:
    known = isinstance(old, int | float) and isinstance(new, int | float)
    return f"{new - old:+.3f}" if known else "–"  # type: ignore[operator]
