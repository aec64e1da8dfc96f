"""A run as a job of a Ray cluster: the same command line, under the run's name, with what it reads beside it."""

import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rl.config import Config, ConfigError


@dataclass(frozen=True, slots=True)
class Job:
    """What `cluster.submit` hands over."""

    name: str
    entrypoint: str
    working_dir: Path
    directory: Path
    """Of the run; absolute, since a job's own working directory goes with the job."""


def job_for(config: Config, file: Path, overrides: Sequence[str]) -> Job:
    """The job that trains `file` with `overrides`. What travels is the directory one stands in.

    Raises ConfigError where the configuration lies outside of it.
    """
    here = Path.cwd()
    try:
        relative = file.resolve().relative_to(here)
    except ValueError:
        raise ConfigError(
            f"{file} lies outside {here}, which is what the job takes along: submit from above it"
        ) from None
    name = config.run.id or time.strftime("%Y%m%d-%H%M%S")
    runs = config.run.directory.resolve()
    settings = [*overrides, f"run.id={json.dumps(name)}", f"run.directory={runs}"]
    if config.warm_start is not None:  # beside the runs, for the next job
        settings.append(f"warm_start.directory={runs / config.warm_start.directory}")
    command = ["python", "-m", "rl.cli", "train", str(relative)]
    for setting in settings:
        command += ["--set", setting]
    return Job(name, shlex.join(command), here, runs / name)
