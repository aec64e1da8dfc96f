"""Scored groups on their way to the learner: what teaches nothing is dropped and counted, the rest cut into batches."""

import asyncio
from dataclasses import dataclass

from rl.algorithm.advantages import ADVANTAGES, of_group
from rl.algorithm.batch import cut, teaching_tokens
from rl.algorithm.controls import shuffled
from rl.algorithm.filters import partition
from rl.algorithm.staleness import lag
from rl.config import AlgorithmConfig
from rl.learner.packing import Row, rows
from rl.ledger.writer import Ledger
from rollout_workers.trajectory import EpisodeKey, Group
from verifiers.errors import UserError

_MEMORY = 256
"""Groups that the running mean goes back: what an episode brings changes as the policy learns."""


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
        self.tokens_per_episode = 0.0
        """What an episode that is started brings, in sampled tokens with non-zero advantage, whatever becomes of it.

        A running mean of this process, which after a resume begins anew; 0 as long as nothing came that teaches.
        """
        self._closed = 0
        self._learnt_from = 0
        self._waiting_tokens = 0

    @property
    def tokens(self) -> int:
        """Such tokens that wait, or are learnt from until the next batch is asked for: their version is to come."""
        return self._learnt_from + self._waiting_tokens

    async def put(self, group: Group) -> None:
        """Take a closed group in. One that teaches nothing, or came to nothing, is dropped and counted."""
        async with self._changed:
            kept = self._sift([group])
            tokens = self._tokens(kept)
            self._learn_mean(group, tokens)
            self._waiting += kept
            self._waiting_tokens += tokens
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
        self._learnt_from = self._tokens(taken)
        return Batch(tuple(taken), tuple(found))

    def _advantages(self, group: Group) -> list[float]:
        """Of its members, in their order."""
        graded = shuffled(group, self._seed) if self._config.shuffle_rewards else group
        return of_group(graded, self._estimator).tolist()

    def _cut(self) -> list[Group]:
        taken, self._waiting = cut(self._sift(self._waiting), self._config.token_budget, self._estimator)
        self._waiting_tokens = self._tokens(self._waiting)
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
            self._ledger.drop(keys, reason)
        return sifted.kept

    def _tokens(self, groups: list[Group]) -> int:
        return sum(teaching_tokens(group, self._estimator) for group in groups)

    def _learn_mean(self, group: Group, tokens: int) -> None:
        """Stale ones have no part in it: they would be taken for a need of more, which then come too late as well."""
        if any(lag(member.episode, self._ledger.version) > self._config.max_lag for member in group.members):
            return
        self._closed += 1
        brought = tokens / self._config.group_size
        self.tokens_per_episode += (brought - self.tokens_per_episode) / min(self._closed, _MEMORY)
