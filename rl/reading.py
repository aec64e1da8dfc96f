"""Which episodes of two evaluations are worth a person's time."""

from collections.abc import Iterator, Mapping, Sequence

from rl.evaluate import Sample
from rl.html_report import WorthReading

_EACH = 2


def worth_reading(before: Sequence[Sample], after: Sequence[Sample]) -> list[WorthReading]:
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
        turns = "\n".join(f"  [{message.role}] {_visible(message.content)}" for message in one.messages)
        texts.append(f"{one.title} ({one.verdict})\n{turns}")
    return "\n\n".join(texts)


def _visible(text: str) -> str:
    """Without characters that would steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text).replace("\n", "\n    ")
