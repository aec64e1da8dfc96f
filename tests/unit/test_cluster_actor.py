"""What becomes of Ray's errors and addresses; nothing here starts Ray."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from ray import exceptions

from rl.cluster import Actor, ActorLost, joined, offered


def actor_that_raises(error: Exception) -> Actor:
    def remote() -> "asyncio.Future[Any]":
        reply = asyncio.get_running_loop().create_future()
        reply.set_exception(error)
        return reply

    return Actor("worker-0", SimpleNamespace(look=SimpleNamespace(remote=remote)))


def task_error(text: str, cause: Exception) -> exceptions.RayTaskError:
    return exceptions.RayTaskError("Learner.__init__", text, cause, pid=1, ip="127.0.0.1")


TRACE = "ray::Learner.__init__() (pid=1)\n  File x.py, line 1\nOSError: no weights in models/x\n"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (exceptions.ActorDiedError(), "worker-0 died: The actor died unexpectedly before finishing this task."),
        (exceptions.ActorDiedError(task_error(TRACE, OSError())), "worker-0 died: OSError: no weights in models/x"),
        (exceptions.OutOfMemoryError("Task was killed: memory is low.\nSee the manual."), "Task was killed: memory"),
        (exceptions.ActorUnschedulableError("no such node"), "not schedulable: no such node"),
        (exceptions.RuntimeEnvSetupError("no"), "Failed to set up runtime environment."),
    ],
)
async def test_an_actor_that_is_gone_is_lost_for_a_reason(error: Exception, words: str) -> None:
    with pytest.raises(ActorLost) as caught:
        await actor_that_raises(error).call("look")
    assert words in str(caught.value)


async def test_what_a_method_raised_is_raised() -> None:
    with pytest.raises(ZeroDivisionError, match="by zero"):
        await actor_that_raises(task_error(TRACE, ZeroDivisionError("by zero"))).call("look")


def test_a_local_ray_offers_whole_processors() -> None:
    assert offered(10000.5, 0.5) == {"num_cpus": 10001, "num_gpus": 1}
    assert offered(0.1, 2)["num_gpus"] == 2
    assert "num_gpus" not in offered(1, 0)


@pytest.mark.parametrize(
    ("address", "environment", "found"),
    [
        (None, None, None),
        (None, "", None),
        (None, "local", None),
        ("local", "10.0.0.1:6379", None),
        (None, "10.0.0.1:6379", "10.0.0.1:6379"),
        ("", "auto", "auto"),
        ("10.0.0.2:6379", "local", "10.0.0.2:6379"),
    ],
)
def test_which_cluster_is_joined(
    monkeypatch: pytest.MonkeyPatch, address: str | None, environment: str | None, found: str | None
) -> None:
    if environment is not None:
        monkeypatch.setenv("RAY_ADDRESS", environment)
    assert joined(address) == found
