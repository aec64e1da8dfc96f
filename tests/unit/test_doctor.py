"""`cwm-rl doctor`, on this machine and on machines that lack something."""

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rl.doctor import Finding, examine, in_words, memory, packages, programs
from rollout_workers.sandbox.docker import weakness


@pytest.fixture(autouse=True)
def no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whether a container engine answers is not this machine's business here."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")


async def look() -> dict[str, Finding]:
    return {item.name: item for item in await examine()}


def distribution(folder: Path, name: str, *requires: str) -> None:
    """Installs an empty package, as far as its metadata says."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0", *(f"Requires-Dist: {line}" for line in requires)]
    (info / "METADATA").write_text("\n".join(lines) + "\n")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A further folder of installed packages."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("version", "weak"),
    [("1.1.5+ds1", True), ("1.2.7", True), ("1.2.8", False), ("1.3.0", True), ("1.3.3", False), ("1.4.0-rc.3", False)],
)
def test_a_runc_with_known_escapes_is_named(version: str, weak: bool) -> None:
    said = weakness({"Components": [{"Name": "Engine", "Version": "20.10"}, {"Name": "runc", "Version": version}]})
    assert (version in said) == weak
    assert weakness({}) == ""


@pytest.mark.required
async def test_what_is_needed_is_here_once_it_was_set_up() -> None:
    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is missing")
    found = await look()
    assert [item.name for item in found.values() if item.needed and not item.ok] == []
    assert found["packages"].found.startswith("torch 2.")
    assert "vllm" in found["vLLM"].found
    assert {"math", "code", "printable"} <= set(found["verifiers"].found.split(", "))
    assert in_words(list(found.values())).splitlines()[-1] == "All that is needed is here."


async def test_every_fault_that_can_be_mended_says_how() -> None:
    assert [item.name for item in (await look()).values() if not item.ok and not item.advice] == []


async def test_without_bubblewrap_and_docker_nothing_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    found = await look()
    assert [item.name for item in found.values() if item.needed and not item.ok] == ["bubblewrap", "Docker"]
    assert "apt-get install bubblewrap" in found["bubblewrap"].advice
    assert in_words(list(found.values())).splitlines()[-1] == "Not ready: bubblewrap, Docker."


def test_what_tasks_call_is_looked_for_where_sandboxes_look(tmp_path: Path) -> None:
    (tmp_path / "git").touch(0o755)
    git, compiler = programs(str(tmp_path))
    assert (git.ok, git.found) == (True, str(tmp_path / "git"))
    assert (compiler.ok, compiler.needed) == (False, False)
    assert "tasks in C++, as root: apt-get install g++" in compiler.advice


def test_a_missing_and_a_wrong_package_are_named(installed: Path) -> None:
    distribution(installed, "some-dependency")
    distribution(installed, "some-service", "some-dependency>=2", "no-such-package", 'other ; python_version < "3"')
    missing, engine = packages("some-service")
    assert (missing.ok, missing.needed) == (False, True)
    assert missing.found == "some-dependency is 1.0 and must be >=2; no-such-package is missing"
    assert missing.advice == "make setup"
    assert not engine.ok


@pytest.mark.parametrize(("present", "ok"), [("first-engine", True), ("second-engine", True), ("none", False)])
def test_one_build_of_the_engine_is_enough(installed: Path, present: str, ok: bool) -> None:
    distribution(installed, present)
    extras = ('first-engine==1.0 ; extra == "cpu"', 'second-engine==1.0 ; extra == "cuda"')
    distribution(installed, "some-service", *extras)
    engine = packages("some-service")[1]
    assert (engine.ok, engine.needed) == (ok, True)
    assert engine.found == (f"{present} 1.0" if ok else "first-engine is missing; second-engine is missing")


def test_a_plain_checkout_is_told_to_be_set_up() -> None:
    (finding,) = packages("never-installed")
    assert (finding.ok, finding.needed, finding.advice) == (False, True, "make setup")


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "http://127.0.0.1:{}", "ray://127.0.0.1:{}"])
async def test_a_cluster_that_listens_and_one_that_does_not(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    address = form.format(server.sockets[0].getsockname()[1])
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert (await look())["Ray cluster"].found == f"something listens at {address}"

    server.close()
    await server.wait_closed()
    lost = (await look())["Ray cluster"]
    assert (lost.ok, lost.needed, lost.found) == (False, False, f"nothing listens at {address}")


@pytest.mark.parametrize("address", ["head-node", "head:port", "http://"])
async def test_an_address_that_is_none(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    found = (await look())["Ray cluster"]
    assert not found.ok
    assert repr(address) in found.found


@pytest.mark.parametrize(
    ("script", "ok", "words"),
    [
        ("echo 'NVIDIA H100, 81559 MiB'; echo 'NVIDIA H100, 81559 MiB'", True, "NVIDIA H100, 81559 MiB; NVIDIA H100"),
        ("echo 'NVIDIA-SMI has failed: no driver' >&2; exit 9", False, "NVIDIA-SMI has failed: no driver"),
    ],
)
async def test_graphics_cards_are_what_the_driver_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, ok: bool, words: str
) -> None:
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = (await look())["GPUs"]
    assert (found.ok, found.needed) == (ok, False)
    assert words in found.found


def test_a_containers_limit_is_its_memory(tmp_path: Path) -> None:
    limit, absent = tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes"
    limit.write_text("max\n")
    total, available = memory([limit, absent])
    assert 0 < available <= total
    assert memory([]) == (total, pytest.approx(available, rel=0.2))
    limit.write_text(f"{1 << 20}\n")
    assert memory([absent, limit]) == (1 << 20, 1 << 20)
    limit.write_text(f"{1 << 62}\n")  # what version 1 writes where there is none
    assert memory([limit])[0] == total


def test_programs_read_it_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    command = [sys.executable, "-m", "rl.cli", "doctor", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    findings = {item["name"]: item for item in json.loads(result.stdout)}
    assert result.returncode == 1
    assert findings["bubblewrap"]["needed"]
    assert findings["Python"] | {"found": ""} == {
        "name": "Python",
        "found": "",
        "ok": True,
        "needed": True,
        "advice": "",
    }


def test_it_is_quick_because_nothing_heavy_is_imported() -> None:
    code = (
        "import asyncio, sys; from rl import doctor; asyncio.run(doctor.examine());"
        "print(sorted({'torch', 'vllm', 'ray', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == "[]", result.stderr


def test_a_broken_plug_in_is_named(installed: Path) -> None:
    distribution(installed, "some-plugin")
    points = installed / "some_plugin-1.0.dist-info" / "entry_points.txt"
    points.write_text("[cwm_rl.verifiers]\nlost = module_that_is_gone:Verifier\n")
    found = asyncio.run(look())["verifiers"]
    assert not found.ok
    assert "lost (module_that_is_gone:Verifier)" in found.found
