"""One episode: the policy's replies and the environment's answers, in turn, as one unbroken token sequence."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from rollout_workers.clock import Clock
from rollout_workers.engine import EngineError, Sampled, SampleError
from rollout_workers.environments import Environment, Remaining, find
from rollout_workers.renderer import Renderer
from rollout_workers.trajectory import (
    Context,
    Episode,
    EpisodeKey,
    Failed,
    FailureReason,
    Segment,
    StopReason,
    Trajectory,
)
from verifiers.sandbox import Sandboxes, SandboxKilled, SandboxUnavailable
from verifiers.task import Message, Submission, Task


class Sampler(Protocol):
    """What an episode needs of an engine."""

    async def sample(self, prompt: Sequence[int], max_tokens: int) -> Sampled:
        """One reply of at most `max_tokens` tokens. Raises EngineError, SampleError."""
        ...


async def run_episode(
    key: EpisodeKey, task: Task, sampler: Sampler, renderer: Renderer, sandboxes: Sandboxes
) -> Episode | Failed:
    """Act until the environment, a budget or the deadline ends it. A failure of ours is returned, never scored.

    Raises EngineError, because then every episode of that engine is lost.
    """
    clock = Clock()
    prompt = renderer.prompt(task.messages)
    if len(prompt) > task.limits.prompt_tokens or len(prompt) >= task.limits.tokens:
        return Failed(key, FailureReason.PROMPT_TOO_LONG, f"the prompt of task {task.id} has {len(prompt)} tokens")
    try:
        async with (
            asyncio.timeout(task.limits.seconds) as deadline,
            find(task.environment)(task, sandboxes) as environment,
        ):
            talk = _Talk(task, prompt, renderer)
            stop = await talk.run(sampler, environment, clock)
            files = dict(environment.files)
    except (SandboxUnavailable, SampleError) as error:
        return Failed(key, FailureReason.INFRA_ERROR, str(error))
    except EngineError:
        raise
    except Exception as error:  # noqa: BLE001 - an environment may be anybody's
        if isinstance(error, TimeoutError) and deadline.expired():  # and not one of its own
            return Failed(key, FailureReason.DEADLINE, f"acting took more than {task.limits.seconds:g} s")
        return Failed(key, FailureReason.INFRA_ERROR, f"the environment '{task.environment}' failed: {error!r}")
    submission = Submission(
        reply=talk.reply,
        turns=tuple(talk.messages),
        completion_tokens=talk.sampled_tokens,
        files=files,
        stop=stop.value,
    )
    trajectories = (Trajectory(tuple(talk.segments)),)
    return Episode(key, task.id, task.domain, trajectories, stop, submission, dict(clock.seconds))


class _Talk:
    """The conversation so far, in messages for the environment and in tokens for the learner."""

    def __init__(self, task: Task, prompt: tuple[int, ...], renderer: Renderer) -> None:
        self.messages = list(task.messages)
        self.segments: list[Segment] = [Context(prompt)]
        self.sampled_tokens = 0
        self.reply = ""
        """The policy's last one."""
        self._tokens = list(prompt)
        self._limits = task.limits
        self._renderer = renderer

    async def run(self, sampler: Sampler, environment: Environment, clock: Clock) -> StopReason:
        for turn in range(1, self._limits.turns + 1):
            room = min(self._limits.tokens - len(self._tokens), self._limits.reply_tokens)
            with clock.time("sampling"):
                reply = await sampler.sample(self._tokens, room)
            self._add_reply(reply)
            if not (reply.ended or self._limits.answer_cut):
                return StopReason.TOKENS
            with clock.time("tool"):
                try:
                    left = Remaining(self._limits.turns - turn, self._limits.tokens - len(self._tokens))
                    answer = await environment.respond(self.reply, left)
                except SandboxKilled:
                    return StopReason.SANDBOX
            if answer is None:
                return StopReason.DONE
            if turn < self._limits.turns and not self._add_answer(answer, ended=reply.ended):
                return StopReason.TOKENS
        return StopReason.TURNS

    def _add_reply(self, reply: Sampled) -> None:
        tokens = [token for completion in reply.completions for token in completion.tokens]
        self.segments.extend(reply.completions)
        self.sampled_tokens += len(tokens)
        self._tokens += tokens
        self.reply = self._renderer.decode(tokens)
        self.messages.append(Message("assistant", self.reply))

    def _add_answer(self, answer: Message, *, ended: bool) -> bool:
        """False, and nothing added, where it would leave no room for another reply."""
        answer = Message(answer.role, self._renderer.cut(answer.content, self._limits.tool_tokens))
        bridge = self._renderer.bridge(self.messages, [answer], ended=ended)
        if len(self._tokens) + len(bridge) >= self._limits.tokens:
            return False
        self.segments.append(Context(bridge))
        self._tokens += bridge
        self.messages.append(answer)
        return True


__all__ = ["EngineError", "Sampler", "run_episode"]
