"""The proof of a sandbox can fail: without walls its attempts escape."""

import pytest
from plain_sandbox import PlainSandboxes

from rollout_workers.sandbox.selftest import Attempt, network, other_episodes, try_one


@pytest.mark.parametrize("run", [network, other_episodes])
async def test_without_walls_an_attempt_escapes(run: object) -> None:
    found = await try_one(Attempt("it", run), PlainSandboxes())  # type: ignore[arg-type]
    assert not found.contained
