"""The channel into an image without Python: every request is a program that the engine itself starts inside.

    host --call--> sh -c WRAPPER, under the commands' uid --> the program --> whatever else has that uid is killed

Slow, some 150 ms a call here, and poorer: calls wait for each other, a command ends the shell's session and
the next call of the shell says so, and a code above 128 is taken for the signal that a shell means by it. It needs
`sh`, and beside it `cat`, `find`, `head`, `mkdir`, `rm`, `sleep`, `wc`. Process 1 is another user's, or cannot be
signalled from inside.
"""

import asyncio
import errno
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Protocol

from rollout_workers.sandbox.agent import OOM_COUNTERS, OWN_ENV, evaluation
from rollout_workers.sandbox.channel import ChannelClosedError, ChannelNonsenseError, Reply
from verifiers.sandbox import SandboxUnavailable

KEEPER: Final = ["sh", "-c", "exec 3<&0; until cat <&3 >/dev/null & wait $!; do :; done"]
"""Process 1: keeps the container until its input ends, which is its owner's end, and takes in orphans as it waits.

Root's commands, and the end of any, kill the process that it waits for; then it starts another.
"""
END_SECONDS: Final = 5.0
KILL: Final = ["sh", "-c", "kill -9 -1"]
WRAPPER: Final = 'cd -- "$1" || exit 127; shift; "$@"; code=$?; kill -9 -1 2>/dev/null; exit $code'
SHELL: Final = "exec 2>&1; command -v bash >/dev/null && exec bash -s; exec sh -s"
STILL: Final = b"command kill -CONT -1 2>/dev/null\n%bcwm_rl=$?; command kill -STOP -1 2>/dev/null\n%b"
TELL: Final = b"command printf '\\000%%s %%03d\\000' %b $cwm_rl\n"
"""The shell's last word on a call. NUL and a number used once: nothing that it prints by accident."""
TOLD: Final = 38
"""Bytes of it: NUL, 32 digits, a space, three digits, NUL."""
NO_LINK: Final = f"""
set -f; path=$1; here=; IFS=/
for part in $path; do
    here=${{here:+$here/}}$part
    if [ -L "$here" ]; then exit {errno.ELOOP}; fi
done
unset IFS; case $path in */*) above=${{path%/*}} ;; *) above=. ;; esac
"""
READ: Final = f"""{NO_LINK}
[ -e "$path" ] || exit {errno.ENOENT}
[ -f "$path" ] || exit {errno.EINVAL}
[ "$(wc -c <"$path")" -le "$2" ] || exit {errno.EFBIG}
exec cat -- "$path"
"""
WRITE: Final = f"""{NO_LINK}
if [ "$3" = new ]; then
    [ -d "$above" ] || exit {errno.ENOENT}
    [ ! -e "$path" ] || exit {errno.EEXIST}
else
    mkdir -p -- "$above" 2>/dev/null || exit {errno.ENOTDIR}
    [ ! -d "$path" ] || exit {errno.EISDIR}
    rm -f -- "$path"
fi
head -c "$2" >"$path" || exit {errno.ENOSPC}
[ "$(wc -c <"$path")" -eq "$2" ] || exit {errno.ENOSPC}
"""
LIST: Final = f"""{NO_LINK}
[ -d "$path" ] || exit {errno.ENOENT}
[ -z "$(find "$path" -mindepth "$2" -print | head -c 1)" ] || exit {errno.ENAMETOOLONG}
find "$path" -type f -exec printf 'f%s\\0' {{}} + && find "$path" ! -type f ! -type d -exec printf 'x%s\\0' {{}} +
"""


class Running(Protocol):
    """A program that the engine has started."""

    async def piece(self) -> tuple[int, bytes] | None:
        """Which stream (1, 2), and bytes of it; None at the end. Raises OSError, ChannelNonsenseError."""
        ...

    async def feed(self, data: bytes, *, end: bool) -> None:
        """Write to its standard input, and close it at the `end`. Raises OSError."""
        ...

    async def exit_code(self) -> int | None:
        """None if nobody knows. Raises SandboxUnavailable."""
        ...

    def close(self) -> None:
        """Let go of it; it may run on."""
        ...


class Starter(Protocol):
    """The engine's way to run a program inside."""

    async def run(self, argv: Sequence[str], env: Mapping[str, str]) -> Running:
        """Start it in the working directory, as the commands' user. Raises SandboxUnavailable."""
        ...


class _Outputs:
    """What is kept of both, and shown while it comes."""

    def __init__(self, limit: int, live: Callable[[bytes, bytes], None] | None) -> None:
        self.kept, self._limit, self._live, self.truncated = (bytearray(), bytearray()), limit, live, False

    def add(self, stream: int, data: bytes) -> None:
        kept = self.kept[stream - 1]
        piece = data[: max(0, self._limit - len(kept))]
        self.truncated |= len(piece) < len(data)
        kept += piece
        if self._live is not None and piece:
            self._live(piece if stream == 1 else b"", piece if stream == 2 else b"")


class PlainChannel:
    """What `channel.Channel` does, by an engine's means alone; for `box.Box`."""

    def __init__(self, starter: Starter) -> None:
        self._starter, self._turn, self._end = starter, asyncio.Lock(), False
        self._shell: Running | None = None
        self._lost, self._kills = False, 0

    async def call(
        self,
        request: Mapping[str, Any],
        body: bytes = b"",
        *,
        reply_limit: int,
        timeout: float,
        live: Callable[[bytes, bytes], None] | None = None,
    ) -> Reply:
        """See `channel.Channel.call`."""
        async with asyncio.timeout(timeout), self._turn:
            if self._end:
                raise ChannelClosedError("the channel was closed")
            try:
                return await self._answer(request, body, reply_limit, live)
            except TimeoutError:
                raise
            except (OSError, SandboxUnavailable) as error:
                raise ChannelClosedError(f"the engine's stream broke: {error}") from error

    async def _answer(
        self, request: Mapping[str, Any], body: bytes, limit: int, live: Callable[[bytes, bytes], None] | None
    ) -> Reply:
        outputs = _Outputs(request.get("limit", limit), live)
        seconds = request.get("timeout", END_SECONDS * 4)
        match request["op"]:
            case "exec":
                words = [WRAPPER, "sh", request["cwd"], *request["argv"]]
                return await self._command(words, request["env"], body, seconds, outputs)
            case "python":
                words = [WRAPPER, "sh", ".", "python3", "-I", "-c", request["source"]]
                return await self._command(words, {}, body, seconds, outputs)
            case "shell":
                return await self._converse(body, seconds, outputs)
            case "read":
                return await self._files([READ, "sh", request["path"], str(limit)], b"", outputs)
            case "list":
                return await self._files([LIST, "sh", request["path"] or ".", str(request["depth"])], b"", outputs)
            case "write":
                return await self._write(request["files"], body, "new" if request["new"] else "")
        return Reply(b"", 0, 0, False, False, False, False, False)  # `begin`, `ping`: no agent has to be asked

    async def _command(
        self, words: list[str], env: Mapping[str, str], stdin: bytes, seconds: float, outputs: _Outputs
    ) -> Reply:
        """Run it; nothing of this user is left afterwards, not even the shell."""
        if self._shell is not None:
            self._end_shell()
            self._lost = True
        code = await self._run(words, env, stdin, seconds, outputs)
        await self._kill()  # the wrapper is at the command's mercy
        return await self._reply(code, outputs)

    async def _files(self, words: list[str], stdin: bytes, outputs: _Outputs) -> Reply:
        code = await self._run(words, {}, stdin, END_SECONDS * 4, outputs)
        kept = bytes(outputs.kept[0])
        return Reply(kept, len(kept), code or 0, code is None, outputs.truncated, False, False, False)

    async def _write(self, files: Sequence[tuple[str, int]], body: bytes, new: str) -> Reply:
        start, reply = 0, Reply(b"", 0, 0, False, False, False, False, False)
        for path, size in files:
            data = body[start : start + size]
            reply = (await self._files([WRITE, "sh", path, str(size), new], data, _Outputs(0, None)))._replace(body=b"")
            if reply.status or reply.timed_out:
                break
            start += size
        return reply

    async def _run(
        self, words: list[str], env: Mapping[str, str], stdin: bytes, seconds: float, outputs: _Outputs
    ) -> int | None:
        """The exit code of `sh -c` with these words; None if it ran out of time, and was killed."""
        async with self._started(["sh", "-c", *words], env) as running:
            feeding = asyncio.create_task(_fed(running, stdin))
            try:
                async with asyncio.timeout(seconds):
                    while (piece := await running.piece()) is not None:
                        outputs.add(*piece)
                    return await running.exit_code()
            except TimeoutError:
                await self._kill()
                with suppress(TimeoutError):
                    async with asyncio.timeout(END_SECONDS):
                        while (piece := await running.piece()) is not None:
                            outputs.add(*piece)
                return None
            finally:
                feeding.cancel()

    async def _converse(self, text: bytes, seconds: float, outputs: _Outputs) -> Reply:
        """Have the shell do it. Its jobs are stopped when it has, and go on when it is asked again."""
        lost, self._lost = self._lost, False
        if self._shell is None:
            self._shell = await self._starter.run(["sh", "-c", SHELL], OWN_ENV)
        shell, mark = self._shell, secrets.token_hex(16).encode()
        script = STILL % (evaluation(text, "sh"), TELL % mark)
        feeding = asyncio.create_task(_fed(shell, script, end=False))
        code = None
        try:
            async with asyncio.timeout(seconds):
                code, ended = await self._listen(shell, b"\0" + mark + b" ", outputs)
        except TimeoutError:
            ended = True
        finally:
            feeding.cancel()
        if ended:
            self._end_shell()
            await self._kill()
        return (await self._reply(code, outputs))._replace(ended=ended or lost)

    async def _listen(self, shell: Running, mark: bytes, outputs: _Outputs) -> tuple[int | None, bool]:
        """Take its output until it tells an exit code, or is gone; the code, and whether it is gone."""
        held = b""
        while (piece := await shell.piece()) is not None:
            held += piece[1]
            at = held.find(mark)
            if at < 0:  # some of the mark may have come
                at = next(
                    (at for at in range(max(0, len(held) - TOLD), len(held)) if mark.startswith(held[at:])), len(held)
                )
            elif len(held) - at >= TOLD:
                outputs.add(1, held[:at])
                digits = held[at + len(mark) :][:3]
                return int(digits) & 0xFF if digits.isdigit() else 1, False
            if at:
                outputs.add(1, held[:at])
                held = held[at:]
        outputs.add(1, held)
        return await shell.exit_code(), True

    async def _reply(self, code: int | None, outputs: _Outputs) -> Reply:
        killed = False
        if code is None or code > 128:
            before, self._kills = self._kills, await self._oom_kills()
            killed = self._kills > before
        out, err = map(bytes, outputs.kept)
        status = 0 if code is None else 128 - code if 128 < code <= 192 else code
        return Reply(out + err, len(out), status, code is None, outputs.truncated, killed, False, False)

    async def _oom_kills(self) -> int:
        """As the sandbox's control group counts them."""
        counted = _Outputs(4096, None)
        await self._run([f"cat {' '.join(OOM_COUNTERS)} 2>/dev/null"], {}, b"", END_SECONDS, counted)
        lines = (line.split() for line in counted.kept[0].splitlines())
        return sum(int(words[1]) for words in lines if len(words) == 2 and words[0] == b"oom_kill")

    async def _kill(self) -> None:
        """Everything of the commands' user. Raises ChannelNonsenseError."""
        async with asyncio.timeout(END_SECONDS), self._started(KILL, {}) as running:
            while await running.piece() is not None:
                pass
            if (code := await running.exit_code()) not in (0, 1):  # 1: there was nobody to kill
                raise ChannelNonsenseError(f"what a command has left could not be killed (exit code {code})")

    @asynccontextmanager
    async def _started(self, argv: Sequence[str], env: Mapping[str, str]) -> AsyncIterator[Running]:
        running = await self._starter.run(argv, {**OWN_ENV, **env})
        try:
            yield running
        finally:
            running.close()

    def _end_shell(self) -> None:
        if self._shell is not None:
            self._shell.close()
            self._shell = None

    def close(self) -> None:
        """No more calls. What runs ends with the container."""
        self._end = True
        self._end_shell()


async def _fed(running: Running, data: bytes, *, end: bool = True) -> None:
    with suppress(OSError):  # it need not read
        await running.feed(data, end=end)
