"""The inside of a sandbox: process 1 of its pid namespace, handed in to `python3 -I -S` as source or bytecode.

    host --frame--> receive --> exec | read | write, each in a confined child --> kill all --> send --frame--> host
                            --> shell, a confined child that stays                --> freeze all --> send --> host

A request is two big-endian uint32 (header length, body length), a marshalled dictionary, raw bytes; a reply is the
fixed header `REPLY` and raw bytes. One request, one reply. The agent believes the host, never the other way round.
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
    from collections.abc import Callable
    from typing import Any, NoReturn
else:
    import _signal as signal

FRAME = struct.Struct("!II")
REPLY = struct.Struct("!IIIhB")  # length of the body, number of the request, how much of it is stdout, status, flags
TIMED_OUT, TRUNCATED, OOM, FAILED, ENDED = 1, 2, 4, 8, 16
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
FILE_SECONDS = 20.0
UNCONFINED = 125  # a child's exit code when it could not enter its confinement, and so ran nothing
DEFAULT_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
OWN_ENV = {"HOME": "/tmp", "TMPDIR": "/tmp", "USER": "sandbox", "LOGNAME": "sandbox"}  # noqa: S108
OOM_COUNTERS = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")

INHERITED = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
"""Python ignores the first two; a shell ignores the others for what it starts in the background."""

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


def harden(program: bytes) -> None:
    """Give up for good what neither the agent nor its children need; `program` is a seccomp filter in BPF."""
    must(libc.prctl(4, 0, 0, 0, 0), "PR_SET_DUMPABLE")  # /proc/1 belongs to root, and nobody may trace us
    must(libc.prctl(38, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    keep = sum(1 << capability for capability in KEPT) if os.getuid() == 0 else 0
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)(keep, keep, 0, 0, 0, 0)
    must(libc.capset(header, sets), "capset")
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

    def enter(self) -> None:
        """Own session, killed first when memory runs out, limited, unprivileged. Raises OSError, ValueError."""
        os.setsid()
        must(libc.prctl(4, 1, 0, 0, 0), "PR_SET_DUMPABLE")  # or the next file is not ours to write
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")
        for name, pair in self.limits.items():
            resource.setrlimit(name, pair)
        if self.uid is not None:
            os.setgroups([])
            os.setresgid(self.uid, self.uid, self.uid)
            os.setresuid(self.uid, self.uid, self.uid)
        os.umask(0o022)
        for ignored in INHERITED:  # exec would pass that on
            signal.signal(ignored, signal.SIG_DFL)


# --- running a child --------------------------------------------------------------------------------------------


class Stream:
    """One output of a child: its first `limit` bytes are kept, the rest is read and thrown away."""

    def __init__(self, fd: int, limit: int) -> None:
        os.set_blocking(fd, False)
        self.fd, self.limit, self.kept, self.truncated = fd, limit, bytearray(), False

    def drain(self) -> bool:
        """Read once; False at the end of the stream."""
        try:
            piece = os.read(self.fd, CHUNK)
        except BlockingIOError:
            return True
        room = self.limit - len(self.kept)
        self.kept += piece[:room]
        self.truncated |= len(piece) > room
        return bool(piece)

    def finish(self) -> None:
        """Take what is left once every writer is dead or frozen: at most one pipe full."""
        while True:
            before = len(self.kept), self.truncated
            if not self.drain() or (len(self.kept), self.truncated) == before or self.truncated:
                break

    def close(self) -> None:
        """Take what is left once every writer is dead, and no more."""
        self.finish()
        os.close(self.fd)


class Shell:
    """A shell that keeps its state from one call to the next. It reads its script from a pipe, one `eval` a call."""

    def __init__(self, name: str, pid: int, script: int, said: int, output: int) -> None:
        os.set_blocking(said, False)
        self.name, self.pid, self.script, self.said, self.output = name, pid, script, said, output
        self.gone = False

    def code(self) -> int | None:
        """The exit code of the command, as a wait status, once the shell has said it."""
        try:
            line = os.read(self.said, 64)
        except BlockingIOError:
            return None
        code = line.strip()[-3:]  # commands can reach this pipe if they try hard; they fool themselves alone
        return (int(code) & 0xFF) << 8 if code.isdigit() else None

    def close(self) -> None:
        """Close our ends, after the shell has ended."""
        for fd in (self.script, self.said, self.output):
            os.close(fd)


class Runner:
    """Runs one child at a time and leaves no process behind, but a shell and what runs under it: those are frozen."""

    def __init__(self, confinement: Confinement) -> None:
        self.confinement = confinement
        self.alone = False
        self.shell: Shell | None = None
        self.spared: frozenset[int] = frozenset()
        self.wake, wake_in = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(wake_in, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_in, warn_on_full_buffer=False)

    def run(
        self, body: Callable[[], int], stdin: bytes, timeout: float, limit: int
    ) -> tuple[tuple[int, int, int], bytes]:
        """Fork, confine, call `body` (its result is the exit code), wait, kill all. Raises OSError, SurvivorsError."""
        pipes = [os.pipe() for _ in range(3)]
        killed = oom_kills()
        self.spared = processes() if self.shell is not None else frozenset()  # frozen, so that there are no others
        pid = os.fork()
        if pid == 0:
            self.child(body, pipes[0][0], pipes[1][1], pipes[2][1])
        for fd in (pipes[0][0], pipes[1][1], pipes[2][1]):
            os.close(fd)
        out, err = Stream(pipes[1][0], limit), Stream(pipes[2][0], limit)
        status = self.attend(pid, pipes[0][1], stdin, (out, err), time.monotonic() + timeout)
        self.sweep()
        out.close()
        err.close()
        flags = TIMED_OUT * (status is None)
        flags |= TRUNCATED * (out.truncated or err.truncated)
        flags |= OOM * (oom_kills() > killed)
        return (len(out.kept), 0 if status is None else code_of(status), flags), bytes(out.kept + err.kept)

    def converse(
        self, env: dict[str, str], text: bytes, timeout: float, limit: int
    ) -> tuple[tuple[int, int, int], bytes]:
        """Let the shell, with `env` if it has to start, do `text`; then freeze it and all that it started.

        Raises OSError, SurvivorsError.
        """
        killed = oom_kills()
        lost = self.shell is not None and self.shell.gone
        if lost:
            self.end_shell()
        if self.shell is None:
            self.shell = self.open_shell(env)
        else:
            signal_all(signal.SIGCONT)
        shell = self.shell
        shell.code()  # nothing said before counts
        out = Stream(shell.output, limit)
        script = evaluation(text, shell.name)
        status = self.attend(shell.pid, shell.script, script, (out,), time.monotonic() + timeout, shell)
        ended = status is None or shell.gone
        if ended:
            self.sweep()
        else:
            signal_all(signal.SIGSTOP)
        out.finish()
        if ended:
            self.end_shell()
        flags = TIMED_OUT * (status is None) | TRUNCATED * out.truncated | ENDED * (ended or lost)
        flags |= OOM * (oom_kills() > killed)
        return (len(out.kept), 0 if status is None else code_of(status), flags), bytes(out.kept)

    def open_shell(self, env: dict[str, str]) -> Shell:
        """Fork one that reads its script from descriptor 0 and answers on 3: bash, or what there is."""
        try:
            name = os.path.basename(program_of("bash", env["PATH"]))
        except FileNotFoundError:
            name = "sh"
        (script, script_in), (said_out, said), (output_out, output) = (os.pipe() for _ in range(3))
        pid = os.fork()
        if pid == 0:
            self.child(lambda: execute([name, "-s"], ".", env), script, output, output, said)
        for fd in (script, said, output):
            os.close(fd)
        os.set_blocking(script_in, False)
        return Shell(name, pid, script_in, said_out, output_out)

    def end_shell(self) -> None:
        """Forget it, whose processes are dead."""
        if self.shell is not None:
            self.shell.close()
        self.shell = None

    def child(self, body: Callable[[], int], *fds: int) -> NoReturn:
        """The forked side, with `fds` as its first ones; never returns."""
        code = UNCONFINED
        try:
            for target, source in enumerate(fds):
                os.dup2(source, target)
            self.confinement.enter()
            code = body()
        finally:
            os._exit(code)

    def attend(
        self,
        pid: int,
        stdin: int,
        data: bytes,
        streams: tuple[Stream, ...],
        deadline: float,
        shell: Shell | None = None,
    ) -> int | None:
        """Feed and drain until the child has ended, or the shell says that it is done; None at the deadline.

        Returns a wait status. Closes `stdin`, but not a shell's.
        """
        by_fd = {stream.fd: stream for stream in streams}
        poll = select.poll()
        poll.register(HOST_IN, 0)  # reports a hang-up only
        poll.register(self.wake, select.POLLIN)
        for fd in by_fd:
            poll.register(fd, select.POLLIN)
        if shell is not None:
            poll.register(shell.said, select.POLLIN)
        os.set_blocking(stdin, False)
        feed: memoryview | None = memoryview(data)
        status: int | None = None
        while status is None and (left := deadline - time.monotonic()) > 0:
            if feed is not None:
                feed = write_some(stdin, feed)
                if feed is not None:
                    poll.register(stdin, select.POLLOUT)
                elif shell is None:
                    os.close(stdin)
            for fd, event in poll.poll(left * 1000 + 1):
                if fd == HOST_IN:
                    os._exit(0)
                elif fd == self.wake:
                    status = self.reap().get(pid, status)
                elif fd in by_fd:
                    if not by_fd[fd].drain():
                        poll.unregister(fd)
                elif shell is not None and fd == shell.said:
                    status = shell.code() if status is None else status
                    if event & select.POLLHUP:
                        poll.unregister(fd)
            if feed is not None:
                poll.unregister(stdin)
        if feed is not None and shell is None:
            os.close(stdin)
        return status

    def reap(self) -> dict[int, int]:
        """Wait statuses of every process that has ended, orphans of the commands among them."""
        try:
            while os.read(self.wake, 4096):
                pass
        except BlockingIOError:
            pass
        found: dict[int, int] = {}
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return found
                found[pid] = status
                if self.shell is not None and pid == self.shell.pid:
                    self.shell.gone = True
        except ChildProcessError:
            self.alone = True
            return found

    def sweep(self) -> None:
        """Kill every process of the namespace but this one and those spared, and reap them. Raises SurvivorsError."""
        poll = select.poll()
        poll.register(self.wake, select.POLLIN)
        deadline = time.monotonic() + SWEEP_SECONDS
        while time.monotonic() < deadline:
            self.alone = False
            others = self.kill_all()
            self.reap()
            if self.alone or not others:  # nobody left to wait for: process 1 is the parent of every orphan
                return
            poll.poll(20)
        raise SurvivorsError(f"processes outlived SIGKILL by {SWEEP_SECONDS:g} s")

    def kill_all(self) -> bool:
        """SIGKILL to all but the spared ones; whether there may be any such. No bomb outruns it: see `signal_all`."""
        if not self.spared:
            signal_all(signal.SIGKILL)
            return True
        signal_all(signal.SIGSTOP)
        others = processes() - self.spared
        for pid in others:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        return bool(others)


def processes() -> frozenset[int]:
    """Of this namespace, but for process 1."""
    return frozenset(int(name) for name in os.listdir("/proc") if name.isdigit()) - {1}


def signal_all(number: int) -> None:
    """Signal every process of the namespace but this one; the kernel holds off forks meanwhile."""
    try:
        os.kill(-1, number)
    except ProcessLookupError:
        pass


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


def oom_kills() -> int:
    """Processes of this sandbox killed for memory, where its control group can be seen from inside."""
    for path in OOM_COUNTERS:
        try:
            with open(path) as file:
                return sum(int(line.split()[1]) for line in file if line.startswith("oom_kill "))
        except OSError:
            continue
    return 0


# --- what children do -------------------------------------------------------------------------------------------


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
    os.closerange(3, 1024)  # ends of the agent's pipes, which only an exec would have closed
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(WORK)
    os.environ.clear()
    os.environ.update(env)
    import site
    import sys

    main = type(sys)("__main__")
    sys.modules["__main__"], sys.argv = main, ["-c"]
    code = 1
    try:
        site.main()  # `-S` left it out: `exit`, and the packages of the image
        exec(compile(source, "<string>", "exec"), main.__dict__)  # noqa: S102 - the purpose of this process
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter does
        sys.excepthook(*sys.exc_info())
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code & 0xFF


def evaluation(text: bytes, name: str) -> bytes:
    """What a shell of that name reads to do `text`: no end of its script before the end of `text`, and no input.

    bash reads its script byte by byte, so that its commands may read on; `head` takes a long text at once.
    """
    if name == "bash" and len(text) > LONG_TEXT:
        script = b'"$(command head -c %d)" </dev/null 3>&-\n%b' % (len(text), text)
    else:
        script = b"'%b' </dev/null 3>&-" % text.replace(b"'", b"'\\''")
    return b"command eval " + script + b"\ncommand echo $? >&3\n"


def program_of(name: str, path: str) -> str:
    """Where a program lies; what `os.execvpe` does, without the module it would import in every child."""
    if "/" in name:
        return name
    for folder in path.split(":"):
        found = os.path.join(folder, name)
        if os.path.isfile(found) and os.access(found, os.X_OK):
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
        here = directory(part, here)
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


def write_files(files: list[tuple[str, int]], body: bytes, new: bool) -> int:
    """Create or replace files, their contents one after the other in `body`; 0 or an errno.

    A `new` one must not be there, but its directory must.
    """
    start = 0
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
            write_all(fd, body[start : start + size])
            os.close(fd)
            start += size
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
    harden(program)
    return Runner(Confinement(uid, request["limits"]))


def serve(runner: Runner, request: dict[str, Any], body: bytes) -> tuple[tuple[int, int, int], bytes]:
    """Do one request. Raises OSError, SurvivorsError."""
    op = request["op"]
    if op == "ping":
        return (0, 0, 0), b""
    if op in ("exec", "python"):
        env = {**DEFAULT_ENV, **os.environ, **OWN_ENV, **request.get("env", {})}
        job = body, request["timeout"], request["limit"]
        if op == "exec":
            argv, cwd = request["argv"], request["cwd"]
            return runner.run(lambda: execute(argv, cwd, env), *job)
        source = request["source"]
        return runner.run(lambda: interpret(source, env), *job)
    if op == "shell":
        env = {**DEFAULT_ENV, **os.environ, **OWN_ENV}
        return runner.converse(env, body, request["timeout"], request["limit"])
    if op == "read":
        path, limit = request["path"], request["limit"]
        reply, out = runner.run(lambda: read_file(path, limit), b"", FILE_SECONDS, limit)
        return reply, out[: reply[0]]
    if op == "list":
        path, depth = request["path"], request["depth"]
        reply, out = runner.run(lambda: list_files(path, depth), b"", FILE_SECONDS, request["limit"])
        return reply, out[: reply[0]]
    files, new = request["files"], request["new"]
    reply, _ = runner.run(lambda: write_files(files, body, new), b"", FILE_SECONDS, 0)
    return reply, b""


def main() -> NoReturn:
    """Serve until the host hangs up."""
    if os.getpid() != 1:
        raise SystemExit(
            "the agent kills every process it can see: it runs as process 1 of its own namespace or not at all"
        )
    os.closerange(3, 1024)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # process 1 is deaf to signals that it does not handle
    runner: Runner | None = None
    reply: tuple[int, int, int]
    while True:
        request, body = receive()
        try:
            if runner is None:
                runner, reply, out = begin(request, body), (0, 0, 0), b""
            else:
                reply, out = serve(runner, request, body)
        except (OSError, SurvivorsError) as error:
            reply, out = (0, 0, FAILED), f"{type(error).__name__}: {error}".encode()[:ERROR_LIMIT]
        send(request["id"], reply, out)


if __name__ == "__main__":
    main()
