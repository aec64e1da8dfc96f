"""The warm start of a run: the supervised stage on demonstrations of the generators it will be trained on."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rl.config import Config
from rl.init_model import pieces
from rl.progress import Say
from rl.sft.stage import SftError, warm_start
from rl.tasks.generated import GeneratedSource
from verifiers.task import Message

_SAMPLE = 64
_CORPUS = 3000


class Demonstrations:
    """Of several generators in turn, without end; the same index gives the same one."""

    def __init__(
        self, sources: Sequence[GeneratedSource], weights: Mapping[str, int], mistakes: Mapping[str, float]
    ) -> None:
        """`weights` and `mistakes` as in `rl.config.WarmStartConfig`. Raises SftError for a domain without a source."""
        self._sources: dict[str, list[GeneratedSource]] = {}
        for source in sources:
            self._sources.setdefault(source.domain, []).append(source)
        for name, given in (("weights", weights), ("mistakes", mistakes)):
            if unknown := sorted(given.keys() - self._sources.keys()):
                known = ", ".join(sorted(self._sources))
                raise SftError(f"warm_start.{name}: no generator makes the domain '{unknown[0]}'; there are {known}")
        self._weights = {domain: weights.get(domain, 1) for domain in self._sources}
        self._mistakes = mistakes
        self._turn = [(domain, at) for domain, weight in self._weights.items() for at in range(weight)]
        if not self._turn:
            raise SftError("warm_start.weights: all of them are 0, which leaves nothing to learn from")

    def __call__(self, index: int) -> Sequence[Message]:
        """The conversation at a place of the stream."""
        turn, at = divmod(index, len(self._turn))
        domain, place = self._turn[at]
        number = turn * self._weights[domain] + place
        sources = self._sources[domain]
        return sources[number % len(sources)].demonstration(number // len(sources), self._mistakes.get(domain, 0.0))

    def texts(self) -> Iterator[str]:
        """What a tokenizer made from nothing is learnt from: roles and contents."""
        for index in range(_CORPUS):
            for message in self(index):
                yield message.role
                yield from pieces(message.content) if message.role == "assistant" else (message.content,)

    def identity(self) -> dict[str, Any]:
        """JSON that tells these demonstrations from others; a sample of them stands for the generators' code."""
        sample = hashlib.sha256()
        for index in range(_SAMPLE * len(self._turn)):
            sample.update(repr(self(index)).encode("utf-8", "replace"))
        sources = [one.model_dump(mode="json", exclude={"limits"}) for many in self._sources.values() for one in many]
        return {
            "sources": sources,
            "weights": self._weights,
            "mistakes": dict(self._mistakes),
            "sample": sample.hexdigest(),
        }


def prepare(config: Config, say: Say, out: Path | None = None) -> Path:
    """The model that a run of this configuration starts from, made, gone on with, or there already; or made at `out`.

    Raises SftError, also where the configuration has no warm start; and what `rl.sft.stage.warm_start` raises.
    """
    if config.warm_start is None:
        raise SftError("the configuration has no [warm_start]: add one, or give --model and --data")
    sources = [source.seeded(config.run.seed) for source in config.data.generated]
    demonstrations = Demonstrations(sources, config.warm_start.weights, config.warm_start.mistakes)
    base = config.model.init and config.model.init.model_copy(update={"seed": config.run.seed})
    return warm_start(
        base or str(config.model.path),
        demonstrations,
        demonstrations.identity(),
        config.warm_start.sft.model_copy(update={"seed": config.run.seed}),
        config.warm_start.directory,
        say,
        dtype=config.model.dtype,
        reasoning=config.rollout.reasoning,
        out=out,
        texts=demonstrations.texts(),
    )
