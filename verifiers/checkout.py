"""A repository as a task has it, laid out in a sandbox's working directory with one commit and no history."""

import re
import sys
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Final

from verifiers._relay import InvalidTaskError
from verifiers.sandbox import Sandbox, SandboxSpec, SandboxUnavailable

SECONDS: Final = 120.0
MEMORY_BYTES: Final = 4 << 30
DISK_BYTES: Final = 2 << 30
CPU_SECONDS: Final = 1200.0
"""Of one process, all its threads together; suites have a deadline of their own."""
PIDS: Final = 512
_GIT: Final = ("git", "-c", "safe.directory=*", "-c", "core.hooksPath=/dev/null", "-c", "maintenance.auto=false")
_AS: Final = "git -c user.name=cwm-rl -c user.email=cwm-rl@localhost -c maintenance.auto=false"
# The image's own path leads to the copy: what is installed from there runs what is edited here. No history comes along,
# in which the repair may lie, and nothing that was compiled before a fault was put in.
_MOVE: Final = (
    'cp -r --preserve=mode,timestamps,links "$1"/. . && rm -rf .git "$1" && ln -s "$PWD" "$1"'
    " && find . -name __pycache__ -type d -prune -exec rm -rf {} +"
)
# No identity, no hooks, no configuration of anybody's.
_COMMIT: Final = f"git init -q --template= -b main . && git add -A && {_AS} commit -q --allow-empty -m base"
CONFIGURATION: Final = {
    *("conftest.py", "pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml", "pyproject.toml", "setup.cfg"),
    *("tox.ini", "sitecustomize.py", "usercustomize.py", "entry_points.txt"),
}
_SHADOWS: Final = {*sys.stdlib_module_names, "pytest", "_pytest", "pluggy", "iniconfig", "packaging"}


def spec_of(state: Mapping[str, Any], image: str | None) -> SandboxSpec:
    """The sandbox that a state takes: its files in it, or its image, whose root may be written."""
    if "root" in state:
        whole: dict[str, Any] = {"memory_bytes": MEMORY_BYTES, "disk_bytes": DISK_BYTES, "cpu_seconds": CPU_SECONDS}
        return SandboxSpec(image=image, writable_root=True, pids=PIDS, **whole)
    return SandboxSpec(image=image, files={path: text.encode() for path, text in state.get("files", {}).items()})


async def lay_out(sandbox: Sandbox, state: Mapping[str, Any]) -> None:
    """Of `files` that are there already, or of the directory `root` in the image; then `setup_patch`, as base.

    Raises InvalidTaskError, SandboxError.
    """
    if "root" in state:
        moved = await sandbox.exec(["sh", "-c", _MOVE, "sh", state["root"]], timeout=SECONDS)
        if moved.exit_code != 0:
            raise InvalidTaskError(f"{state['root']} cannot be copied: {moved.stderr.decode(errors='replace'):.200}")
    if patch := state.get("setup_patch"):
        applied = await sandbox.exec([*_GIT, "apply", "-"], stdin=patch.encode(), timeout=SECONDS)
        if applied.exit_code != 0:
            raise InvalidTaskError(f"its setup_patch does not apply: {applied.stderr.decode(errors='replace'):.200}")
    begun = await sandbox.exec(_COMMIT, timeout=SECONDS)
    if begun.exit_code != 0:
        said = begun.stderr.decode(errors="replace").strip()
        raise SandboxUnavailable(f"git does not work in the sandbox: {said[-300:]}")


async def apply(sandbox: Sandbox, patch: bytes) -> str:
    """Apply a patch to it; why it does not, or an empty text. Raises SandboxError."""
    applied = await sandbox.exec([*_GIT, "apply", "-"], stdin=patch, timeout=SECONDS)
    return "" if applied.exit_code == 0 else applied.stderr.decode(errors="replace").strip()[:200]


def paths_of(patch: str) -> set[str]:
    """Files that a diff of git's changes or makes."""
    return set(re.findall(r"^(?:\+\+\+ b|--- a)/([^\t\n]+)", patch, re.MULTILINE))


async def restore(sandbox: Sandbox, tests: set[str]) -> list[str]:
    """Take back what a patch did to `tests`, to configuration and to what the test framework is made of; which files.

    Nothing of the patch has run yet. Raises SandboxError.
    """
    command = [*_GIT, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--ignored"]
    said = await sandbox.exec(command, timeout=SECONDS, output_limit=1 << 22)
    if said.exit_code != 0 or said.truncated:
        raise SandboxUnavailable(f"git cannot tell what has changed: {said.stderr.decode(errors='replace'):.200}")
    known: list[str] = []
    new: list[str] = []
    for entry in said.stdout.decode(errors="surrogateescape").split("\0")[:-1]:
        state, path = entry[:2], entry[3:].rstrip("/")
        if path in tests or _is_guarded(path, new=state in ("??", "!!")):
            (new if state in ("??", "!!") else known).append(path)
    for command, paths in (([*_GIT, "checkout", "-q", "HEAD", "--"], known), (["rm", "-rf", "--"], new)):
        if paths and (done := await sandbox.exec([*command, *paths], timeout=SECONDS)).exit_code != 0:
            raise SandboxUnavailable(f"files cannot be restored: {done.stderr.decode(errors='replace'):.200}")
    return [*known, *new]


def _is_guarded(path: str, *, new: bool) -> bool:
    """Configuration wherever it lies; a new file if it would be imported in the place of another's module."""
    parts = PurePosixPath(path).parts
    if parts[-1] in CONFIGURATION or parts[-1].endswith((".pth", ".pyc")):
        return True
    if {part.partition(".")[0] for part in parts} & {"sitecustomize", "usercustomize"}:  # packages, too
        return True
    first = parts[1] if parts[0] == "src" and len(parts) > 1 else parts[0]
    return new and first.partition(".")[0] in _SHADOWS
