"""Scored groups on their way to the learner: what teaches nothing is dropped and counted, the rest cut into batches."""

import asyncio
from dataclasses import dataclass

from rl.algorithm.advantages import ADVANTAGES, of_group
from rl.algorithm.batch import cut
from rl.algorithm.controls import shuffled
from rl.algorithm.filters import partition
from rl.config import AlgorithmConfig
from rl.learner.packing import Row, rows
from rl.ledger.writer import Ledger
from rollout_workers.trajectory import EpisodeKey, Group
from verifiers.errors import UserError


class NothingToLearn(UserError):
    """Group after group came in which every member earned the same."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class Batch:
    """Whole groups that one step is taken on, and their trajectories with advantages."""

    groups: tuple[Group, ...]
    rows: tuple[Row, ...]

    @property
    def keys(self) -> list[EpisodeKey]:
        """Every episode that took part in a baseline of this batch."""
        return [member.episode.key for group in self.groups for member in group.members]


class Inbox:
    """Where the rollout side puts groups and the learner's side takes batches."""

    def __init__(self, config: AlgorithmConfig, vocab_size: int, ledger: Ledger, patience: int, seed: int) -> None:
        self._config = config
        self._estimator = ADVANTAGES[config.advantage]
        self._vocab_size = vocab_size
        self._ledger = ledger
        self._patience = patience
        self._seed = seed
        self._waiting: list[Group] = []
        self._fruitless = 0
        self._changed = asyncio.Condition()
        self.starving = False
        """Whether the learner waits for a batch right now."""
        self.taken_episodes = 0
        """Trained or filtered out, in all batches so far."""
        self._batches = 0
        self._learnt_from = 0

    @property
    def episodes(self) -> int:
        """How many wait, or are learnt from until the next batch is asked for: their version is still to come."""
        return self._learnt_from + sum(len(group.members) for group in self._waiting)

    @property
    def episodes_per_batch(self) -> int:
        """The running mean of this process, which after a resume begins anew; 0 before the first batch."""
        return self.taken_episodes // self._batches if self._batches else 0

    async def put(self, group: Group) -> None:
        """Take a closed group in. One that teaches nothing, or came to nothing, is dropped and counted."""
        async with self._changed:
            kept = self._sift([group])
            self._waiting += kept
            self._fruitless = 0 if kept else self._fruitless + 1
            self._changed.notify_all()

    async def take(self) -> Batch:
        """The next batch, as soon as enough tokens with non-zero advantage wait. Has no deadline of its own.

        Raises NothingToLearn.
        """
        async with self._changed:
            self.starving, self._learnt_from = True, 0
            try:
                while not (taken := self._cut()):
                    await self._changed.wait()
            finally:
                self.starving = False
        found = [row for group in taken for row in rows(group.members, self._advantages(group))]
        self._learnt_from = sum(len(group.members) for group in taken)
        self.taken_episodes += self._learnt_from
        self._batches += 1
        return Batch(tuple(taken), tuple(found))

    def _advantages(self, group: Group) -> list[float]:
        """Of its members, in their order."""
        graded = shuffled(group, self._seed) if self._config.shuffle_rewards else group
        return of_group(graded, self._estimator).tolist()

    def _cut(self) -> list[Group]:
        taken, self._waiting = cut(self._sift(self._waiting), self._config.token_budget, self._estimator)
        if not taken and self._fruitless >= self._patience:
            raise NothingToLearn(
                f"{self._fruitless} groups in a row taught nothing: their episodes earned the same reward, or came to "
                "nothing (`cwm-rl audit` has the reasons). Weigh in a verifier that tells answers apart, take easier "
                "tasks, or warm-start the model"
            )
        return taken

    def _sift(self, groups: list[Group]) -> list[Group]:
        """Those that teach something, with the members that count; the ledger has the reasons of the others."""
        sifted = partition(
            groups,
            self._ledger.version,
            max_lag=self._config.max_lag,
            rare_from=self._config.rare_token_from,
            vocab_size=self._vocab_size,
        )
        for keys, reason in sifted.dropped:
            self.taken_episodes += self._ledger.drop(keys, reason)
        return sifted.kept
