"""The template inside bubblewrap's walls: process 1 there, and every sandbox is a fork of it behind walls of its own.

    host --datagram: what is asked for + descriptors--> template -> fork: joins the control group, unshares
         -> fork: process 1 of a new pid namespace, furnishes it, sheds privileges, answers -> becomes the agent

An interpreter and its imports start once, not for every sandbox. The template runs nothing of anybody's,
cannot be seen from the sandboxes, and takes all of them along when it ends: as soon as the host hangs up or dies.
Standard library only, Python 3.9 or later. What is asked for is the host's word, marshalled.
"""

from __future__ import annotations

import fcntl
import marshal
import os
import socket
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Any, NoReturn

    from rollout_workers.sandbox import agent
else:
    import _signal as signal

    sys.path.append("/")  # where it lies beside this file
    import agent

ORDER_LIMIT = 1 << 16
DESCRIPTORS = 8
NAMESPACES = 0x6E020000  # CLONE_NEW{NS,CGROUP,UTS,IPC,PID,NET}
NEW_USER = 0x10000000  # CLONE_NEWUSER
NOSUID, NODEV, NOEXEC, READ_ONLY = 2, 4, 8, 1
REMOUNT, BIND, PRIVATE = 0x20, 0x1000, 0x4000 | 1 << 18
COVERED = ("sys", "sysrq-trigger", "irq", "bus")
"""What of /proc changes the machine, and is root's to write."""
NAMES = "/etc/names"
UP = 0x41  # IFF_UP, IFF_RUNNING
SET_FLAGS = 0x8914  # SIOCSIFFLAGS
DROP_BOUND = 24  # PR_CAPBSET_DROP


def main() -> NoReturn:
    """Make sandboxes until the host hangs up."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    agent.complete()  # which takes a child as long as a short program
    os.set_blocking(2, False)  # nobody need read what a dying agent says
    control = socket.socket(fileno=0)
    while True:
        order, descriptors, _, _ = socket.recv_fds(control, ORDER_LIMIT, DESCRIPTORS)
        if not order:
            os._exit(0)
        try:
            if os.fork() == 0:
                be_born(marshal.loads(order), descriptors)  # noqa: S302 - the host's word
        except OSError as error:
            refuse(descriptors[0], error)
        for one in descriptors:
            os.close(one)


def be_born(order: dict[str, Any], descriptors: list[int]) -> NoReturn:
    """Become the sandbox that was ordered. `descriptors`: its end of the channel, then its groups' cgroup.procs.

    The answer is READY with the pidfd of process 1; anything else is what went wrong, as text.
    """
    channel, *groups = descriptors
    try:
        os.dup2(channel, agent.HOST_IN)
        os.dup2(channel, agent.HOST_OUT)
        for group in groups:
            os.write(group, b"0")
        os.closerange(3, 1024)
        enter()
        if os.fork():
            os._exit(0)
        os.setsid()
        furnish(order["disks"], order["names"])
        shed()
        with socket.socket(fileno=os.dup(agent.HOST_OUT)) as answer:
            socket.send_fds(answer, [agent.READY], [os.pidfd_open(os.getpid())])
    except BaseException as error:  # noqa: BLE001 - as below
        refuse(agent.HOST_OUT, error)
        os._exit(1)
    try:
        agent.main()
    except BaseException:  # noqa: BLE001 - this process is no template any more: it never goes back to the loop
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(1)


def refuse(channel: int, error: BaseException) -> None:
    """Say why there is no sandbox, if anybody still listens."""
    try:
        os.write(channel, f"{type(error).__name__}: {error}".encode()[: agent.ERROR_LIMIT])
    except OSError:
        pass


def enter() -> None:
    """Namespaces of its own; without root a user namespace too, in which alone its processes count. Raises OSError."""
    uid, gid = os.getuid(), os.getgid()
    if uid == 0:
        agent.must(agent.libc.unshare(NAMESPACES), "unshare")
        return
    agent.must(agent.libc.unshare(NAMESPACES | NEW_USER), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def furnish(disks: list[tuple[str, str]], names: dict[str, bytes]) -> None:
    """File systems and a loopback that nobody shares. Raises OSError.

    `disks` are mount points and options; `names` are the files, by name, that say who the commands' user is.
    """
    mount("", "/", "", PRIVATE)
    mount("proc", "/proc", "proc", NOSUID | NODEV | NOEXEC)
    if os.getuid() == 0:
        for name in COVERED:
            path = f"/proc/{name}"
            if os.path.exists(path):
                mount(path, path, "", BIND)
                mount("", path, "", BIND | REMOUNT | READ_ONLY | NOSUID | NODEV | NOEXEC)
    mount("devpts", "/dev/pts", "devpts", NOSUID | NOEXEC, "newinstance,ptmxmode=0666,mode=620")
    for path, options in disks:
        mount("tmpfs", path, "tmpfs", NOSUID | NODEV, options)
    mount("tmpfs", NAMES, "tmpfs", NOSUID | NODEV | NOEXEC, "size=64k,mode=0755")
    for name, content in names.items():
        with open(f"{NAMES}/{name}", "wb") as file:
            file.write(content)
        os.chmod(f"{NAMES}/{name}", 0o444)
    mount("", NAMES, "", BIND | REMOUNT | READ_ONLY | NOSUID | NODEV | NOEXEC)
    os.chdir(agent.WORK)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sH22x", b"lo", UP))


def shed() -> None:
    """Nothing that is started from here on can have more capabilities than the agent keeps. Raises OSError."""
    keeps = agent.KEPT if os.getuid() == 0 else ()
    with open("/proc/sys/kernel/cap_last_cap") as last:
        for capability in range(int(last.read()) + 1):
            if capability not in keeps:
                agent.must(agent.libc.prctl(DROP_BOUND, capability, 0, 0, 0), "PR_CAPBSET_DROP")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """mount(2). Raises OSError."""
    words = (source.encode(), target.encode(), kind.encode(), flags, options.encode())
    agent.must(agent.libc.mount(*words), f"mount {target}")


if __name__ == "__main__":
    main()
