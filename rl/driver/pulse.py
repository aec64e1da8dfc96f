"""What a run does right now, told once a second in a file beside its ledger; and how anybody asks it to end.

    pulse.json     written whole by the driver alone: phase, waits with their deadlines, actors with their heartbeats
    stop.request   made by whoever wants the run to end; the driver then ends in good order, as after Ctrl-C

Both are files, so that they also reach a driver on another host, and what was told last outlives a killed one.
"""

import socket
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

import msgspec

FILE, STOP = "pulse.json", "stop.request"
FRESH_SECONDS = 15.0
"""A pulse that is older comes from a driver that is gone, or hangs."""


class Phase(StrEnum):
    """Where a driver stands. It cannot tell its own crash: then the last word is one of the first three."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    FINISHED = "finished"


class Wait(msgspec.Struct, frozen=True):
    """Something that is waited for, since and until when at most (Unix seconds)."""

    name: str
    since: float
    until: float


class Actor(msgspec.Struct, frozen=True):
    """An actor as the driver knows it."""

    name: str
    state: str
    """`up` or `starting`; one that is lost starts anew at once."""
    seen: float | None = None
    """When it last answered, Unix seconds. A learner answers between two steps."""
    pid: int | None = None
    version: int | None = None
    """Of the weights it samples from."""
    acting: int = 0
    """Episodes that act there, or wait for a slot there."""
    slots: int = 0
    grading: int = 0
    sandboxes: int = 0
    """Sandboxes that are open there now."""
    seconds: dict[str, float] = {}
    """Where its time went, by cause."""


class Pulse(msgspec.Struct, frozen=True):
    """The driver's state at one moment, written to the run's directory for the service and `top`."""

    at: float
    began: float
    """When this driver began, Unix seconds."""
    pid: int
    host: str
    phase: Phase
    detail: str = ""
    """Why it failed, in a sentence."""
    waits: tuple[Wait, ...] = ()
    actors: tuple[Actor, ...] = ()


def read(run: Path) -> Pulse | None:
    """The last beat of the run in a directory; None if there is none, or none that can be read."""
    with suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode((run / FILE).read_bytes(), type=Pulse)
    return None


def host() -> str:
    """This machine's name, as a pulse has it."""
    return socket.gethostname()


def ask_to_stop(run: Path) -> None:
    """The run's driver, wherever it is, ends within seconds. Raises OSError."""
    (run / STOP).touch()
