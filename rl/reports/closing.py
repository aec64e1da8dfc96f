"""The end of a run, for people: a picture, a page, and a few words."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rl.evaluation import evaluate, reading
from rl.ledger import Reader
from rl.reports import curves, report, series
from rl.reports import html as html_report

PICTURE: Final = "curves.png"


def close(directory: Path, result: Mapping[str, Any]) -> str:
    """Write curves.png and report.html into the run's directory; what to print. Raises OSError, LedgerError."""
    before, after = (directory / "eval" / f"{when}.jsonl" for when in series.EVALUATIONS)
    chosen = []
    if before.exists() and after.exists():
        chosen = reading.of_two(evaluate.read(before), evaluate.read(after))
    picture = directory / PICTURE
    curves.write_png(curves.figure(series.gather(directory, result)), picture)
    page = html_report.write(directory, result, chosen)
    words = [report.in_words(result), f"All of it: {directory / 'report.json'}", f"To look at: {page}, {picture}"]
    return "\n".join([*words, *(["", reading.in_words(chosen)] if chosen else [])])


def finished(directory: Path, steps: int) -> str | None:
    """What to print of a run that has taken its `steps` and was reported; None of any other. Raises LedgerError."""
    with Reader(directory) as reader:
        step = reader.step
    told = series.read_object(directory / "report.json")
    if step < steps or told.get("steps") != step:  # the report may be older than the last steps
        return None
    if not all((directory / name).exists() for name in (PICTURE, html_report.FILE)):
        close(directory, told)  # which was interrupted, or had no room
    return f"The run in {directory} is finished: --set run.steps={step + 1} or more goes on.\n{report.in_words(told)}"
