"""Two evaluations on the tasks that both have: of two runs, or of one before and after it learnt."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean

from rl.evaluation import evaluate
from rl.reports.series import EVALUATIONS, in_order
from rl.service import models, runs

_SHOWN = 200
_KEPT = 8
_Shares = Mapping[str, tuple[str, float]]
"""Task id -> its domain, and the share of samples that solved it."""


class NothingToCompare(Exception):
    """A side has no evaluation, or the two have no task in common; in a sentence."""


class Evaluations:
    """Those that were compared last. Used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[tuple[Path, int], _Shares] = OrderedDict()

    def compare(self, root: Path, a: str, b: str) -> models.Comparison:
        """`a` and `b` are `RUN:before`, `RUN:after` or `RUN`, which is its last one.

        Raises NoSuchRun, NothingToCompare.
        """
        left, right = self._shares(root, a), self._shares(root, b)
        both = left.keys() & right.keys()
        if not both:
            raise NothingToCompare(f"{a} and {b} have no task in common")
        tasks = [
            models.Compared(task_id=task, domain=left[task][0], a=left[task][1], b=right[task][1]) for task in both
        ]
        tasks.sort(key=lambda one: (-abs((one.b or 0) - (one.a or 0)), one.task_id))
        better = sum((one.b or 0) > (one.a or 0) for one in tasks)
        worse = sum((one.b or 0) < (one.a or 0) for one in tasks)
        return models.Comparison(
            a=_side(a, left, both),
            b=_side(b, right, both),
            better=better,
            worse=worse,
            same=len(tasks) - better - worse,
            tasks=tuple(tasks[:_SHOWN]),
        )

    def _shares(self, root: Path, name: str) -> _Shares:
        file = _file(root, name)
        key = file, file.stat().st_mtime_ns
        with self._lock:
            if key not in self._held:
                self._held[key] = _shares(_read(file))
            self._held.move_to_end(key)
            while len(self._held) > _KEPT:
                self._held.popitem(last=False)
            return self._held[key]


def sides(root: Path) -> list[str]:
    """All that can be compared."""
    return [
        f"{run.name}:{when}"
        for run in runs.listed(root)
        for when in EVALUATIONS
        if (run / "eval" / f"{when}.jsonl").is_file()
    ]


def answers(root: Path, a: str, b: str, task: str) -> models.Answers:
    """What both sides answered to one task. Raises NoSuchRun, NothingToCompare."""
    left, right = (_read(_file(root, side), task) for side in (a, b))
    if not left or not right:
        raise NothingToCompare(f"{a} and {b} do not both have a task {task}")
    return models.Answers(
        task_id=task, domain=left[0].domain, a=tuple(map(_answer, left)), b=tuple(map(_answer, right))
    )


def _file(root: Path, name: str) -> Path:
    """The evaluation that a side names."""
    run, _, when = name.partition(":")
    directory = runs.find(root, run) / "eval"
    wanted = [when] if when in EVALUATIONS else [] if when else list(reversed(EVALUATIONS))
    file = next((path for one in wanted if (path := directory / f"{one}.jsonl").is_file()), None)
    if file is None:
        raise NothingToCompare(f"{name} has no evaluation: name RUN:before or RUN:after of one that was evaluated")
    return file


def _read(file: Path, task: str | None = None) -> list[evaluate.Sample]:
    try:
        return evaluate.read(file, task)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise NothingToCompare(f"the evaluation of {file.parent.parent.name} cannot be read now") from error


def _shares(samples: Iterable[evaluate.Sample]) -> _Shares:
    found: dict[str, tuple[str, list[bool]]] = {}
    for one in samples:
        if one.correct is not None:
            found.setdefault(one.task_id, (one.domain, []))[1].append(one.correct)
    return {task: (domain, fmean(solved)) for task, (domain, solved) in found.items()}


def _answer(sample: evaluate.Sample) -> models.Answer:
    said = tuple(models.Message(role=one.role, content=one.content) for one in sample.messages)
    verdict = {"outcome": sample.outcome, "reward": sample.reward, "correct": sample.correct, "detail": sample.detail}
    return models.Answer(sample=sample.sample, messages=said, **verdict)


def _side(name: str, shares: _Shares, tasks: set[str]) -> models.Side:
    found: dict[str, list[float]] = {}
    for task in tasks:
        domain, share = shares[task]
        found.setdefault(domain, []).append(share)
    return models.Side(name=name, pass_at_1={domain: fmean(found[domain]) for domain in in_order(found)})
