"""Which episodes of an evaluation, or of two, are worth a person's time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl.evaluation.evaluate import Sample
from rl.reports.pages import visible
from verifiers.task import Message

_EACH = 2


@dataclass(frozen=True, slots=True)
class WorthReading:
    """An episode for people to read."""

    title: str
    why: str
    """One sentence: what there is to see in it."""
    messages: tuple[Message, ...]
    """The whole conversation, the task's messages first."""
    verdict: str = ""
    """The verdict on it, in words."""


def of_one(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """For every domain an episode that solved its task, one that did not, and one without a verdict, by their lines.

    The solved one has several turns, if there is such a one.
    """
    found = []
    for domain in dict.fromkeys(sample.domain for sample in samples):
        for correct, word in ((True, "solved"), (False, "not solved"), (None, "no verdict")):
            lines = [
                (line, sample)
                for line, sample in enumerate(samples, start=1)
                if sample.domain == domain and sample.correct is correct
            ]
            if lines:
                line, sample = next((one for one in lines if correct and one[1].turns > 1), lines[0])
                turns = f" at turn {sample.turns}" if correct and sample.turns > 1 else ""
                why = f"{word}{turns}" + (f", {sample.detail}" if sample.detail else "")
                found.append({"line": line, "task_id": sample.task_id, "sample": sample.sample, "why": why})
    return found


def of_two(before: Sequence[Sample], after: Sequence[Sample]) -> list[WorthReading]:
    """Tasks that failed before and were solved after, and replies that used what a tool had said; shortest first."""
    earlier = {(sample.task_id, sample.sample): sample for sample in before}
    found = []
    for domain in sorted({sample.domain for sample in after}):
        solved = sorted((s for s in after if s.domain == domain and s.correct), key=lambda s: s.sampled_tokens)
        found += list(_learnt(solved, earlier))[: 2 * _EACH]
        found += list(_mended(solved))[:_EACH]
    return found


def _learnt(solved: Sequence[Sample], earlier: Mapping[tuple[str, int], Sample]) -> Iterator[WorthReading]:
    for sample in solved:
        first = earlier.get((sample.task_id, sample.sample))
        if first is not None and first.correct is False:
            why = f"The same {sample.domain} task before and after training: it failed, then it was solved."
            yield WorthReading(f"{sample.task_id}, before", why, first.messages, _verdict(first))
            yield WorthReading(f"{sample.task_id}, after", why, sample.messages, _verdict(sample))


def _mended(solved: Sequence[Sample]) -> Iterator[WorthReading]:
    for sample in solved:
        if sample.domain == "code" and sample.turns > 1:
            why = "The first reply failed its tests, and a later one used what they said."
            yield WorthReading(f"{sample.task_id}, mended", why, sample.messages, _verdict(sample))


def _verdict(sample: Sample) -> str:
    reward = "no reward" if sample.reward is None else f"reward {sample.reward:+.2f}"
    return f"{sample.outcome}, {reward}" + (f": {sample.detail}" if sample.detail else "")


def in_words(chosen: Sequence[WorthReading]) -> str:
    """One or two of them for a terminal."""
    texts = []
    for one in chosen[:2]:
        turns = "\n".join(f"  [{message.role}] {_indented(message.content)}" for message in one.messages)
        texts.append(f"{one.title} ({one.verdict})\n{turns}")
    return "\n\n".join(texts)


def _indented(text: str) -> str:
    return visible(text).replace("\n", "\n    ")
