"""A sandbox that cannot start is unavailable, and nothing of it is left."""

import errno
import os
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest

from rollout_workers.sandbox import bubblewrap
from rollout_workers.sandbox.bubblewrap import Bubblewrap
from verifiers.sandbox import SandboxUnavailable


async def test_an_interpreter_that_compiles_nothing_is_a_sandbox_that_did_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreter = tmp_path / "python3"
    monkeypatch.setattr(bubblewrap, "SYSTEM_PYTHON", str(interpreter))
    for program, seconds, words in (("echo no >&2; exit 3", 9.0, "exit status 3. no"), ("exec sleep 60", 0.1, "timed")):
        interpreter.write_text(f"#!/bin/sh\n{program}\n")
        interpreter.chmod(0o700)
        monkeypatch.setattr(bubblewrap, "START_SECONDS", seconds)
        with pytest.raises(SandboxUnavailable, match=words):
            async with Bubblewrap("/bin/false").open():
                pass


@pytest.mark.parametrize(("owner", "name"), [(socket, "socketpair"), (os, "memfd_create")])
async def test_what_the_system_refuses_is_a_sandbox_that_did_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    endless = tmp_path / "bwrap"
    endless.write_text("#!/bin/sh\nexec sleep 60\n")
    endless.chmod(0o700)
    before, files = psutil.Process().children(), os.listdir("/proc/self/fd")
    monkeypatch.setattr(owner, name, refuse)
    with pytest.raises(SandboxUnavailable, match=r"did not start: .* Too many open files"):
        async with Bubblewrap(str(endless)).open():
            pass
    assert psutil.Process().children() == before
    assert os.listdir("/proc/self/fd") == files
