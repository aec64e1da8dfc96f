"""Takes the strongest sandbox that works here. Model-written code never runs without one."""

from typing import Literal

from rollout_workers.sandbox import bubblewrap, docker
from rollout_workers.sandbox.bubblewrap import Bubblewrap
from rollout_workers.sandbox.docker import Docker
from verifiers.sandbox import SandboxUnavailable

Backend = Literal["auto", "bubblewrap", "docker", "gvisor"]
"""`gvisor` is docker with gVisor's runtime."""


async def choose(
    backend: Backend = "auto",
    *,
    image: str = docker.BASE_IMAGE,
    runtime: str | None = None,
    cpus: float = 1.0,
    run: str = "",
) -> tuple[Docker | Bubblewrap, str]:
    """A back end proven to work, and a sentence on what was taken and why others were not.

    `image`, `runtime`, `cpus` and `run` are for docker alone; see `docker.Docker`. Raises SandboxUnavailable, with
    what to install.
    """
    passed_over: list[str] = []
    if backend == "gvisor":
        runtime = runtime or docker.GVISOR
    if backend != "bubblewrap":
        probe, engine = await docker.probe(image, runtime=runtime, cpus=cpus, run=run)
        if engine is not None:
            return engine, f"{probe.why}."
        passed_over.append(probe.why)
    if backend in ("auto", "bubblewrap"):
        probe, walls = await bubblewrap.probe()
        if walls is not None:
            return walls, "; ".join([probe.why, *passed_over]) + "."
        passed_over.append(probe.why)
    raise SandboxUnavailable(
        f"no sandbox ({backend}) works here, and nothing runs without one: {'; '.join(passed_over)}"
    )
