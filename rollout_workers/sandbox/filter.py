"""A seccomp filter: what commands may not ask of the kernel, whatever their uid. The agent loads it before any command.

Namespaces hide files, processes and the network; they leave the kernel's whole surface open, and some of it (vsock to
a hypervisor, key rings, nested user namespaces) is not namespaced at all. Denied calls fail with EPERM.
"""

import errno
import platform
import struct
from dataclasses import dataclass

CLONE_NAMESPACES = 0x7E020080  # CLONE_NEW{USER,PID,NET,IPC,UTS,CGROUP,NS} and NEWTIME
SOCKET_FAMILIES = (1, 2, 10, 16)  # unix, inet, inet6, netlink: the ones a network namespace holds in
ALLOW = 0x7FFF0000
X32 = 0x40000000

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCH, ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data (little endian)


@dataclass(frozen=True, slots=True)
class Machine:
    """System call numbers of one architecture."""

    audit: int
    clone: int
    socket: int
    prlimit: int
    denied: tuple[int, ...]


# The same on every architecture: pidfd_getfd, the mount API of 5.2 on, io_uring, secret memory, quotactl_fd,
# process_madvise.
COMMON = (438, 428, 429, 430, 431, 432, 433, 442, 425, 426, 427, 447, 443, 440)
CLONE3 = 435  # its flags lie in memory, out of a filter's sight: ENOSYS makes libraries fall back to clone

MACHINES = {
    "x86_64": Machine(
        0xC000003E,
        clone=56,
        socket=41,
        prlimit=302,
        denied=(
            *(101, 310, 311, 312),  # ptrace, process_vm_readv, process_vm_writev, kcmp
            *(272, 308, 165, 166, 155, 161),  # unshare, setns, mount, umount2, pivot_root, chroot
            *(167, 168, 169, 246, 320, 175, 313, 176),  # swap, reboot, kexec, modules
            *(248, 249, 250, 321, 298, 323),  # add_key, request_key, keyctl, bpf, perf_event_open, userfaultfd
            *(304, 303, 179, 163, 103, 300),  # handles, quotactl, acct, syslog, fanotify
            *(164, 227, 159, 305, 170, 171, 172, 173),  # clocks, host name, ports
            *(29, 68, 64, 319),  # shmget, msgget, semget, memfd_create: memory that no limit of a process counts
        ),
    ),
    "aarch64": Machine(
        0xC00000B7,
        clone=220,
        socket=198,
        prlimit=261,
        denied=(
            *(117, 270, 271, 272),
            *(97, 268, 40, 39, 41, 51),
            *(224, 225, 142, 104, 294, 105, 273, 106),
            *(217, 218, 219, 280, 241, 282),
            *(265, 264, 60, 89, 116, 262),
            *(170, 112, 171, 266, 161, 162),
            *(194, 186, 190, 279),
        ),
    ),
}


def program(machine: str = "") -> bytes:
    """The filter as BPF, 8 bytes an instruction. Raises ValueError on an architecture without a table."""
    name = machine or platform.machine()
    if name not in MACHINES:
        raise ValueError(f"no system call table for {name}: sandboxes run on {' and '.join(MACHINES)}")
    table = MACHINES[name]
    code = [_op(LOAD, ARCH), _op(EQUAL, table.audit, yes=1), _refuse(errno.ENOSYS), _op(LOAD, NUMBER)]
    code += [_op(AT_LEAST, X32, no=1), _refuse(errno.ENOSYS)]
    for number in (*table.denied, *COMMON):
        code += [_op(EQUAL, number, no=1), _refuse(errno.EPERM)]
    code += [_op(EQUAL, CLONE3, no=1), _refuse(errno.ENOSYS)]
    flags = [_op(LOAD, ARGUMENT), _op(ANY_BIT, CLONE_NAMESPACES, no=1), _refuse(errno.EPERM), _op(RETURN, ALLOW)]
    own = [_op(LOAD, ARGUMENT), _op(EQUAL, 0, yes=1), _refuse(errno.EPERM), _op(RETURN, ALLOW)]
    family = [_op(LOAD, ARGUMENT)]
    for allowed in SOCKET_FAMILIES:
        family += [_op(EQUAL, allowed, no=1), _op(RETURN, ALLOW)]
    family.append(_refuse(errno.EAFNOSUPPORT))
    for number, block in ((table.clone, flags), (table.prlimit, own), (table.socket, family)):
        code += [_op(EQUAL, number, no=len(block)), *block]
    return b"".join([*code, _op(RETURN, ALLOW)])


def _op(code: int, value: int, *, yes: int = 0, no: int = 0) -> bytes:
    """One instruction; `yes` and `no` are how many to skip after a comparison."""
    return struct.pack("=HBBI", code, yes, no, value)


def _refuse(error: int) -> bytes:
    """Return `error` to the caller."""
    return _op(RETURN, 0x00050000 | error)
