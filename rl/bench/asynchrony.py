"""`cwm-rl bench async`: what it is worth that nobody waits. Whole runs, with tools that take their time and without."""

import asyncio
import math
import random
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from itertools import count, cycle
from pathlib import Path
from typing import Any, Final
from zlib import crc32

from rl import prepare
from rl.bench.rollouts import SHAPES
from rl.config import Config, validated
from rl.driver import run
from rl.driver.inbox import Batch
from rl.driver.rollouts import Rollouts
from rl.ledger import Reader
from rl.progress import Say
from rollout_workers.environments import Remaining
from verifiers.sandbox import Sandboxes
from verifiers.task import Limits, Message, Submission, Task
from verifiers.verdict import Verdict

TURNS: Final = 6
REPLY: Final = 16
"""Tokens."""
TOKENS: Final = 320
"""Of an episode, at most."""
EPISODES: Final = 64
"""Of a batch."""
GROUP: Final = 8
LAG: Final = 8
NO_LIMIT: Final = 1000
SKIPPED: Final = 3
"""Steps at the start, in which slots fill and averages form."""

_LOOK_AGAIN: Final = 0.05
"""Seconds."""

VERIFIER: Final = f"{__name__}:Checksum"
ENVIRONMENT: Final = f"{__name__}:slow"


@dataclass(frozen=True)
class Work:
    """What is compared."""

    mean: float = 0.5
    """Seconds of a tool call, log-normal."""
    sigma: float = 1.0
    slots: tuple[int, ...] = (320, 576)
    """Tried asynchronously; the best one counts. Without lag a batch fills them, and more would be thrown away."""
    steps: int = 30
    waiting_steps: int = 10
    """Of the run that waits."""
    alone: int = 6
    """Batches that are sampled, and learnt, without a run around them."""


class Slow:
    """A tool that sleeps."""

    files: Mapping[str, bytes] = {}

    def __init__(self, mean: float, sigma: float) -> None:
        self._mean, self._sigma = mean, sigma

    async def respond(self, reply: str, left: Remaining) -> Message:
        """An answer, later."""
        if self._mean:
            # The mean of exp N(μ, σ²) is exp(μ + σ²/2).
            await asyncio.sleep(random.lognormvariate(math.log(self._mean) - self._sigma**2 / 2, self._sigma))
        return Message("tool: wait", "done")


@asynccontextmanager
async def slow(task: Task, sandboxes: Sandboxes) -> AsyncIterator[Slow]:
    """The environment of the tasks below."""
    yield Slow(task.visible["mean"], task.visible["sigma"])


class Waits:
    """Tasks with such a tool, as a `rl.tasks.stream.Pool`."""

    domain = "wait"
    verifiers = frozenset({VERIFIER})

    def __init__(self, mean: float, sigma: float) -> None:
        self._visible = {"mean": mean, "sigma": sigma}

    def task(self, number: int) -> Task:
        """All alike."""
        return Task(
            f"wait/{number}",
            self.domain,
            (Message("user", f"Wait. {number % 1000}"),),
            VERIFIER,
            environment=ENVIRONMENT,
            visible=self._visible,
            limits=Limits(turns=TURNS, tokens=TOKENS, reply_tokens=REPLY, answer_cut=True),
        )

    def drawn(self, counts: Mapping[str, int]) -> int:
        """Nothing is resumed."""
        return 0


class Checksum:
    """Rewards that differ within every group, and teach nothing."""

    lowest = -1.0

    def check_task(self, task: Task) -> None:
        """Any will do."""

    async def verify(self, task: Task, submission: Submission, sandboxes: Sandboxes) -> Verdict:
        """By the reply alone."""
        reward = crc32(submission.reply.encode()) / 2**31 - 1
        return Verdict.scored(reward, correct=reward > 0)


async def bench(work: Work, say: Say) -> dict[str, Any]:
    """All of it. Raises what a run raises."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        say("sampling alone, learning alone, and both side by side …")
        rates = await _uncoupled(_config(place, "alone", max(work.slots), NO_LIMIT, 1), work.alone)
        found: dict[str, Any] = {f"{name}_tokens_per_s": speed for name, speed in asdict(rates).items()}
        for kind, tasks in (("", Waits(work.mean, work.sigma)), ("nolatency_", Waits(0, 0))):
            say(f"{kind}waiting …")
            waiting = await _speed(_config(place, f"{kind}sync", EPISODES, 0, work.waiting_steps), tasks)
            best, slots = 0.0, 0
            for tried in work.slots:
                say(f"{kind}not waiting, {tried} slots …")
                speed = await _speed(_config(place, f"{kind}async-{tried}", tried, LAG, work.steps), tasks)
                best, slots = max((best, slots), (speed, tried))
            found |= {
                f"{kind}sync_tokens_per_s": waiting,
                f"{kind}async_tokens_per_s": best,
                f"{kind}slots": slots,
                f"{kind}ratio": best / waiting,
            }
        found |= {"bound_tokens_per_s": rates.bound, "bound_ratio": found["async_tokens_per_s"] / rates.bound}
        return {"async": found}


@dataclass(frozen=True)
class Rates:
    """Tokens a second of an engine that nothing holds up, and of a learner that has all it needs."""

    alone_sampling: float
    alone_learning: float
    beside_sampling: float
    """While the learner works, but on older batches: worker and driver then have to share its core, among others."""
    beside_learning: float

    @property
    def bound(self) -> float:
        """Tokens a second, sampled and trained, if neither ever waited in vain: the quicker one rests now and then."""
        quick, slow = self.beside_learning, self.beside_sampling
        rest = self.alone_sampling
        if quick < slow:
            quick, slow, rest = slow, quick, self.alone_learning
        # Both work for a share f of the time, with f quick = f slow + (1 - f) rest.
        return quick * rest / (quick - slow + rest)


def _config(place: Path, name: str, slots: int, max_lag: int, steps: int) -> Config:
    """The demo's model and machine."""
    tree = {
        "run": {"id": name, "directory": str(place), "steps": steps},
        "model": {
            "dtype": "float32",
            "init": SHAPES["nano"].model_dump(),
        },
        "data": {"sources": [{"path": "of `Waits`", "limits": {"tokens": TOKENS}}]},
        "rollout": {
            "slots": slots,
            "engine": {"context": 512, "kv_cache_gib": 0.5, "cores": [0]},
            "sandbox": {"backend": "bubblewrap"},
        },
        # Nine tenths of a batch's tokens: an end token that is sampled early takes a few away.
        "algorithm": {
            "group_size": GROUP,
            "norm": 128,
            "token_budget": EPISODES * TURNS * REPLY * 9 // 10,
            "max_lag": max_lag,
        },
        "learner": {"lr": 1e-6, "microbatch_tokens": 4096, "threads": 1, "cores": [1]},
        "checkpoint": {"every": 1000, "keep": 1},
        "guard": {"gap_versions": 0},
    }
    return validated(Config, tree, "bench async")


async def _speed(config: Config, tasks: Waits) -> float:
    """Tokens trained a second, from the ledger, once the run is under way."""
    directory = prepare.create(config, _unsaid)
    await run.execute(config, directory, [tasks], _unsaid)
    with Reader(directory) as reader:
        steps = reader.steps()
    first, *rest = steps[SKIPPED - 1 :]
    return sum(step.sampled_tokens for step in rest) / (rest[-1].at - first.at)


async def _uncoupled(config: Config, batches: int) -> Rates:
    """Both measured alone, and side by side: the learner then goes round in what was sampled before."""
    directory = prepare.create(config, _unsaid)
    tasks = Waits(0, 0)
    # All slots begin at once, and end so: until they have come apart, batches come faster than they are sampled.
    wave = math.ceil(config.rollout.slots / EPISODES)
    first, batches = SKIPPED + wave, max(batches, 2 * wave)
    async with run.opened(config, directory, [tasks], _unsaid) as opened:
        await opened.fleet.serve()
        opened.ledger.publish(0)
        endless = map(tasks.task, count())
        rollouts = Rollouts(config, endless, opened.fleet, opened.ledger, opened.inbox)
        taken, learnt = _Done(), _Done()
        async with asyncio.TaskGroup() as both:
            sampling = both.create_task(rollouts.run())

            async def take(number: int) -> list[Batch]:
                taken.forget()
                found = []
                for _ in range(number):
                    found.append(await opened.take())
                    taken.add(found[-1])
                return found

            async def learn(some: Iterable[Batch]) -> None:
                for batch in some:
                    await opened.learn(batch)
                    learnt.add(batch)
                    if sampling.done():
                        return

            await take(first)
            work = await take(batches)
            alone_sampling = taken.rate
            both.create_task(learn(cycle(work)))
            await take(SKIPPED)
            learnt.forget()
            await take(batches)
            while not learnt.is_measured:  # noqa: ASYNC110 - a slow learner; the run's own deadlines end its steps
                await asyncio.sleep(_LOOK_AGAIN)
            beside_sampling, beside_learning = taken.rate, learnt.rate
            sampling.cancel()
        learnt.forget()
        for batch in work:
            await opened.learn(batch)
            learnt.add(batch)
        return Rates(alone_sampling, learnt.rate, beside_sampling, beside_learning)


class _Done:
    """Tokens of batches, and when each was done."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Count anew; the next batch only starts the clock."""
        self._at: list[float] = []
        self._tokens: list[int] = []

    def add(self, batch: Batch) -> None:
        """Count one more batch."""
        self._at.append(time.monotonic())
        self._tokens.append(_sampled(batch))

    @property
    def is_measured(self) -> bool:
        """Whether there is a batch after the one that started the clock."""
        return len(self._at) > 1

    @property
    def rate(self) -> float:
        """Tokens a second, from the first batch to the last one."""
        return sum(self._tokens[1:]) / (self._at[-1] - self._at[0])


def _sampled(batch: Batch) -> int:
    return sum(member.episode.sampled_tokens for group in batch.groups for member in group.members)


def _unsaid(text: str) -> None:
    """Runs within a benchmark keep to themselves."""


def in_words(found: Mapping[str, Any]) -> str:
    """The result as text for people."""
    values = found["async"]
    return "\n".join(f"{name:>32}  {value:,.4g}" for name, value in values.items())
