"""The inside of a sandbox: process 1 of its pid namespace, handed in to `python3 -I -S` as source or bytecode.

    host --frame--> receive --> exec | read | write, each in a confined child --> kill its tree --> send --frame--> host
                            --> shell, a confined child that stays --> freeze its tree --> send --frame--> host

A request is two big-endian uint32 (header length, body length), a marshalled dictionary, raw bytes; a reply is the
fixed header `REPLY` and raw bytes. Requests are numbered, run side by side and are answered as they end; one that is
`live` is answered in pieces, all but the last marked MORE. The agent believes the host, never the other way round.
Everything that touches what commands can touch runs in a forked child under the commands' own uid and limits; the
agent itself only moves bytes, kills and reaps. As process 1 it cannot be signalled from inside, inherits every orphan,
and takes the whole namespace with it when it exits, which it does as soon as the host hangs up.
Standard library only; Python 3.8 or later, because images bring their own. Every sandbox pays for what is imported
here: `json` (which brings `re`), `contextlib` and `signal` (which brings `enum`) would double the start.
"""

from __future__ import annotations

import ctypes
import errno
import marshal
import os
import resource
import select
import stat
import struct
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterator
    from typing import Any, NoReturn
else:
    import _signal as signal

FRAME = struct.Struct("!II")
STATUS = struct.Struct("!i")
REPLY = struct.Struct("!IIIhB")  # length of the body, number of the request, how much of it is stdout, status, flags
TIMED_OUT, TRUNCATED, OOM, FAILED, ENDED, MORE = 1, 2, 4, 8, 16, 32
ERROR_LIMIT = 1000
READY = b"\0"
"""What a fork of the template says before it is an agent; see `template`."""
KEPT = (5, 6, 7)
"""CAP_KILL, CAP_SETGID, CAP_SETUID: what an agent that is root keeps."""
HOST_IN, HOST_OUT = 0, 1
WORK = "/work"
CHUNK = 1 << 18
SWEEP_SECONDS = 5.0
LONG_TEXT = 4096
SUBREAPER = (36, 1, 0, 0, 0)  # of prctl: orphans come back to this process
FILE_SECONDS = 20.0
UNCONFINED = 125  # a child's exit code when it could not enter its confinement, and so ran nothing
DEFAULT_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
OWN_ENV = {"HOME": "/tmp", "TMPDIR": "/tmp", "USER": "sandbox", "LOGNAME": "sandbox"}  # noqa: S108
OOM_COUNTERS = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")

SAY = b"command echo $? >&3\n"
INHERITED = (signal.SIGXFSZ, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
"""Python ignores the first; a shell ignores the others for what it starts in the background."""

libc = ctypes.CDLL(None, use_errno=True)


class SurvivorsError(Exception):
    """Processes that SIGKILL did not end in time."""


def take(size: int) -> bytes:
    """Exactly `size` bytes from the host; exits when it hung up."""
    buffer = bytearray()
    while len(buffer) < size:
        piece = os.read(HOST_IN, min(size - len(buffer), CHUNK))
        if not piece:
            os._exit(0)
        buffer += piece
    return bytes(buffer)


def receive() -> tuple[dict[str, Any], bytes]:
    """The next request: header and body."""
    header, body = FRAME.unpack(take(FRAME.size))
    request: dict[str, Any] = marshal.loads(take(header))  # noqa: S302 - the host's word
    return request, take(body)


def send(number: int, reply: tuple[int, int, int], body: bytes) -> None:
    """One reply: bytes of standard output, status, flags."""
    write_all(HOST_OUT, REPLY.pack(len(body), number, *reply) + body)


# --- confinement ------------------------------------------------------------------------------------------------


def must(result: int, what: str) -> None:
    """Raise OSError if a C function failed."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def capabilities(keep: int) -> None:
    """Have these and no others; no later program gets more, as it may gain no privileges."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)(keep, keep, 0, 0, 0, 0)
    must(libc.capset(header, sets), "capset")


def harden(program: bytes) -> None:
    """Give up for good what neither the agent nor its children need; `program` is a seccomp filter in BPF."""
    must(libc.prctl(4, 0, 0, 0, 0), "PR_SET_DUMPABLE")  # /proc/1 belongs to root, and nobody may trace us
    must(libc.prctl(38, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    capabilities(sum(1 << capability for capability in KEPT) if os.getuid() == 0 else 0)
    code = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))

    filter_ = Program(len(program) // 8, ctypes.addressof(code))
    must(libc.prctl(22, 2, ctypes.byref(filter_), 0, 0), "PR_SET_SECCOMP")


class Confinement:
    """What every child enters before it touches anything: `uid` (None keeps the agent's own) and `limits`."""

    def __init__(self, uid: int | None, limits: dict[str, list[int]]) -> None:
        self.uid = uid
        self.limits = {getattr(resource, name): (soft, hard) for name, (soft, hard) in limits.items()}

    def limit(self) -> None:
        """Own session, killed first when memory runs out, limited. Raises OSError, ValueError."""
        os.setsid()
        if self.uid is None:
            must(libc.prctl(4, 1, 0, 0, 0), "PR_SET_DUMPABLE")  # or the next file is not ours to write
        score = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(score, b"1000")
        os.close(score)
        for name, pair in self.limits.items():
            resource.setrlimit(name, pair)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # exec would pass on that the agent ignores it

    def give_up(self) -> None:
        """Unprivileged from here on. Raises OSError."""
        if self.uid is not None:
            os.setresgid(self.uid, self.uid, self.uid)
            os.setresuid(self.uid, self.uid, self.uid)
            if self.uid == 0:  # which keeps the agent's capabilities for it
                capabilities(0)


# --- running children -------------------------------------------------------------------------------------------


class Stream:
    """One output of a child: its first `limit` bytes are kept, the rest is read and thrown away."""

    def __init__(self, fd: int, limit: int) -> None:
        os.set_blocking(fd, False)
        self.fd, self.room, self.kept, self.truncated = fd, limit, bytearray(), False

    def drain(self) -> bool:
        """Read once; False at the end of the stream."""
        try:
            piece = os.read(self.fd, CHUNK)
        except BlockingIOError:
            return True
        self.kept += piece[: self.room]
        self.truncated |= len(piece) > self.room
        self.room = max(0, self.room - len(piece))
        return bool(piece)

    def finish(self) -> None:
        """Take what is left once every writer is dead or frozen: at most one pipe full."""
        while True:
            before = len(self.kept), self.truncated
            if not self.drain() or (len(self.kept), self.truncated) == before or self.truncated:
                break


class Shell:
    """A shell that keeps its state from one call to the next. It reads its script from a pipe, one `eval` a call."""

    def __init__(self, name: str, pid: int, fds: tuple[int, int, int, int]) -> None:
        self.name, self.pid, self.gone, self.lost = name, pid, False, False
        self.script, self.said, self.output, self.told = self.fds = fds
        os.set_blocking(self.said, False)

    def code(self) -> int | None:
        """The exit code of the command, as a wait status, once the shell has said it."""
        try:
            line = os.read(self.said, 64)
        except BlockingIOError:
            return None
        code = line.strip()[-3:]  # commands can reach this pipe if they try hard; they fool themselves alone
        return (int(code) & 0xFF) << 8 if code.isdigit() else None


class Job:
    """A request whose answer depends on a child: `pid`, or under a supervisor of that pid."""

    def __init__(
        self,
        number: int,
        pid: int,
        deadline: float,
        streams: tuple[Stream, ...],
        *,
        supervised: bool,
        of_shell: bool = False,
    ) -> None:
        self.number, self.pid, self.deadline, self.streams = number, pid, deadline, streams
        self.supervised, self.of_shell = supervised, of_shell
        self.live = self.outputs_only = False
        self.feed: memoryview | None = None
        self.stdin = self.told = -1
        self.status: int | None = None


class Spare:
    """A child that waits for its orders, still under the agent's uid.

    It is there only while nothing is that could tamper with it: a command of the same uid, or a supervised one.
    """

    def __init__(self, pid: int, orders: int, fds: tuple[int, int, int]) -> None:
        self.pid, self.orders, self.fds = pid, orders, fds


class Runner:
    """Runs children, several at once, and leaves no process of a finished one behind; a shell is frozen meanwhile."""

    def __init__(self, confinement: Confinement) -> None:
        self.confinement = confinement
        self.env = {**DEFAULT_ENV, **os.environ, **OWN_ENV}
        self.jobs: list[Job] = []
        self.shell: Shell | None = None
        self.alone = False
        self.delayed: list[tuple[dict[str, Any], bytes]] = []
        self.handlers: dict[int, Callable[[int], None]] = {}
        self.poll = select.poll()
        self.wake, wake_in = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(wake_in, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_in, warn_on_full_buffer=False)
        self.poll.register(HOST_IN, select.POLLIN)
        self.watch(self.wake, select.POLLIN, lambda _: self.reap())
        self.can_supervise = can_supervise()
        self.spare: Spare | None = None
        self.ran = 0
        self.oom_counter = oom_counter()
        self.oom_kills = oom_kills(self.oom_counter)

    def watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """Call `handler` with what `poll` says of `fd`."""
        self.handlers[fd] = handler
        self.poll.register(fd, events)

    def forget(self, fd: int, *, close: bool = True) -> None:
        """Watch `fd` no longer."""
        if self.handlers.pop(fd, None) is not None:
            self.poll.unregister(fd)
        if close:
            os.close(fd)

    def next_request(self) -> tuple[dict[str, Any], bytes]:
        """Go on with the jobs until the host asks for something."""
        while True:
            left = min((job.deadline for job in self.jobs), default=None)
            wait = None if left is None else max(0.0, left - time.monotonic()) * 1000 + 1
            asked = False
            events = self.poll.poll(0 if self.wants_spare else wait)
            if not events and self.wants_spare:
                self.prepare()
            for fd, event in events:
                if fd == HOST_IN:
                    asked = True
                elif (handler := self.handlers.get(fd)) is not None:
                    handler(event)
            while (job := self.ended_job()) is not None:
                self.end(job)
            if self.delayed and not self.full:
                return self.delayed.pop(0)
            if asked:
                request, body = receive()
                if not (self.full and request["op"] not in ("ping", "shell")):
                    return request, body
                self.delayed.append((request, body))

    def ended_job(self) -> Job | None:
        """One that has ended, or whose time is over. The end of one may bring to light that of another."""
        now = time.monotonic()
        return next((job for job in self.jobs if job.status is not None or now >= job.deadline), None)

    @property
    def wants_spare(self) -> bool:
        """Whether one may be made now. Many sandboxes see one command or two; who has run three, will run more."""
        if self.ran < 3 or self.spare is not None or self.shell is not None:
            return False
        return not self.jobs or (self.may_hide and len(self.jobs) == 1 and not self.jobs[0].supervised)

    @property
    def may_hide(self) -> bool:
        """Whether a spare may be there while a command runs, whose uid is another: half of a short command's time.

        Not in gVisor, where nobody could tell who is left of the commands.
        """
        return self.can_supervise and bool(self.confinement.uid)

    @property
    def full(self) -> bool:
        """Whether a further command has to wait."""
        return not self.can_supervise and any(not job.supervised for job in self.jobs)

    def run(self, request: dict[str, Any], env: dict[str, str], stdin: bytes, timeout: float, limit: int) -> Job:
        """Have a confined child do it; the result is the exit code. Raises OSError."""
        supervised, told = any(not job.supervised for job in self.jobs), -1
        if supervised:
            self.dismiss()
        spare, self.spare = self.spare, None
        if spare is not None:
            pid, (stdin_in, out, err) = spare.pid, spare.fds
            try:
                write_all(spare.orders, marshal.dumps((request, env)))
            finally:
                os.close(spare.orders)
        else:
            (given, stdin_in), (out, stdout), (err, stderr) = (self.pipe() for _ in range(3))
            pid, told = self.start(lambda: perform(request, env), (given, stdout, stderr), supervised=supervised)
        streams = Stream(out, limit), Stream(err, limit)
        job = Job(request["id"], pid, time.monotonic() + timeout, streams, supervised=supervised)
        job.live, job.told, job.stdin = request.get("live", False), told, stdin_in
        if supervised:
            self.watch(told, select.POLLIN, lambda _: self.told(job))
        self.follow(job, stdin)
        self.ran += 1
        return job

    def pipe(self) -> tuple[int, int]:
        """One that belongs to the commands' uid, which opens it anew as /dev/stdin. What the agent alone talks through,
        or gives orders by, does not."""
        uid = self.confinement.uid
        if not uid:
            return os.pipe()
        os.seteuid(uid)
        try:
            return os.pipe()
        finally:
            os.seteuid(0)

    def prepare(self) -> None:
        """Fork a spare, if one can be had."""
        try:
            (given, stdin_in), (out, stdout), (err, stderr) = (self.pipe() for _ in range(3))
            orders, orders_in = os.pipe()
            pid, _ = self.start(self.obey, (given, stdout, stderr, orders), supervised=False)
        except OSError:
            self.ran = 0
        else:
            self.spare = Spare(pid, orders_in, (stdin_in, out, err))

    def obey(self) -> int:
        """Wait for orders on descriptor 3, and follow them."""
        program_of("true", DEFAULT_ENV["PATH"])  # the memory that this touches is copied now, and not later
        orders = bytearray()
        while piece := os.read(3, CHUNK):
            orders += piece
        os.close(3)
        if not orders:
            return UNCONFINED
        self.confinement.give_up()
        return perform(*marshal.loads(orders))  # noqa: S302 - the agent's word

    def dismiss(self) -> None:
        """The spare goes before anything starts that it does not become."""
        if self.spare is not None:
            send_signal(self.spare.pid, signal.SIGKILL)
            for fd in (self.spare.orders, *self.spare.fds):
                os.close(fd)
            self.spare = None

    def converse(self, request: dict[str, Any], env: dict[str, str], text: bytes) -> None:
        """Have the shell, with `env` if it has to start, do `text`. Raises OSError."""
        if any(job.of_shell for job in self.jobs):
            raise OSError(errno.EBUSY, "the shell is busy")
        lost = self.shell is not None and self.shell.gone
        if lost:
            self.end_shell()
        self.dismiss()
        if self.shell is None:
            self.shell = self.open_shell(env)
        else:
            for pid in self.trees()[self.shell.pid] if self.jobs else (-1,):
                send_signal(pid, signal.SIGCONT)
        shell = self.shell
        shell.code()  # nothing said before counts
        deadline = time.monotonic() + request["timeout"]
        streams = (Stream(shell.output, request["limit"]),)
        job = Job(request["id"], shell.pid, deadline, streams, supervised=True, of_shell=True)
        job.live, job.stdin = request.get("live", False), shell.script
        self.watch(shell.said, select.POLLIN, lambda event: self.said(job, shell, event))
        self.follow(job, evaluation(text, shell.name) + SAY)
        shell.lost = lost

    def follow(self, job: Job, data: bytes) -> None:
        """Feed it, and take what it writes."""
        self.jobs.append(job)
        os.set_blocking(job.stdin, False)
        job.feed = memoryview(data)
        self.fed(job)
        for stream in job.streams:
            self.take(job, stream)

    def fed(self, job: Job) -> None:
        """Write what its input takes; close it at the end, but not a shell's."""
        if job.feed is not None:
            job.feed = write_some(job.stdin, job.feed)
        if job.feed is None:
            self.forget(job.stdin, close=not job.of_shell)
        elif job.stdin not in self.handlers:
            self.watch(job.stdin, select.POLLOUT, lambda _: self.fed(job))

    def take(self, job: Job, stream: Stream) -> None:
        """Take what comes of an output."""
        self.watch(stream.fd, select.POLLIN, lambda _: self.taken(job, stream))

    def taken(self, job: Job, stream: Stream) -> None:
        """Take some of it; pass it on at once if the host wants to see it live."""
        if not stream.drain():
            self.forget(stream.fd, close=False)
        if job.live and stream.kept:
            first = len(stream.kept) if stream is job.streams[0] else 0
            send(job.number, (first, 0, MORE), bytes(stream.kept))
            stream.kept.clear()

    def told(self, job: Job) -> None:
        """What a supervisor says of its command's end."""
        said = os.read(job.told, STATUS.size)
        if len(said) == STATUS.size:
            (job.status,) = STATUS.unpack(said)
        else:
            self.forget(job.told, close=False)

    def said(self, job: Job, shell: Shell, event: int) -> None:
        """What a shell says of a command's end."""
        code = shell.code()
        job.status = code if job.status is None else job.status
        if event & select.POLLHUP:
            self.forget(shell.said, close=False)

    def start(self, body: Callable[[], int], fds: tuple[int, ...], *, supervised: bool) -> tuple[int, int]:
        """Fork; `fds` become the child's first ones and are closed here. Its pid, and the pipe that tells its end."""
        told, told_in = os.pipe() if supervised else (-1, -1)
        pid = os.fork()
        if pid == 0:
            if supervised:
                self.supervise(body, fds, told_in)
            self.child(body, fds)
        for fd in {*fds, told_in}:
            if fd >= 0:
                os.close(fd)
        return pid, told

    def child(self, body: Callable[[], int], fds: tuple[int, ...]) -> NoReturn:
        """The forked side; never returns."""
        code = UNCONFINED
        try:
            for target, source in enumerate(fds):
                os.dup2(source, target)
            signal.set_wakeup_fd(-1)
            os.closerange(len(fds), 1024)  # what stays open here, others wait for; and commands could reach it
            self.confinement.limit()
            if body != self.obey:  # which does so once it has its orders
                self.confinement.give_up()
            code = body()
        finally:
            os._exit(code)

    def supervise(self, body: Callable[[], int], fds: tuple[int, ...], told: int) -> NoReturn:
        """Stand between process 1 and a command: what that leaves behind comes back here, and so is known as its own.

        The agent kills the supervisor as well. Commands cannot where they have another uid; where they can, they only
        lose sight of their own.
        """
        try:
            libc.prctl(*SUBREAPER)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            pid = os.fork()
            if pid == 0:
                self.child(body, fds)
            os.dup2(told, 0)
            os.closerange(1, 1024)  # other commands wait for the end of pipes that were open here
            while True:
                found, status = os.waitpid(-1, 0)
                if found == pid:
                    os.write(0, STATUS.pack(status))
        except ChildProcessError:
            while True:
                select.select((), (), ())
        finally:
            os._exit(UNCONFINED)

    def reap(self) -> None:
        """Take note of every process that has ended, orphans of the commands among them."""
        try:
            while os.read(self.wake, 4096):
                pass
        except BlockingIOError:
            pass
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                for job in self.jobs:
                    if job.pid == pid and job.status is None:
                        job.status = status
                if self.shell is not None and pid == self.shell.pid:
                    self.shell.gone = True
                if self.spare is not None and pid == self.spare.pid:
                    self.dismiss()
                    self.ran = 0  # whatever ended it would end the next
        except ChildProcessError:
            self.alone = True

    def end(self, job: Job) -> None:
        """Kill what is left of a job, and answer."""
        self.jobs.remove(job)
        shell = self.shell if job.of_shell else None
        ended = shell is not None and (job.status is None or shell.gone)
        try:
            self.sweep(job, spare=shell is not None and not ended)
        except SurvivorsError as error:
            send(job.number, (0, 0, FAILED), f"{type(error).__name__}: {error}".encode()[:ERROR_LIMIT])
            return
        for stream in job.streams:
            stream.finish()
            self.forget(stream.fd, close=not job.of_shell)
        if job.of_shell and shell is not None:
            self.forget(job.stdin, close=False)
            self.forget(shell.said, close=False)
        elif job.feed is not None:
            self.forget(job.stdin)
        if job.supervised and not job.of_shell:
            self.forget(job.told)
        before, self.oom_kills = self.oom_kills, oom_kills(self.oom_counter)
        flags = TIMED_OUT * (job.status is None) | OOM * (self.oom_kills > before)
        flags |= TRUNCATED * any(stream.truncated for stream in job.streams)
        if shell is not None:
            flags |= ENDED * (ended or shell.lost)
            if ended:
                self.end_shell()
        out, *others = (bytes(stream.kept) for stream in job.streams)
        status = 0 if job.status is None else code_of(job.status)
        send(job.number, (len(out), status, flags), out if job.outputs_only else b"".join((out, *others)))

    def sweep(self, job: Job, *, spare: bool) -> None:
        """Kill every process of a job, but a shell's if `spare`; let those of others go on, freeze a resting shell's.

        Raises SurvivorsError.
        """
        if not self.jobs and self.shell is None:
            self.kill_all()
            return
        if not self.jobs and spare:
            send_signal(-1, signal.SIGSTOP)
            return
        deadline = time.monotonic() + SWEEP_SECONDS
        while True:
            send_signal(-1, signal.SIGSTOP)  # nothing forks from here on: no bomb outruns what follows
            trees = self.trees(job)
            doomed = trees.pop(job.pid) if job.supervised and not spare else set()
            if not any(not other.supervised for other in self.jobs):
                doomed |= trees.pop(None, set())
            supervisor = doomed & {job.pid} if job.supervised else set()
            for pid in doomed - supervisor or doomed:  # it comes last: what it has lost sight of, nobody finds again
                send_signal(pid, signal.SIGKILL)
            if doomed - supervisor and supervisor:
                send_signal(job.pid, signal.SIGCONT)  # to take its dead in
            self.reap()
            if not doomed:
                break
            if time.monotonic() > deadline:
                raise SurvivorsError(f"processes outlived SIGKILL by {SWEEP_SECONDS:g} s")
            self.pause()
        running = {other.pid if other.supervised else None for other in self.jobs}
        for root, pids in trees.items():
            for pid in pids if root in running else ():
                send_signal(pid, signal.SIGCONT)

    def kill_all(self) -> None:
        """Kill every process of the namespace but this one and a spare, and reap them. Raises SurvivorsError."""
        uid = self.confinement.uid if self.spare is not None else None
        deadline = time.monotonic() + SWEEP_SECONDS
        while time.monotonic() < deadline:
            self.alone = False
            if uid:
                kill_in_the_name_of(uid)
                self.reap()
                self.alone = not has_processes(uid)
            else:
                send_signal(-1, signal.SIGKILL)
                self.reap()
            if self.alone:  # nobody left to wait for: process 1 is the parent of every orphan
                return
            self.pause()
        raise SurvivorsError(f"processes outlived SIGKILL by {SWEEP_SECONDS:g} s")

    def pause(self) -> None:
        """Until a child ends, or for a moment."""
        poll = select.poll()
        poll.register(self.wake, select.POLLIN)
        poll.poll(20)

    def trees(self, *ended: Job) -> dict[int | None, set[int]]:
        """Processes by the supervisor they descend from, itself among them; None for those of the job without one."""
        parents = dict(processes())
        roots = {job.pid for job in (*self.jobs, *ended) if job.supervised}
        if self.shell is not None:
            roots.add(self.shell.pid)
        found: dict[int | None, set[int]] = {root: set() for root in roots}
        for pid in parents:
            at: int | None = pid
            while at is not None and at not in roots:
                at = parents.get(at)
            found.setdefault(at, set()).add(pid)
        return found

    def open_shell(self, env: dict[str, str]) -> Shell:
        """Start one that reads its script from descriptor 0 and answers on 3: bash, or what there is."""
        try:
            name = os.path.basename(program_of("bash", env["PATH"]))
        except FileNotFoundError:
            name = "sh"
        (script, script_in), (said_out, said) = (os.pipe() for _ in range(2))
        output_out, output = self.pipe()
        fds = script, output, output, said
        pid, told = self.start(lambda: execute([name, "-s"], ".", env), fds, supervised=True)
        shell = Shell(name, pid, (script_in, said_out, output_out, told))
        self.watch(told, select.POLLIN, lambda _: self.shell_ended(shell))
        return shell

    def shell_ended(self, shell: Shell) -> None:
        """Its supervisor says so, or is dead itself."""
        said = os.read(shell.told, STATUS.size)
        shell.gone = True
        self.forget(shell.told, close=False)
        for job in self.jobs:
            if job.of_shell and len(said) == STATUS.size:
                (job.status,) = STATUS.unpack(said)

    def end_shell(self) -> None:
        """Forget it, whose processes are dead."""
        if self.shell is not None:
            for fd in self.shell.fds:
                self.forget(fd)
        self.shell = None


def can_supervise() -> bool:
    """Not in gVisor: a command waits for the one before it there, or nobody could tell their orphans apart.

    Asked by a child, before the first command, which could hinder the answer: gVisor refuses all but process 1.
    """
    pid = os.fork()
    if pid == 0:
        os._exit(libc.prctl(*SUBREAPER) != 0)
    return os.waitpid(pid, 0)[1] == 0


def processes() -> Iterator[tuple[int, int]]:
    """Of this namespace, but for process 1: pid and parent."""
    for name in os.listdir("/proc"):
        if name.isdigit() and name != "1":
            try:
                with open(f"/proc/{name}/stat", "rb") as file:  # a process may have any bytes for a name
                    yield int(name), int(file.read().rpartition(b")")[2].split()[1])
            except OSError:
                continue


def send_signal(pid: int, number: int) -> None:
    """kill(2), also of -1, every process but this one, while the kernel holds off forks; no error if it is gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def kill_in_the_name_of(uid: int) -> None:
    """Kill every process that `uid` may kill: its own, and no other."""
    os.setresuid(uid, uid, 0)
    try:
        send_signal(-1, signal.SIGKILL)
    finally:
        os.setresuid(0, 0, 0)


def has_processes(uid: int) -> bool:
    """Whether there are any in this namespace; dead ones that nobody has reaped count."""
    try:
        os.getpriority(os.PRIO_USER, uid)
    except ProcessLookupError:
        return False
    return True


def write_some(fd: int, data: memoryview) -> memoryview | None:
    """What is still to be written, None when all is or nobody reads."""
    try:
        data = data[os.write(fd, data) :] if data else data
    except BlockingIOError:
        return data
    except BrokenPipeError:
        return None
    return data or None


def code_of(status: int) -> int:
    """An exit code, or -N after signal N, of a wait status."""
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def oom_counter() -> int | None:
    """A descriptor of what counts kills for memory, where the control group can be seen from inside. It stays open:
    finding the file would take longer than all else at the end of a command."""
    for path in OOM_COUNTERS:
        try:
            return os.open(path, os.O_RDONLY)
        except OSError:
            continue
    return None


def oom_kills(counter: int | None) -> int:
    """Processes of this sandbox killed for memory so far."""
    lines = os.pread(counter, 4096, 0).splitlines() if counter is not None else ()
    return sum(int(line.split()[1]) for line in lines if line.startswith(b"oom_kill "))


# --- what children do -------------------------------------------------------------------------------------------


def perform(request: dict[str, Any], env: dict[str, str]) -> int:
    """Do what was asked for, with `env` if it is a program; the exit code."""
    op = request["op"]
    if op == "exec":
        return execute(request["argv"], request["cwd"], env)
    if op == "python":
        return interpret(request["source"], env)
    if op == "read":
        return read_file(request["path"], request["limit"])
    if op == "list":
        return list_files(request["path"], request["depth"])
    return write_files(request["files"], request["new"])


def execute(argv: list[str], cwd: str, env: dict[str, str]) -> int:
    """Become the command; 127 and 126 as a shell has them when that fails."""
    try:
        os.chdir(os.path.join(WORK, cwd))
        os.execve(program_of(argv[0], env["PATH"]), argv, env)  # noqa: S606 - a shell only where one was asked for
    except OSError as error:
        os.write(2, f"{error.filename or argv[0]}: {error.strerror}\n".encode())
        return 127 if error.errno == errno.ENOENT else 126


def interpret(source: str, env: dict[str, str]) -> int:
    """What `python3 -I -c source` does, by the interpreter that runs already: its start is most of a short program.

    What the agent knows lies in this process's memory too, but none of it is secret, and it is a copy.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(WORK)
    os.environ.clear()
    os.environ.update(env)
    import sys

    main = type(sys)("__main__")
    sys.modules["__main__"], sys.argv = main, ["-c"]
    code = 1
    try:
        complete()
        exec(compile(source, "<string>", "exec", dont_inherit=True), main.__dict__)  # noqa: S102 - the purpose of it
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter does
        sys.excepthook(*sys.exc_info())
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code & 0xFF


def complete() -> None:
    """Do for this interpreter what `-S` left out: `exit`, and the packages of the image."""
    import builtins

    if not hasattr(builtins, "exit"):
        import site

        site.main()


def evaluation(text: bytes, name: str) -> bytes:
    """What a shell of that name reads to do `text`: no end of its script before the end of `text`, and no input.

    bash reads its script byte by byte, so that its commands may read on; `head` takes a long text at once.
    """
    if name == "bash" and len(text) > LONG_TEXT:
        script = b'"$(command head -c %d)" </dev/null 3>&-\n%b' % (len(text), text)
    else:
        script = b"'%b' </dev/null 3>&-" % text.replace(b"'", b"'\\''")
    return b"command eval " + script + b"\n"


def program_of(name: str, path: str) -> str:
    """Where a program lies; what `os.execvpe` does, without the module it would import in every child."""
    if "/" in name:
        return name
    for folder in path.split(":"):
        found = f"{folder}/{name}"
        if os.access(found, os.X_OK) and os.path.isfile(found):
            return found
    raise FileNotFoundError(errno.ENOENT, "command not found", name)


def parent_of(path: str, create: bool) -> tuple[int, str]:
    """Descriptor of the directory that `path` lies in, and the last name. Symbolic links are not followed."""
    *parents, name = path.split("/")
    here = os.open(WORK, os.O_RDONLY | os.O_DIRECTORY)
    for part in parents:
        if create:
            try:
                os.mkdir(part, 0o755, dir_fd=here)
            except FileExistsError:
                pass
        try:
            below = directory(part, here)
        finally:
            os.close(here)
        here = below
    return here, name


def directory(name: str, here: int) -> int:
    """Open one that lies in `here`, no link. gVisor follows a link to a directory whatever is asked for: look first."""
    if stat.S_ISLNK(os.stat(name, dir_fd=here, follow_symlinks=False).st_mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)


def read_file(path: str, limit: int) -> int:
    """Copy a regular file to standard output; 0 or an errno (EINVAL: not regular, EFBIG: over `limit`)."""
    try:
        here, name = parent_of(path, create=False)
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=here)
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            return errno.EINVAL
        if info.st_size > limit:
            return errno.EFBIG
        while piece := os.read(fd, CHUNK):
            write_all(1, piece)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def list_files(path: str, depth: int) -> int:
    """Write what lies below `path` as NUL-terminated paths, an `f` before regular files, an `x` before what else is no
    directory; 0 or an errno (ENAMETOOLONG: deeper than `depth`). Nothing is followed."""
    try:
        here = os.open(WORK, os.O_RDONLY | os.O_DIRECTORY)
        for part in path.split("/") if path else ():
            here = directory(part, here)
        for folder, folders, files, at in os.fwalk(".", dir_fd=here, onerror=_raise):
            if folder.count("/") >= depth:
                return errno.ENAMETOOLONG
            for name in files + folders:
                mode = os.stat(name, dir_fd=at, follow_symlinks=False).st_mode
                if not stat.S_ISDIR(mode):
                    found = os.path.normpath(os.path.join(path, folder, name))
                    write_all(1, (b"f" if stat.S_ISREG(mode) else b"x") + os.fsencode(found) + b"\0")
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _raise(error: OSError) -> NoReturn:
    raise error


def write_files(files: list[tuple[str, int]], new: bool) -> int:
    """Create or replace files, their contents one after the other on standard input; 0 or an errno.

    A `new` one must not be there, but its directory must.
    """
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for path, size in files:
            here, name = parent_of(path, create=not new)
            try:
                if not new:
                    os.unlink(name, dir_fd=here)
            except FileNotFoundError:
                pass
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=here)
            left = size
            while left and (piece := os.read(0, min(left, CHUNK))):
                write_all(fd, piece)
                left -= len(piece)
            os.close(fd)
            os.close(here)
            if left:
                return errno.EIO
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def write_all(fd: int, data: bytes) -> None:
    """Write, whatever it takes. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


# --- the loop ---------------------------------------------------------------------------------------------------


def begin(request: dict[str, Any], program: bytes) -> Runner:
    """Own the working directory, harden, and know the children's confinement. Raises OSError."""
    uid: int | None = request["uid"]
    if uid is not None and os.stat(WORK).st_uid != uid:
        os.chown(WORK, uid, uid)
    if uid is not None:
        os.setgroups([])
    os.umask(0o022)
    harden(program)
    return Runner(Confinement(uid, request["limits"]))


def serve(runner: Runner, request: dict[str, Any], body: bytes) -> None:
    """Answer one request, or start what will. Raises OSError."""
    op = request["op"]
    env = {**runner.env, **request.get("env", {})}
    if op == "ping":
        send(request["id"], (0, 0, 0), b"")
    elif op == "shell":
        runner.converse(request, env, body)
    else:
        job = runner.run(request, env, body, request.get("timeout", FILE_SECONDS), request.get("limit", 0))
        job.outputs_only = op not in ("exec", "python")


def main() -> NoReturn:
    """Serve until the host hangs up."""
    if os.getpid() != 1:
        raise SystemExit(
            "the agent kills every process it can see: it runs as process 1 of its own namespace or not at all"
        )
    os.closerange(3, 1024)
    for ignored in INHERITED:  # commands would inherit that; process 1 is deaf to signals that it does not handle
        signal.signal(ignored, signal.SIG_DFL)
    runner: Runner | None = None
    while True:
        request, body = receive() if runner is None else runner.next_request()
        try:
            if runner is None:
                runner = begin(request, body)
                send(request["id"], (0, 0, 0), b"")
            else:
                serve(runner, request, body)
        except OSError as error:
            send(request["id"], (0, 0, FAILED), f"{type(error).__name__}: {error}".encode()[:ERROR_LIMIT])


if __name__ == "__main__":
    main()
