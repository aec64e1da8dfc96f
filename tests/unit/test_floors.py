"""The floors hold: what every module imports, lazily or not, and what none may mention."""

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = ("verifiers", "rollout_workers", "rl")

DOORS = {
    "vllm": (
        "rollout_workers/engine.py",
        "rollout_workers/staging.py",
        "rollout_workers/transfer.py",
        "rl/bench/rollouts.py",
    ),
    "docker": ("rollout_workers/sandbox/docker.py",),
    "ray": ("rl/cluster.py",),
    "fastapi": ("rl/service/",),
}
"""Library -> the files, or folders, that alone may import it."""

ABOVE = {
    "verifiers": {"rl", "rollout_workers", "torch", "ray", "vllm", "docker"},
    "rollout_workers": {"rl"},
    "rl": set(),
}
UNPICKLERS = {"pickle", "cloudpickle", "dill", "shelve", "joblib"}
INSIDE = ("rollout_workers/sandbox/agent.py", "rollout_workers/sandbox/template.py", "verifiers/_candidate.py")
"""What runs in sandboxes. It believes the host, and so may read what that has marshalled; the host never does."""

PATHS_OF_A_MACHINE = re.compile(r"(?<![\w.~-])/(?:home|Users|opt|root|mnt|srv)/\w")
OUTSIDE_A_SANDBOX = re.compile(r"(?<![\w.~-])/work/")
SANDBOX_SIDE = ("verifiers/", "rollout_workers/sandbox/", "tests/integration/test_sandbox_contract.py")
"""Where /work is the working directory inside a sandbox, and no path of a host."""
PLACES_OF_THEIR_OWN = (
    "rl/tasks/repositories.py",  # public images
    "deploy/systemd/cwm-rl.service",  # where a unit's program is put by convention
    "tests/unit/test_deploy.py",
    "tests/integration/test_docker_engine.py",  # inside a container
)
TEXTS = ("*.md", "*.toml", "*.sh", "*.yaml", "*.py", "*.service", "*.txt", "*.in", "*Dockerfile", "Makefile", ".ci/*")


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file, of all floors; a package goes by its own name."""
    found = {}
    for floor in FLOORS:
        for path in sorted((ROOT / floor).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def live_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that can run: what stands under `if TYPE_CHECKING:` is left out."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield from live_nodes(child)


@cache
def imports(path: Path) -> frozenset[str]:
    """Full names that a file imports, also inside functions: `from a import b` is a.b."""
    found = set()
    for node in live_nodes(tree(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: a relative import hides which floor it reaches"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            found.update(str(one.value) for one in node.args if isinstance(one, ast.Constant))
    return frozenset(found)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def importers(library: str) -> list[str]:
    return [relative(path) for path in modules().values() if library in {name.split(".")[0] for name in imports(path)}]


def test_there_is_something_to_read() -> None:
    assert {name.split(".")[0] for name in modules()} == set(FLOORS)
    assert importers("vllm"), "the test sees no import of vllm: it has gone blind"
    assert importers("ray"), "the test sees no import of ray, which stands inside functions: it has gone blind"


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_point_down(floor: str) -> None:
    for name, path in modules().items():
        if name.split(".")[0] == floor:
            upward = {imported for imported in imports(path) if imported.split(".")[0] in ABOVE[floor]}
            assert not upward, f"{relative(path)} imports {', '.join(sorted(upward))}"


@pytest.mark.parametrize("library", DOORS)
def test_every_heavy_library_has_its_door(library: str) -> None:
    elsewhere = [path for path in importers(library) if not path.startswith(DOORS[library])]
    assert not elsewhere, f"{library} is imported outside of {', '.join(DOORS[library])}"


def test_there_is_no_cycle() -> None:
    known = modules()

    def target(imported: str) -> str | None:
        """The module an import reaches: the longest beginning of its name that is one."""
        parts = imported.split(".")
        candidates = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        return next((candidate for candidate in candidates if candidate in known), None)

    graph = {name: {found for one in imports(path) if (found := target(one))} - {name} for name, path in known.items()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"imports go in a circle: {' <- '.join(error.args[1])}")


def test_the_algorithm_is_pure() -> None:
    for name, path in modules().items():
        if name.startswith("rl.algorithm."):
            others = {one for one in imports(path) if one.startswith("rl.") and not one.startswith("rl.algorithm.")}
            assert not others, f"{relative(path)} imports {', '.join(sorted(others))}"


def test_no_private_name_is_imported_from_another_floor() -> None:
    for name, path in modules().items():
        for one in imports(path):
            floor, *parts = one.split(".")
            if floor in FLOORS and floor != name.split(".")[0]:
                assert not any(part.startswith("_") for part in parts), f"{relative(path)} imports {one}"


def test_nothing_is_unpickled() -> None:
    for path in modules().values():
        names = {name.split(".")[0] for name in imports(path)} & UNPICKLERS
        assert not names, f"{relative(path)} imports {', '.join(names)}"
        assert not any(name.startswith("marshal.") for name in imports(path)), f"{relative(path)}: whole names only"
        for node in live_nodes(tree(path)):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called != "torch.load", f"{relative(path)}:{node.lineno} unpickles with torch.load"
                assert not called.startswith("marshal.load") or relative(path) in INSIDE, f"{relative(path)}"
                assert "allow_pickle" not in {keyword.arg for keyword in node.keywords}, f"{relative(path)}"


def test_no_path_of_somebodys_machine() -> None:
    try:
        listed = subprocess.run(["git", "ls-files", "-z", *TEXTS], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no git")
    if listed.returncode:
        pytest.skip("this is no clone: git lists no files")
    names = set(filter(None, listed.stdout.split("\0"))) - {relative(Path(__file__))}
    assert {"README.md", "rl/cli.py", "tests/conftest.py"} <= names
    for name in sorted(names):
        text = (ROOT / name).read_text(encoding="utf-8") if (ROOT / name).is_file() else ""
        if name not in PLACES_OF_THEIR_OWN:
            assert not (found := PATHS_OF_A_MACHINE.search(text)), f"{name} mentions {found[0]}"
        if not name.startswith(SANDBOX_SIDE):
            assert not OUTSIDE_A_SANDBOX.search(text), f"{name} mentions /work/"
