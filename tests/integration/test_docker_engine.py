"""Engines in trouble: an engine of the tests' own is killed in the middle of a command, and has its disk filled."""

import asyncio
import contextlib
import gc
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rollout_workers.sandbox import docker
from verifiers.sandbox import SandboxSpec, SandboxUnavailable

pytestmark = [
    pytest.mark.slow,
    pytest.mark.required,
    # The SDK drops the socket of a connection that is refused.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
DISK = 700 << 20
"""Bytes; the base image takes more than a third of it."""


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """What the SDK dropped is found here, and not in the midst of another test."""
    yield
    gc.collect()


class Engine:
    """A dockerd on a small disk, with its own socket."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.address = folder, f"unix://{folder}/engine.sock"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        for stale in ("pidfile", "exec-root/containerd/containerd.pid"):  # the dead may not have been reaped yet
            (self.folder / stale).unlink(missing_ok=True)
        places = [f"--{name}={self.folder / name}" for name in ("data-root", "exec-root", "pidfile")]
        plain = ["--bridge=none", "--iptables=false", "--ip6tables=false", f"--config-file={self.folder / 'none'}"]
        (self.folder / "none").write_text("{}")
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(  # in a network of its own: it would take away the bridge of another engine
                ["unshare", "--net", "dockerd", f"--host={self.address}", *places, *plain], stdout=log, stderr=log
            )
        deadline = time.monotonic() + 60
        while self.do("info").returncode:
            assert time.monotonic() < deadline, (self.folder / "log").read_text()[-2000:]
            time.sleep(0.2)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)

    def do(self, *words: str, stdin: int | None = None) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["docker", "-H", self.address, *words], stdin=stdin, capture_output=True, timeout=120)

    def containers(self) -> list[bytes]:
        return self.do("ps", "-aq").stdout.split()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    if os.geteuid() or not shutil.which("dockerd"):
        pytest.skip("an engine of the tests' own needs root and dockerd: see deploy/install-docker.sh")
    if subprocess.run(["docker", "image", "inspect", docker.BASE_IMAGE], capture_output=True).returncode:
        pytest.skip(f"a running engine that has {docker.BASE_IMAGE} is needed: see deploy/install-docker.sh")
    with subprocess.Popen(["docker", "save", docker.BASE_IMAGE], stdout=subprocess.PIPE) as image:
        folder = tmp_path_factory.mktemp("engine")
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)], check=True)
        engine = Engine(folder)
        try:
            engine.start()
            assert image.stdout is not None
            loaded = engine.do("load", stdin=image.stdout.fileno())
            assert loaded.returncode == 0, loaded.stderr
            yield engine
        finally:
            image.kill()
            engine.stop()
            subprocess.run(["umount", "-R", "-l", str(folder)], check=True)


@pytest.fixture
async def sandboxes(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> docker.Docker:
    monkeypatch.setenv("DOCKER_HOST", engine.address)
    probe, backend = await docker.probe()
    assert backend is not None, probe.detail
    return backend


@pytest.mark.timeout(180)
async def test_an_engine_restarted_in_mid_command_ends_sandboxes_and_keeps_none(
    engine: Engine, sandboxes: docker.Docker
) -> None:
    async def episode() -> None:
        async with sandboxes.open() as sandbox:
            ready.set()
            await sandbox.exec(["sleep", "27182"], timeout=600)

    ready = asyncio.Event()
    task = asyncio.create_task(episode())
    await asyncio.wait_for(ready.wait(), 30)
    await asyncio.sleep(0.3)
    await asyncio.to_thread(engine.kill)
    with pytest.raises(SandboxUnavailable):
        await asyncio.wait_for(task, 30)
    with pytest.raises(SandboxUnavailable):
        async with sandboxes.open():
            pass
    await asyncio.to_thread(engine.start)
    await asyncio.to_thread(docker.sweep)
    assert engine.containers() == []
    async with sandboxes.open() as sandbox:
        assert (await sandbox.exec(["echo", "again"])).stdout == b"again\n"


@pytest.mark.timeout(180)
async def test_a_full_disk_is_told_from_the_engines_failure_and_leaves_nothing(
    engine: Engine, sandboxes: docker.Docker
) -> None:
    filler = engine.folder / "filler"
    async with sandboxes.open(SandboxSpec(writable_root=True)) as sandbox:
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(1 << 20))
        wrote = await sandbox.exec("echo x >/tmp/x && head -c 1000000 /dev/zero >/root/full")
        assert wrote.exit_code != 0
        assert b"No space left" in wrote.stderr
        assert (await sandbox.exec(["echo", "alive"])).stdout == b"alive\n"
        with pytest.raises(SandboxUnavailable, match="engine"):
            async with sandboxes.open():
                pass
    filler.unlink()
    assert engine.containers() == []
    async with sandboxes.open() as sandbox:
        assert (await sandbox.exec(["echo", "again"])).stdout == b"again\n"
