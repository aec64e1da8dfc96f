"""What `verifiers.sandbox` promises, kept by every back end that works here."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

import psutil
import pytest
import pytest_asyncio

from rollout_workers.sandbox import bubblewrap, docker
from rollout_workers.sandbox.pool import Backend, Pool
from rollout_workers.sandbox.select import choose
from verifiers.sandbox import Sandboxes, SandboxKilled, SandboxSpec, SandboxUnavailable

ROOT = Path(__file__).parents[2]
LIBC_SIGNALS = 0b11 << 31
"""32 and 33, glibc's own: make leaves them ignored in what it starts, and glibc lets nobody undo that."""


OTHERS: set[psutil.Process] = set()
"""Children that were there before a sandbox was: such as what an earlier file's engine left behind."""


COMMANDS = "head -qc 100 /proc/[0-9]*/cmdline | tr '\\0' ' '"
"""Of every process that can be seen; the agent's is its whole source."""


@pytest.fixture(scope="module", autouse=True)
def _others() -> None:
    OTHERS.update(set(psutil.Process().children(recursive=True)) - set(template()))


BACKENDS = [
    pytest.param("bubblewrap", marks=pytest.mark.required),
    pytest.param("docker", marks=[pytest.mark.slow, pytest.mark.required]),
    pytest.param("gvisor", marks=[pytest.mark.slow, pytest.mark.required]),
    pytest.param("plain", marks=[pytest.mark.slow, pytest.mark.required]),
]


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=BACKENDS,
)
async def sandboxes(request: pytest.FixtureRequest) -> AsyncIterator[Sandboxes]:
    plain = request.param == "plain"
    try:
        chosen = (await choose("docker" if plain else request.param))[0]
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    if not plain:
        yield chosen
        return
    with without_python(cast(docker.Docker, chosen)) as image:
        yield replace(cast(docker.Docker, chosen), image=image)


def is_plain(sandboxes: Sandboxes) -> bool:
    return isinstance(sandboxes, docker.Docker) and sandboxes.image != docker.BASE_IMAGE


@contextlib.contextmanager
def without_python(engine: docker.Docker) -> Iterator[str]:
    """The base image, less its Python."""
    client, name = engine.client, f"cwm-rl-test-plain:{os.getpid()}"
    removal = ["sh", "-c", "rm -f /usr/bin/python3*"]
    made = client.create_container(engine.image, entrypoint=removal, command=[], network_disabled=True)["Id"]
    try:
        client.start(made)
        client.wait(made)
        client.commit(made, *name.split(":"), changes=["ENTRYPOINT []"])
        yield name
    finally:
        client.remove_container(made, force=True)
        client.remove_image(name, force=True)


def processes_with(word: str) -> list[int]:
    """Processes of this host, sandboxes included, that have `word` in their command line."""
    return [p.pid for p in psutil.process_iter(["cmdline"]) if any(word in arg for arg in p.info["cmdline"] or [])]


def template() -> list[psutil.Process]:
    """bwrap and its process 1, of which sandboxes are forks."""
    walls = [child for child in psutil.Process().children() if child.name() == "bwrap"]
    return [*walls, *(inside for one in walls for inside in one.children())]


def descendants() -> set[psutil.Process]:
    """Processes of ours but `OTHERS`."""
    return set(psutil.Process().children(recursive=True)) - OTHERS


def leftovers(backend: Sandboxes, owner: int = os.getpid()) -> list[object]:
    """Control groups and containers of `owner`, and processes of ours but the template of sandboxes and `OTHERS`."""
    mark = f"cwm-rl-{owner}-"
    groups = [*Path("/sys/fs/cgroup").glob(f"{mark}*"), *Path("/sys/fs/cgroup").glob(f"*/{mark}*")]
    children = descendants() - set(template())
    containers: list[object] = []
    if isinstance(backend, docker.Docker):
        containers = backend.client.containers(all=True, filters={"label": f"cwm-rl.owner={owner}"})
    return [*groups, *children, *containers]


def kill_from_outside(backend: Sandboxes) -> None:
    """The one sandbox that is open."""
    if isinstance(backend, docker.Docker):
        (container,) = backend.client.containers(filters={"label": f"cwm-rl.owner={os.getpid()}"})
        backend.client.kill(container["Id"])
        return
    for child in descendants():
        with contextlib.suppress(psutil.NoSuchProcess):  # a child may die of its parent's death
            child.kill()


async def test_output_exit_code_and_stdin(sandboxes: Sandboxes) -> None:
    async with sandboxes.open() as box:
        result = await box.exec(["cat"], stdin=b"bytes\0\xff")
        assert (result.stdout, result.stderr, result.exit_code) == (b"bytes\0\xff", b"", 0)
        result = await box.exec("echo out; echo err >&2; exit 7")
        assert (result.stdout, result.stderr, result.exit_code) == (b"out\n", b"err\n", 7)
        assert not (result.truncated or result.timed_out or result.oom)


async def test_the_devices_of_standard_streams_can_be_opened(sandboxes: Sandboxes) -> None:
    async with sandboxes.open() as sandbox:
        text = "print(open('/dev/stdin').read(), file=open('/dev/stdout', 'w'))\nopen('/dev/stderr', 'w').write('b')"
        for _ in range(5):  # those to come are done by a spare
            ran = await sandbox.exec("cat /dev/stdin > /dev/stdout; echo; printf b > /dev/stderr", stdin=b"a")
            assert (ran.stdout, ran.stderr, ran.exit_code) == (b"a\n", b"b", 0), ran
            if not is_plain(sandboxes):
                assert await sandbox.python(text, stdin=b"a") == ran
        said = await sandbox.shell("echo a > /dev/stdout; echo b > /dev/stderr")
        assert (said.stdout, said.exit_code) == (b"a\nb\n", 0)
        for channel in ("/proc/1/fd/0", "/proc/1/fd/1"):  # the agent's own
            assert (await sandbox.exec(f"true < {channel} || true > {channel}")).exit_code != 0


async def test_large_stdin_is_fed_while_output_is_drained(sandboxes: Sandboxes) -> None:
    data = os.urandom(3 << 20)
    async with sandboxes.open() as box:
        assert (await box.exec(["cat"], stdin=data, output_limit=4 << 20)).stdout == data
        assert (await box.exec(["true"], stdin=data)).exit_code == 0  # nobody reads it


async def test_signals_and_commands_that_are_none(sandboxes: Sandboxes) -> None:
    async with sandboxes.open() as box:
        assert (await box.exec("kill -SEGV $$")).exit_code == -signal.SIGSEGV
        assert (await box.exec(["no-such-program"])).exit_code == 127
        assert (await box.exec(["/work"])).exit_code == 126
        assert (await box.exec(["true"], cwd="nowhere")).exit_code == 127
        with pytest.raises(ValueError, match="NUL"):
            await box.exec(["echo", "a\0b"])
        with pytest.raises(ValueError, match="at least one word"):
            await box.exec([])
        assert (await box.exec(f": {'a' * 100_000}")).exit_code == 0
        for long in (["true", "ä" * 65_536], "a" * 1_000_000):
            with pytest.raises(ValueError, match="longer than a program takes, 131071"):
                await box.exec(long)
        with pytest.raises(ValueError, match="longer than a program takes"):
            await box.exec(["true"], env={"A": "a" * (1 << 17)})
        for bad in ({"timeout": 0}, {"timeout": float("inf")}, {"timeout": float("nan")}, {"output_limit": -1}):
            with pytest.raises(ValueError, match="seconds"):
                await box.exec(["true"], **bad)


async def test_signal_dispositions_are_the_default_ones(sandboxes: Sandboxes) -> None:
    async with sandboxes.open() as box:
        result = await box.exec("yes | head -1; grep SigIgn /proc/self/status")
    line, *ignored = result.stdout.split()
    assert line == b"y"
    assert not any(int(mask, 16) & ~LIBC_SIGNALS for mask in ignored[1:])  # gVisor tells no mask


async def test_environment_is_clean_and_can_be_added_to(sandboxes: Sandboxes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CWM_RL_HOST_SECRET", "hunter2")
    async with sandboxes.open() as box:
        result = await box.exec('env; echo "$GREETING"; echo ~; pwd', env={"GREETING": "hello"})
    assert b"hunter2" not in result.stdout
    assert result.stdout.endswith(b"hello\n/tmp\n/work\n")


async def test_files_stay_between_commands_and_processes_do_not(sandboxes: Sandboxes) -> None:
    async with sandboxes.open(SandboxSpec(files={"pkg/mod.py": b"X = 41\n"})) as box:
        assert (await box.exec("echo $((40 + 2)) > answer; sleep 31415 & true")).exit_code == 0
        assert (await box.exec("cat pkg/mod.py answer")).stdout == b"X = 41\n42\n"
        assert b"31415" not in (await box.exec(COMMANDS)).stdout


async def test_a_shell_keeps_its_state_and_stands_still_between_calls(sandboxes: Sandboxes) -> None:
    async with sandboxes.open() as sandbox:
        assert (await sandbox.shell("cd /tmp; x='a b'; f() { echo \"<$x>\"; }; sleep 1234 & true")).exit_code == 0
        both = await sandbox.shell("f; pwd; echo err >&2; cat; jobs; (exit 3)")
        assert both.stdout.startswith(b"<a b>\n/tmp\nerr\n")
        assert b"sleep 1234" in both.stdout
        assert (both.exit_code, both.stderr, both.ended) == (3, b"", False)
        if is_plain(sandboxes):
            await sandbox.exec("true")
            lost = await sandbox.shell("echo $x")
            assert (lost.stdout, lost.ended) == (b"\n", True), "a command ends its session, and it says so"
            return
        await sandbox.shell("(while :; do echo >>/work/count; done) &")
        before = await sandbox.exec("wc -c </work/count")
        assert (await sandbox.exec("sleep 0.2; wc -c </work/count")).stdout == before.stdout, "it ran between calls"
        await sandbox.exec("sleep 4321 & setsid sleep 4321 &")
        found = await sandbox.shell(f"kill %2; {COMMANDS}")
        assert b"sleep 1234" in found.stdout
        assert b"sleep 4321" not in found.stdout, "what a command left behind is still there"


async def test_a_shell_that_ends_is_followed_by_another(sandboxes: Sandboxes) -> None:
    async with sandboxes.open() as sandbox:
        for text, code in (("x=1; exit 4", 4), ("x=1; set -e; false", 1), ("x=1; kill -9 $$", -9), ("exec true", 0)):
            ended = await sandbox.shell(text)
            assert (ended.exit_code, ended.ended) == (code, True)
            assert (await sandbox.shell('echo "<$x>"')).stdout == b"<>\n"
        slow = await sandbox.shell("x=1; echo begun; sleep 60 & sleep 60", timeout=0.5)
        assert (slow.stdout, slow.exit_code, slow.timed_out, slow.ended) == (b"begun\n", None, True, True)
        fresh = await sandbox.shell('echo "<$x>"; jobs')
        assert (fresh.stdout, fresh.ended) == (b"<>\n", False)
        assert (await sandbox.shell("echo 'it''s'; echo \"\\$\"\n\necho c # it's")).stdout == b"its\n$\nc\n"
        flood = await sandbox.shell("yes", timeout=0.5, output_limit=1000)
        assert (len(flood.stdout), flood.truncated, flood.timed_out) == (1000, True, True)
        long = await sandbox.shell(f"x={'a' * 1_000_000}; echo ${{#x}}")
        assert long.stdout == b"1000000\n"
        with pytest.raises(ValueError, match="NUL"):
            await sandbox.shell("a\0b")


async def test_a_new_file_is_made_where_there_is_none(sandboxes: Sandboxes) -> None:
    async with sandboxes.open() as sandbox:
        await sandbox.write("a", b"1", new=True)
        with pytest.raises(FileExistsError, match="a is in the sandbox"):
            await sandbox.write("a", b"2", new=True)
        with pytest.raises(FileNotFoundError):
            await sandbox.write("b/c", b"2", new=True)
        assert await sandbox.read("a") == b"1"


async def test_read_and_write(sandboxes: Sandboxes) -> None:
    async with sandboxes.open() as box:
        await box.write("a/b/c.bin", b"\0" * 100_000)
        assert await box.read("a/b/c.bin") == b"\0" * 100_000
        await box.write("a/b/c.bin", b"short")
        assert await box.read("./a//b/c.bin") == b"short"
        assert (await box.exec("cat a/b/c.bin; umask 077; echo private > secret")).stdout == b"short"
        assert await box.read("secret") == b"private\n"
        with pytest.raises(ValueError, match="larger than 4 bytes"):
            await box.read("a/b/c.bin", limit=4)
        with pytest.raises(FileNotFoundError, match=r"nowhere\.txt"):
            await box.read("nowhere.txt")
        with pytest.raises(ValueError, match="no regular file"):
            await box.read("a/b")
        for size in (80 << 20, 1 << 30):
            with pytest.raises(ValueError, match="disk"):
                await box.write("huge", bytes(size))
        assert (await box.exec(["echo", "alive"])).stdout == b"alive\n"


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "", ".", "a\0b"])
async def test_paths_that_leave_are_refused(sandboxes: Sandboxes, path: str) -> None:
    async with sandboxes.open() as box:
        with pytest.raises(ValueError, match="below the working directory"):
            await box.read(path)
        with pytest.raises(ValueError, match="below the working directory"):
            await box.write(path, b"x")


async def test_specs_that_cannot_be_are_refused(sandboxes: Sandboxes) -> None:
    for spec, name in ((SandboxSpec(pids=0), "pids"), (SandboxSpec(memory_bytes=1), "memory_bytes")):
        with pytest.raises(ValueError, match=name):
            async with sandboxes.open(spec):
                pass
    with pytest.raises(ValueError, match="below the working directory"):
        async with sandboxes.open(SandboxSpec(files={"../x": b""})):
            pass


async def test_a_writable_root_is_given_by_name_and_with_it_no_right(sandboxes: Sandboxes) -> None:
    spec = SandboxSpec(writable_root=True)
    if not isinstance(sandboxes, docker.Docker):
        with pytest.raises(ValueError, match="writable_root"):
            await sandboxes.open(spec).__aenter__()
        return
    async with sandboxes.open(spec) as sandbox:
        changed = await sandbox.exec("echo 1 >/usr/lib/python3/dist-packages/mine.py && echo 2 >/etc/mine && id -u")
        assert (changed.stdout, changed.stderr) == (b"0\n", b"")
        status = (await sandbox.exec(["cat", "/proc/self/status"])).stdout.decode()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 0
        refused = "chown 1 /etc/mine; mount -t tmpfs none /tmp; cat /proc/1/environ /proc/1/mem"
        for command in refused.split("; "):
            assert (await sandbox.exec(command)).exit_code != 0, command
        if sandboxes.runtime is None:  # gVisor lets a root kill process 1, and with it the sandbox
            await sandbox.exec("kill -9 1; kill -9 -1")
            assert (await sandbox.exec(["echo", "alive"])).stdout == b"alive\n"
    async with sandboxes.open(spec) as sandbox:
        assert (await sandbox.exec(["test", "-e", "/etc/mine"])).exit_code == 1


async def test_an_image_that_is_not_there_is_named(sandboxes: Sandboxes) -> None:
    with pytest.raises(SandboxUnavailable, match="no-such-image"):
        async with sandboxes.open(SandboxSpec(image="no-such-image:local")):
            pass


async def test_timeout_keeps_the_output_so_far(sandboxes: Sandboxes) -> None:
    async with sandboxes.open() as box:
        start = time.monotonic()
        result = await box.exec("echo begun; sleep 1000", timeout=0.5)
        assert result.timed_out
        assert (result.stdout, result.exit_code) == (b"begun\n", None)
        assert time.monotonic() - start < 10
        assert (await box.exec(["echo", "on"])).stdout == b"on\n"


async def test_cpu_seconds_end_a_process(sandboxes: Sandboxes) -> None:
    async with sandboxes.open(SandboxSpec(cpu_seconds=1)) as box:
        assert (await box.exec("while :; do :; done", timeout=60)).exit_code == -signal.SIGXCPU


async def test_commands_run_side_by_side_and_end_alone(sandboxes: Sandboxes) -> None:
    if is_plain(sandboxes):  # without an agent, they wait for each other
        async with sandboxes.open() as sandbox:
            both = await asyncio.gather(*(sandbox.exec(f"sleep 1; echo {name}") for name in ("one", "other")))
        assert [one.stdout for one in both] == [b"one\n", b"other\n"]
        return
    away = "" if isinstance(sandboxes, docker.Docker) and sandboxes.runtime else "setsid"  # gVisor knows no subreaper
    async with sandboxes.open() as sandbox:
        await sandbox.shell("x=kept; sleep 1234 &")
        start = time.monotonic()
        slow = asyncio.create_task(sandbox.exec("sleep 2; echo slow; setsid sleep 555 &"))
        other = asyncio.create_task(sandbox.exec("sleep 2; echo other"))
        talk = asyncio.create_task(sandbox.shell("sleep 2; echo $x"))
        await asyncio.sleep(0.3)
        for number in range(5):  # each of these ends, with what it left, while the others go on
            quick = await sandbox.exec(f"{away} sleep 777 & sleep 777 & echo {number}")
            assert quick.stdout == f"{number}\n".encode()
            await sandbox.write(f"f{number}", b"1")
        late = await sandbox.exec("sleep 777 & sleep 777", timeout=0.3)
        assert late.timed_out
        assert b"777" not in (await sandbox.exec(COMMANDS)).stdout
        assert [one.stdout for one in await asyncio.gather(slow, other, talk)] == [b"slow\n", b"other\n", b"kept\n"]
        assert time.monotonic() - start < 10
        left = (await sandbox.exec(COMMANDS)).stdout
        assert b"sleep 1234" in left
        assert b"555" not in left


async def test_a_command_that_has_to_wait_has_the_time_for_it(
    sandboxes: Sandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout_workers.sandbox.box.GRACE_SECONDS", 0.5)
    async with sandboxes.open() as sandbox:
        slow = asyncio.create_task(sandbox.exec("sleep 2; echo slow", timeout=5))
        await asyncio.sleep(0.1)
        quick = await sandbox.exec("echo quick", timeout=1)  # in gVisor it begins when the other has ended
        assert (quick.stdout, (await slow).stdout) == (b"quick\n", b"slow\n")


# gVisor's tmpfs counts no files.
@pytest.mark.parametrize("sandboxes", [one for one in BACKENDS if one.values != ("gvisor",)], indirect=True)
async def test_a_disk_has_no_more_files_than_it_has_room_for(sandboxes: Sandboxes) -> None:
    async with sandboxes.open(SandboxSpec(disk_bytes=4 << 20)) as box:
        result = await box.exec("i=0; while true > /work/$i; do i=$((i+1)); done; echo $i", timeout=60)
    assert not result.timed_out and 100 < int(result.stdout) <= 1024


# Without an agent each file takes a process of its own.
@pytest.mark.parametrize("sandboxes", BACKENDS[:3], indirect=True)
async def test_files_of_many_directories_are_put_in_place(sandboxes: Sandboxes) -> None:
    files = {f"a/b/c/{number}/f.py": b"x" for number in range(300)}
    async with sandboxes.open(SandboxSpec(files=files)) as box:
        assert await box.read("a/b/c/299/f.py") == b"x"


# Of a container the engine tells how it ended, once.
@pytest.mark.parametrize("sandboxes", BACKENDS[:1], indirect=True)
async def test_memory_that_ran_out_before_is_no_excuse_for_a_later_end(sandboxes: Sandboxes) -> None:
    async with sandboxes.open(SandboxSpec(memory_bytes=64 << 20)) as box:
        one = "python3 -c 'x = bytes(range(256)) * (40 << 12); import time; time.sleep(2)'"
        hungry = await box.exec(" & ".join([one] * 4) + "; wait", timeout=30)
        if not hungry.oom:
            pytest.skip("no control group bounds the memory of its processes together")
        assert (await box.exec(["true"])).exit_code == 0
        kill_from_outside(sandboxes)
        with pytest.raises(SandboxUnavailable):
            await box.exec(["true"])


async def test_jobs_with_any_name_and_in_any_number_do_not_end_the_sandbox(sandboxes: Sandboxes) -> None:
    rename = "import ctypes, time; ctypes.CDLL(None).prctl(15, b'\\xff)x'); time.sleep(99)"
    async with sandboxes.open(SandboxSpec(pids=16)) as sandbox:
        await sandbox.shell(f'python3 -c "{rename}" & sleep 0.3')
        assert (await sandbox.exec(["echo", "alive"])).stdout == b"alive\n"
        await sandbox.shell("for n in 1 2 3 4 5 6 7 8 9 10 11 12 13; do sleep 999 & done")
        await sandbox.write("a", b"1")
        assert await sandbox.read("a") == b"1"


async def test_output_can_be_seen_as_it_comes(sandboxes: Sandboxes) -> None:
    seen: list[tuple[float, bytes, bytes]] = []
    start = time.monotonic()

    def live(out: bytes, err: bytes) -> None:
        seen.append((time.monotonic() - start, out, err))

    async with sandboxes.open() as sandbox:
        result = await sandbox.exec("echo a; sleep 1; echo b >&2; head -c 300000 /dev/zero", live=live)
        assert (len(result.stdout), result.stderr, result.truncated) == (1 << 16, b"b\n", True)
        assert seen[0][1] == b"a\n"
        assert seen[0][0] < seen[-1][0] - 0.9
        assert b"".join(out for _, out, _ in seen) == result.stdout
        seen.clear()
        result = await sandbox.shell("echo a; sleep 1; echo b", live=live)
        assert (result.stdout, [out for _, out, _ in seen]) == (b"a\nb\n", [b"a\n", b"b\n"])


async def test_cancelling_a_command_leaves_nothing_and_ends_the_sandbox(sandboxes: Sandboxes) -> None:
    async with sandboxes.open() as box:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await box.exec("setsid sleep 31415.1 & setsid sleep 31415.1", timeout=60)
        with pytest.raises(SandboxUnavailable, match="cancel"):
            await box.exec(["true"])
    assert processes_with("31415.1") == []
    assert leftovers(sandboxes) == []


async def test_cancelling_at_any_moment_leaves_nothing(sandboxes: Sandboxes) -> None:
    async def life() -> None:
        async with sandboxes.open() as box:
            await box.exec("sleep 31415.2", timeout=60)

    for tenths in (0, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(tenths):
                await life()
    assert processes_with("31415.2") == []
    assert leftovers(sandboxes) == []


async def test_fifty_at_once(sandboxes: Sandboxes) -> None:
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:

        async def one(number: int) -> bytes:
            box = await stack.enter_async_context(sandboxes.open())
            await box.write("mine", str(number).encode())
            return (await box.exec("cat /work/*")).stdout

        tasks = [group.create_task(one(number)) for number in range(50)]
    assert [task.result() for task in tasks] == [str(number).encode() for number in range(50)]
    assert leftovers(sandboxes) == []


async def test_an_agent_killed_from_outside_is_not_the_commands_doing(sandboxes: Sandboxes) -> None:
    async with sandboxes.open() as box:
        kill_from_outside(sandboxes)
        with pytest.raises(SandboxUnavailable):
            await box.exec(["true"], timeout=5)
    assert leftovers(sandboxes) == []


async def test_a_frozen_sandbox_is_removed_by_force(sandboxes: Sandboxes) -> None:
    async with sandboxes.open() as box:
        if isinstance(sandboxes, docker.Docker):
            (container,) = sandboxes.client.containers(filters={"label": f"cwm-rl.owner={os.getpid()}"})
            sandboxes.client.pause(container["Id"])
        else:
            for child in descendants() - set(template()):
                child.suspend()
        with pytest.raises((TimeoutError, SandboxUnavailable)):  # without an agent, the engine says so at once
            async with asyncio.timeout(0.2):
                await box.exec(["true"])
    assert leftovers(sandboxes) == []


async def test_a_pool_hands_out_clean_sandboxes_and_leaves_none(sandboxes: Sandboxes) -> None:
    async with Pool(cast(Backend, sandboxes), 2) as pool:
        for number in range(4):
            async with pool.open(SandboxSpec(files={"given": b"%d" % number})) as box:
                said = await box.exec("ls -A; cat given; echo mine > left; ls /tmp; hostname >/tmp/left", timeout=20)
                assert said.stdout == b"given\n%d" % number
    assert leftovers(sandboxes) == []


@pytest.mark.required
async def test_a_frozen_template_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, _ = await choose("bubblewrap")
    for process in template():
        process.suspend()
    monkeypatch.setattr(bubblewrap, "START_SECONDS", 0.5)
    told = await asyncio.gather(*(backend.open().__aenter__() for _ in range(3)), return_exceptions=True)
    assert all(isinstance(one, SandboxUnavailable) for one in told)
    assert any("no sandbox within" in str(one) for one in told)
    monkeypatch.undo()
    async with backend.open() as box:
        assert (await box.exec(["true"])).exit_code == 0


async def test_an_agent_starved_of_memory_is_the_commands_doing(sandboxes: Sandboxes) -> None:
    if isinstance(sandboxes, bubblewrap.Bubblewrap) and sandboxes.cgroups is None:
        pytest.skip("no control groups here, so there is no evidence")
    spec = SandboxSpec(memory_bytes=48 << 20, disk_bytes=512 << 20)
    with pytest.raises(SandboxKilled, match="out of memory"):
        async with sandboxes.open(spec) as box:
            for number in range(40):  # files in memory stay when their writers are killed
                await box.exec(f"cat /dev/zero > file{number}", timeout=20)
    assert leftovers(sandboxes) == []


def killed_owner_of_a_sandbox(backend: str, image: str) -> int:
    """Process id of a service that was killed with -9 while a command of its sandbox ran; that one is gone, too."""
    program = f"""
import asyncio
from rollout_workers.sandbox.select import choose
async def main():
    backend, _ = await choose({backend!r}, image={image!r})
    async with backend.open() as box:
        print("ready", flush=True)
        await box.exec("setsid sleep " + "314" + "15.3", timeout=600)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"ready\n"
        if backend != "gvisor":  # whose processes this host does not see
            deadline = time.monotonic() + 20
            while not processes_with("31415.3"):
                assert time.monotonic() < deadline, "the command did not begin"
                time.sleep(0.01)
        owner.kill()
    deadline = time.monotonic() + 20
    while processes_with("31415.3") and time.monotonic() < deadline:
        time.sleep(0.01)
    return owner.pid


async def test_kill_minus_nine_of_the_owner_takes_its_sandboxes_along(sandboxes: Sandboxes) -> None:
    backend: Literal["gvisor", "docker", "bubblewrap"] = "bubblewrap"
    image = docker.BASE_IMAGE
    if isinstance(sandboxes, docker.Docker):
        backend, image = "gvisor" if sandboxes.runtime == docker.GVISOR else "docker", sandboxes.image
    owner = await asyncio.to_thread(killed_owner_of_a_sandbox, backend, image)
    assert processes_with("31415.3") == []
    _, why = await choose(backend)  # sweeps what the dead owner could not
    assert {"gvisor": "runsc"}.get(backend, backend) in why
    assert leftovers(sandboxes, owner) == []


@pytest.mark.required
async def test_without_a_back_end_the_sentence_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(SandboxUnavailable, match=r"docker\.io.*apt-get install bubblewrap"):
        await choose("auto")


@pytest.mark.required
async def test_auto_falls_back_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    backend, why = await choose("auto")
    assert isinstance(backend, bubblewrap.Bubblewrap)
    assert why.startswith("bubblewrap works")
    assert "no container engine answers" in why
