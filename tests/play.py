"""Demonstrations played against the real environments and graded by the real verifiers."""

from collections.abc import Sequence
from dataclasses import replace

from rl.tasks.generated import GeneratedSource
from rollout_workers.environments import ENVIRONMENTS, Remaining
from verifiers import registry
from verifiers.runner import Grader
from verifiers.sandbox import Sandboxes
from verifiers.task import Message, Submission
from verifiers.verdict import Verdict


async def played(
    source: GeneratedSource, index: int, mistakes: float, sandboxes: Sandboxes
) -> tuple[Verdict, list[tuple[Message, Message | None]]]:
    """The verdict on a demonstration's replies, and every answer it shows beside what the environment said."""
    demonstration = source.demonstration(index, mistakes)
    begin = next(at for at, message in enumerate(demonstration) if message.role == "assistant")
    task = replace(source.task(index), messages=tuple(demonstration[:begin]))  # it may switch reasoning off
    turns, answers, said = list(demonstration[:begin]), list[tuple[Message, Message | None]](), None
    async with ENVIRONMENTS[task.environment](task, sandboxes) as environment:
        for message in demonstration[begin:]:
            if message.role == "assistant":
                left = Remaining(task.limits.turns - 1 - len(replies(turns)), 500)
                said = await environment.respond(message.content, left)
            else:
                answers.append((message, said))
            turns.append(message)
        submission = Submission(replies(turns)[-1], tuple(turns), files=dict(environment.files))
    async with Grader(registry.load(task.verifier), sandboxes) as grader:
        return await grader.grade(task, submission), answers


def replies(messages: Sequence[Message]) -> list[str]:
    """What the policy says."""
    return [message.content for message in messages if message.role == "assistant"]
