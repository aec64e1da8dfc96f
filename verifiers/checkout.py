"""A repository as a task has it, laid out in a sandbox's working directory with one commit and no history."""

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from verifiers.errors import InvalidTaskError
from verifiers.sandbox import Sandbox, SandboxSpec, SandboxUnavailable

SECONDS: Final = 120.0
MEMORY_BYTES: Final = 4 << 30
DISK_BYTES: Final = 2 << 30
CPU_SECONDS: Final = 1200.0
"""Of one process, all its threads together; suites have a deadline of their own."""
PIDS: Final = 512
_PATHS_LIMIT: Final = 1 << 23
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
# Git writes files anew, so that a link to the old one keeps it; no patch of git's reaches where these lie.
_HOLD: Final = (
    "mkdir .git/held && exec xargs -0r sh -c '"
    'for path; do if [ -f "$path" ] || [ -L "$path" ]; then for how in -lP -P; do'
    ' cp "$how" --parents -- "$path" .git/held && continue 2; done; exit 255; fi; done'
    "' sh"
)
_TAKE_BACK: Final = "xargs -0r rm -rf -- && cp -rP .git/held/. . && rm -rf .git/held"
_ABSENT: Final = (
    """exec xargs -0r sh -c 'for path; do [ -e "$path" ] || [ -L "$path" ] || printf "%s\\0" "$path"; done' sh"""
)
_MISSING: Final = """exec xargs -0r sh -c 'for path; do [ -f "$path" ] || printf "%s\\0" "$path"; done' sh"""
CONFIGURATION: Final = {
    *("conftest.py", "pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml", "pyproject.toml", "setup.cfg"),
    *("tox.ini", "sitecustomize.py", "usercustomize.py", "entry_points.txt"),
    ".gitattributes",  # in which a hidden test that comes as a patch could be written: UTF-7 turns == into a name
}
_SHADOWS: Final = {*sys.stdlib_module_names, "pytest", "_pytest", "pluggy", "iniconfig", "packaging"}
_OF_TESTS: Final = {"test", "tests", "testing", "e2e"}
# Whether a name would be imported from elsewhere than the repository, which may be installed itself.
_INSTALLED: Final = """
import importlib.util, os, sys
here = os.path.realpath(".") + os.sep
for name in sys.stdin.buffer.read().decode(errors="surrogateescape").split("\\0")[:-1]:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        continue
    places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
    if any(isinstance(place, str) and not os.path.realpath(place).startswith(here) for place in places):
        sys.stdout.buffer.write(name.encode(errors="surrogateescape") + b"\\0")
"""


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


async def apply(sandbox: Sandbox, patch: bytes, *options: str) -> str:
    """Apply a patch to it; why it does not, or an empty text. `--check` only tries. Raises SandboxError."""
    applied = await sandbox.exec([*_GIT, "apply", *options, "-"], stdin=patch, timeout=SECONDS)
    if applied.exit_code == 0:
        return ""
    return applied.stderr.decode(errors="replace").strip()[:200] or f"git ended with {applied.exit_code}"


async def paths_of(sandbox: Sandbox, patch: bytes) -> set[str]:
    """Files that a patch changes, makes, moves or removes, as git reads it.

    Raises ValueError where git cannot, SandboxError.
    """
    found: set[str] = set()
    for way in ([], ["-R"]):  # the other way round, a move is named by where it comes from
        command = [*_GIT, "apply", "--numstat", "-z", *way, "-"]
        said = await sandbox.exec(command, stdin=patch, timeout=SECONDS, output_limit=_PATHS_LIMIT)
        if said.exit_code is None or said.truncated:
            raise SandboxUnavailable("git cannot tell what a patch changes")
        if said.exit_code != 0:
            raise ValueError(said.stderr.decode(errors="replace").strip()[:200])
        lines = said.stdout.decode(errors="surrogateescape").split("\0")[:-1]
        found |= {line.split("\t", 2)[2] for line in lines}
    return found


async def apply_guarded(
    sandbox: Sandbox, patch: bytes, tests: set[str], *, python: str = "python3", allowed: Collection[str] = ()
) -> str:
    """Apply a patch, less what it does to `tests`, to what is in their way, to the helpers and data beside tests, to
    configuration, to what the test framework is made of, and to what else is installed; why it does not apply, or an
    empty text.

    Helpers are what lies in a folder of tests as SWE-bench splits patches, but for those `allowed`, which the real
    patch changes too. All else that lies there stays as it is, ignored or not. Nothing of the patch has run yet.
    Raises SandboxError.
    """
    tests = {str(PurePosixPath(path)) for path in tests}  # as git writes them
    try:
        paths = await paths_of(sandbox, patch)
        kept = {path for path in paths if _is_configuration(path)} | tests
        helpers = {path for path in paths if not _OF_TESTS.isdisjoint(PurePosixPath(path).parts[:-1])} - {*allowed}
        roots = await _roots(sandbox, tests)
        modules = _modules(paths - {*allowed}, roots)
        if not helpers and not modules and not _touching(paths, kept):
            return await apply(sandbox, patch)
        if refused := await apply(sandbox, patch, "--check"):
            return refused  # its paths may be none below the repository
        kept |= helpers - {*await _each(sandbox, _ABSENT, helpers)}
        kept |= await _usurpers(sandbox, modules, roots, python)
        touching = _touching(paths, kept)
        await _each(sandbox, _HOLD, touching)
        refused = await apply(sandbox, patch)
        await _each(sandbox, _TAKE_BACK, touching)
    except ValueError as error:
        return str(error)
    return refused


async def missing(sandbox: Sandbox, paths: Collection[str]) -> list[str]:
    """Which of them are no files. Raises ValueError, SandboxError."""
    return await _each(sandbox, _MISSING, paths)


def _touching(paths: set[str], kept: set[str]) -> list[str]:
    """Which are kept, or in the way of what is, above or below; a folder before what is in it."""
    above = _folders(kept)
    found = {path for path in paths if path in kept or path in above or not kept.isdisjoint(_folders([path]))}
    return sorted(found | (kept & _folders(found)))


def _folders(paths: Collection[str]) -> set[str]:
    return {str(folder) for path in paths for folder in PurePosixPath(path).parents}


async def _each(sandbox: Sandbox, script: str, paths: Collection[str]) -> list[str]:
    """Run a script that reads paths and prints some, each ended by NUL.

    Raises ValueError if it fails, which only odd files and patches bring about, SandboxError.
    """
    if not paths:
        return []
    told = "".join(f"{path}\0" for path in paths).encode(errors="surrogateescape")
    done = await sandbox.exec(script, stdin=told, timeout=SECONDS, output_limit=_PATHS_LIMIT)
    if done.exit_code is None or done.truncated:
        raise SandboxUnavailable("the files of a repository could not be kept as they are in time")
    if done.exit_code != 0:
        raise ValueError(f"what it changes cannot be kept as it is: {done.stderr.decode(errors='replace'):.200}")
    return done.stdout.decode(errors="surrogateescape").split("\0")[:-1]


def _is_configuration(path: str) -> bool:
    """Configuration and installed packages, wherever they lie."""
    parts = PurePosixPath(path).parts or (".",)
    if parts[-1] in CONFIGURATION or parts[-1].endswith((".pth", ".pyc")) or parts[0] in ("venv", ".venv"):
        return True
    return not {part.partition(".")[0] for part in parts}.isdisjoint(
        {"sitecustomize", "usercustomize", "site-packages"}
    )


async def _roots(sandbox: Sandbox, tests: set[str]) -> set[str]:
    """Folders that modules are imported from: the repository, `src`, and where pytest looks for each file of tests."""
    marks = {str(PurePosixPath(folder, "__init__.py")) for folder in _folders(tests)}
    packages = {str(PurePosixPath(mark).parent) for mark in marks - {*await missing(sandbox, marks)}}
    above = (map(str, PurePosixPath(path).parents) for path in tests)
    return {".", "src"} | {next((folder for folder in folders if folder not in packages), ".") for folders in above}


@dataclass(frozen=True, slots=True)
class _Module:
    """What can be imported by `name` because of a patch's `path`, from `folder`. A link may lead to a package."""

    path: str
    folder: str
    name: str

    @property
    def rivals(self) -> set[str]:
        """Files that are imported by this name."""
        return {str(PurePosixPath(self.folder, f"{self.name}{end}")) for end in (".py", "/__init__.py")}

    @property
    def space(self) -> set[str]:
        """A folder that is, where there is none of those."""
        folder = str(PurePosixPath(self.folder, self.name))
        return set() if self.path.startswith(f"{folder}/") or self.path == folder else {folder}


def _modules(paths: Collection[str], roots: Collection[str]) -> list[_Module]:
    """Of those in a root, and in all folders of tests."""
    found = []
    for path in paths:
        parts = PurePosixPath(path).parts
        for at, part in enumerate(parts):
            folder, rest = str(PurePosixPath(*parts[:at])), parts[at + 1 :]
            if folder not in roots and _OF_TESTS.isdisjoint(parts[:at]):
                continue
            name, _, suffix = part.partition(".")
            is_package = len(rest) == 1 and not suffix and rest[0].partition(".")[0] == "__init__"
            if is_package or (not rest and (suffix in ("", "py") or suffix.endswith("so"))):
                found.append(_Module(path, folder, name))
    return found


async def _usurpers(sandbox: Sandbox, modules: Sequence[_Module], roots: Collection[str], python: str) -> set[str]:
    """Paths of those that are new, and would be imported in the place of what is installed, or of a helper of tests."""
    places = {place for one in modules for place in ({one.path} | one.rivals | one.space)}
    absent = {*await _each(sandbox, _ABSENT, places)}
    new = [one for one in modules if one.path in absent]
    own = [one for one in new if not one.rivals <= absent]  # the repository had this name before
    others = [one for one in new if one not in own and one.folder in roots]
    asked = {one.name for one in others} - _SHADOWS
    installed = _SHADOWS | {*(await _installed(sandbox, asked, python) if asked else ())}
    found = {one.path for one in others if one.name in installed or one.path == "src"}  # a link, where modules would be
    helps = [one for one in new if not _OF_TESTS.isdisjoint(PurePosixPath(one.path).parts[:-1])]
    return found | {one.path for one in helps if one in own or not one.space <= absent}


async def _installed(sandbox: Sandbox, names: Collection[str], python: str) -> list[str]:
    told = "".join(f"{name}\0" for name in names).encode(errors="surrogateescape")
    said = await sandbox.exec([python, "-I", "-c", _INSTALLED], stdin=told, timeout=SECONDS, output_limit=_PATHS_LIMIT)
    if said.exit_code != 0 or said.truncated:
        raise SandboxUnavailable(f"Python did not start in the sandbox: {said.stderr[-200:]!r}")
    return said.stdout.decode(errors="surrogateescape").split("\0")[:-1]
