"""Who may do what: tokens with a role each, and sessions of browsers that have shown one."""

import hashlib
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from verifiers.errors import UserError

COOKIE = "cwm_rl_session"
VARIABLES = {"CWM_RL_READ_TOKEN": "read", "CWM_RL_OPERATE_TOKEN": "operate"}
_SHORTEST = 16
_SESSION_SECONDS = 12 * 3600.0
_SESSIONS = 1000


class Role(IntEnum):
    """`OPERATE` may also start and stop runs."""

    READ = 1
    OPERATE = 2


class TokenError(UserError):
    """Tokens that cannot be used, in one sentence. It never repeats one."""


@dataclass
class Doorkeeper:
    """Knows tokens by their digests alone. Without any token everybody may do everything: for loopback."""

    digests: Mapping[bytes, Role] = field(default_factory=dict)
    _sessions: OrderedDict[bytes, tuple[Role, float]] = field(default_factory=OrderedDict)

    @property
    def open(self) -> bool:
        """Whether there is no token, so that nobody is asked for one."""
        return not self.digests

    def role(self, token: str) -> Role | None:
        """The role of a token, None if unknown; in a time that does not tell how much of it is right."""
        shown, found = _digest(token), None
        for digest, role in self.digests.items():
            if secrets.compare_digest(digest, shown):
                found = role
        return found

    def begin(self, role: Role) -> str:
        """A new session's secret, for a cookie."""
        secret = secrets.token_urlsafe(32)
        self._sessions[_digest(secret)] = role, time.monotonic() + _SESSION_SECONDS
        while len(self._sessions) > _SESSIONS:
            self._sessions.popitem(last=False)
        return secret

    def end(self, secret: str) -> None:
        """Forget a session."""
        self._sessions.pop(_digest(secret), None)

    def session(self, secret: str) -> Role | None:
        """The role of a session; None if it is unknown or has expired."""
        role, until = self._sessions.get(_digest(secret), (None, 0.0))
        return role if time.monotonic() < until else None


def doorkeeper(file: Path | None) -> Doorkeeper:
    """Tokens from the environment, and from a file of lines `read TOKEN` or `operate TOKEN`. Raises TokenError."""
    found = [(role, os.environ[name], name) for name, role in VARIABLES.items() if os.environ.get(name)]
    if file is not None:
        found += _from_file(file)
    digests = {}
    for role, token, where in found:
        if len(token) < _SHORTEST:
            raise TokenError(f"the {role} token in {where} is shorter than {_SHORTEST} characters: make a longer one")
        digests[_digest(token)] = Role[role.upper()]
    return Doorkeeper(digests)


def _from_file(file: Path) -> list[tuple[str, str, str]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        readable = file.stat().st_mode & 0o077
    except (OSError, UnicodeDecodeError) as error:
        raise TokenError(f"no tokens can be read from {file}: {error}") from error
    if readable:
        raise TokenError(f"others may read the tokens in {file}: chmod 600 it")
    found = []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or words[0] not in VARIABLES.values():
            raise TokenError(f"line {number} of {file} is neither `read TOKEN` nor `operate TOKEN`")
        found.append((words[0], words[1], str(file)))
    if not found:
        raise TokenError(f"{file} holds no token: write a line `read TOKEN` or `operate TOKEN`")
    return found


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()
