"""The host believes nothing that comes out of a sandbox, and says whose doing its end was."""

import asyncio
import marshal
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_workers.sandbox.agent import FAILED, FRAME, MORE, REPLY
from rollout_workers.sandbox.box import Box, Disk, inside
from rollout_workers.sandbox.channel import Channel, finish
from rollout_workers.sandbox.docker import Demultiplexed
from rollout_workers.sandbox.filter import MACHINES, program
from verifiers.sandbox import ExecResult, SandboxKilled, SandboxSpec, SandboxUnavailable


@dataclass(frozen=True)
class Walls:
    evidence: str | None = None

    def oom_kills(self) -> int:
        return 0

    def survived(self) -> None: ...

    async def cause(self) -> str | None:
        return self.evidence


def frame(number: object, body: bytes = b"", *, stdout: int = 0, status: int = 0, flags: int = 0) -> bytes:
    return REPLY.pack(len(body), number, stdout, status, flags) + body


@asynccontextmanager
async def talking_to(answer: Callable[[dict[str, object]], bytes], walls: Walls = Walls()) -> AsyncIterator[Box]:
    """A box whose agent answers each request with `answer(header)`, whatever that is; b"" hangs up."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=theirs)

    async def agent() -> None:
        while True:
            header, body = FRAME.unpack(await reader.readexactly(FRAME.size))
            reply = answer(marshal.loads(await reader.readexactly(header)))
            await reader.readexactly(body)
            if not reply:
                writer.close()
                return
            writer.write(reply)

    task = asyncio.create_task(agent())
    try:
        async with Channel.over(ours) as channel:
            yield Box(channel, walls, room=1 << 20)
    finally:
        task.cancel()
        writer.close()
        await asyncio.gather(task, writer.wait_closed(), return_exceptions=True)


async def test_an_honest_reply() -> None:
    async with talking_to(lambda ask: frame(ask["id"], b"oute", status=3, stdout=2)) as box:
        assert await box.exec(["x"]) == ExecResult(b"ou", b"te", 3)
        assert await box.exec(["x"]) == ExecResult(b"ou", b"te", 3)


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\xff" * REPLY.size,
        b"\0" * REPLY.size,
        frame(99),
        frame(1, status=10_000),
        frame(1, b"four", stdout=5),
        frame(1, b"x" * 201),
        frame(1, b"x" * 1001, flags=FAILED),
        frame(1, flags=2 * MORE),
        frame(1, flags=MORE),
    ],
)
async def test_nonsense_is_the_commands_doing(nonsense: bytes) -> None:
    async with talking_to(lambda _: nonsense) as box:
        for _ in range(2):  # dead is dead
            with pytest.raises(SandboxKilled):
                await box.exec(["x"], output_limit=100)


async def test_an_end_without_evidence_is_ours() -> None:
    async with talking_to(lambda _: b"") as box:
        with pytest.raises(SandboxUnavailable, match="hung up"):
            await box.exec(["x"])


async def test_an_end_with_evidence_is_theirs() -> None:
    async with talking_to(lambda _: b"", Walls("out of memory: 3 killed")) as box:
        with pytest.raises(SandboxKilled, match="out of memory"):
            await box.exec(["x"])


async def test_an_agent_that_cannot_go_on_says_so() -> None:
    async with talking_to(lambda ask: frame(ask["id"], b"OSError: fork", flags=FAILED)) as box:
        with pytest.raises(SandboxUnavailable, match="fork"):
            await box.exec(["x"])


@pytest.mark.parametrize("listed", [b"fab../x\0", b"fother\0", b"f../x\0", b"f/etc/x\0"])
async def test_what_an_agent_lists_goes_nowhere_else(listed: bytes, tmp_path: Path) -> None:
    def answer(ask: dict[str, object]) -> bytes:
        body = listed if ask["op"] == "list" else b"data"
        return frame(ask["id"], body, stdout=len(body))

    async with talking_to(answer) as box:
        with pytest.raises(ValueError, match=r"below the working directory|does not lie in ab"):
            await box.copy_out("ab", tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == []


async def test_a_failure_before_any_command_is_ours_whatever_it_is() -> None:
    async with talking_to(lambda _: frame(0)) as box:
        with pytest.raises(SandboxUnavailable, match="did not start"):
            await Box.begin(box._channel, Walls("out of memory"), SandboxSpec(), uid=None, memory=1)


@given(st.lists(st.sampled_from(["a", "b", "..", ".", "", "c.py"]), max_size=6))
def test_a_path_stays_inside_or_is_refused(parts: list[str]) -> None:
    path = "/".join(parts)
    try:
        clean = inside(path)
    except ValueError:
        assert path.startswith("/") or ".." in parts or not set(parts) - {"", "."}
    else:
        assert not {"", ".", ".."} & set(clean.split("/"))


@given(st.integers(1 << 20, 1 << 40))
def test_disk_shares_add_up(size: int) -> None:
    disk = Disk.of(SandboxSpec(disk_bytes=size))
    assert disk.work + disk.tmp == size
    assert min(disk) > 0


@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(min_size=1, max_size=50)), max_size=20))
def test_only_standard_output_comes_through_the_engines_stream(pieces: list[tuple[int, bytes]]) -> None:
    async def read() -> bytes:
        reader = asyncio.StreamReader()
        for stream, data in pieces:
            reader.feed_data(struct.pack("!BxxxI", stream, len(data)) + data)
        return await Demultiplexed(reader).readexactly(len(expected))

    expected = b"".join(data for stream, data in pieces if stream == 1)
    with asyncio.Runner() as runner:
        assert runner.run(read()) == expected


@pytest.mark.parametrize("machine", MACHINES)
def test_the_filter_is_whole_instructions_that_jump_forward_and_land_inside(machine: str) -> None:
    code = program(machine)
    steps = [struct.unpack_from("=HBBI", code, at) for at in range(0, len(code), 8)]
    assert len(code) % 8 == 0
    assert 10 < len(steps) < 4096
    assert all(at + 1 + max(yes, no) < len(steps) for at, (op, yes, no, _) in enumerate(steps) if op != 0x06)
    assert steps[-1][0] == 0x06


def test_an_unknown_machine_is_refused() -> None:
    with pytest.raises(ValueError, match="vax"):
        program("vax")


async def test_finish_outlasts_its_cancellation() -> None:
    done: list[int] = []

    async def work() -> None:
        await asyncio.sleep(0.05)
        done.append(1)

    task = asyncio.create_task(finish(work()))
    for _ in range(3):
        await asyncio.sleep(0.01)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == [1]
