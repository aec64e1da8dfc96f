"""Runs that this service starts: the command line in a process of its own, which outlives the service."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from rl import config
from rl.driver import pulse
from rl.ledger import Reader
from rl.ledger.schema import FILE, is_held
from rl.service import models, runs
from rl.service.auth import VARIABLES
from verifiers.errors import UserError

OVERRIDES: Final = (
    "run.steps",
    "run.seconds",
    "run.seed",
    "algorithm.group_size",
    "algorithm.max_lag",
    "algorithm.token_budget",
    "checkpoint.every",
    "checkpoint.keep",
    "learner.lr",
    "rollout.slots",
    "rollout.temperature",
    "rollout.workers",
)
"""What a start may set: numbers that name no file, no program and no host."""
_STARTING = 4
_KEPT = 50
_SAID = 4000


class LaunchRefused(UserError):
    """It is not started or stopped, for a reason that its sender can mend."""


class LaunchUnfit(LaunchRefused):
    """What was asked for makes no run."""


@dataclass
class _Launch:
    config: str
    process: "subprocess.Popen[bytes]"
    log: IO[bytes]


def ask_to_stop(run: Path) -> None:
    """Ask the driver of the run in a directory to end it. Raises LaunchRefused if there is none."""
    with Reader(run) as reader:
        standing = runs.state(run, reader)
    if standing != "running":
        raise LaunchRefused(f"the run '{run.name}' is {standing}: there is nothing to stop")
    try:
        pulse.ask_to_stop(run)
    except OSError as error:
        raise LaunchRefused(f"the run '{run.name}' cannot be asked to stop: {error.strerror}") from error


class Launcher:
    """Starts what lies in `configs`, into the runs below `root`. Used from several threads."""

    def __init__(self, root: Path, configs: Path | None) -> None:
        self._root, self._configs = root.resolve(), configs
        self._lock = threading.Lock()
        self._launches: OrderedDict[str, _Launch] = OrderedDict()

    def configurations(self) -> tuple[models.Configuration, ...]:
        """What may be started, by name."""
        return tuple(models.Configuration(name=name, overrides=OVERRIDES) for name in sorted(self._listed()))

    def start(self, wanted: models.Start) -> str:
        """The run's name. Raises LaunchRefused; LaunchUnfit, ConfigError for what can never be started."""
        path = self._listed().get(wanted.config)
        if path is None:
            raise LaunchUnfit(f"there is no configuration '{wanted.config}' here: see /api/v1/configurations")
        if unknown := sorted(wanted.overrides.keys() - set(OVERRIDES)):
            raise LaunchUnfit(f"'{unknown[0]}' may not be set from here: what may is {', '.join(OVERRIDES)}")
        name = wanted.run or time.strftime("%Y%m%d-%H%M%S")
        settings = [f"{key}={json.dumps(value)}" for key, value in wanted.overrides.items()]
        settings += [f"run.id={json.dumps(name)}", f"run.directory={json.dumps(str(self._root))}"]
        if (warm_start := config.load(path, settings).warm_start) is not None:  # where the service may write
            settings.append(f"warm_start.directory={json.dumps(str(self._root / warm_start.directory))}")
        with self._lock:
            if (self._root / name).exists() or self._alive(name):
                raise LaunchRefused(f"there is a run '{name}' already: take another name")
            if sum(self._alive(one) for one in self._launches if not self._begun(one)) >= _STARTING:
                raise LaunchRefused(f"{_STARTING} runs are starting: wait until one has begun")
            if (before := self._launches.pop(name, None)) is not None:
                before.log.close()
            self._launches[name] = self._spawn(wanted.config, path, settings)
            while len(self._launches) > _KEPT:
                self._launches.popitem(last=False)[1].log.close()
        return name

    def stop(self, name: str) -> None:
        """End the run of that name, wherever its driver is. Raises NoSuchRun; LaunchRefused if it does not run."""
        with self._lock:
            held = self._launches.get(name)
            if held is not None and held.process.poll() is None and not self._written(name):
                held.process.terminate()
                return
        ask_to_stop(runs.find(self._root, name))

    def launches(self) -> tuple[models.Launch, ...]:
        """The starts it was asked for, newest first."""
        with self._lock:
            return tuple(self._told(name, one) for name, one in reversed(self._launches.items()))

    def close(self) -> None:
        """Forget them all; they go on."""
        with self._lock:
            while self._launches:
                self._launches.popitem()[1].log.close()

    def _told(self, name: str, one: _Launch) -> models.Launch:
        begun, alive = self._begun(name), one.process.poll() is None
        said = os.pread(one.log.fileno(), _SAID, max(0, os.fstat(one.log.fileno()).st_size - _SAID))
        return models.Launch(
            run=name,
            config=one.config,
            state="begun" if begun else "starting" if alive else "failed",
            said=said.decode("utf-8", "replace"),
        )

    def _listed(self) -> Mapping[str, Path]:
        return {path.name: path for path in self._configs.glob("*.toml")} if self._configs else {}

    def _begun(self, name: str) -> bool:
        return (self._root / name / FILE).is_file()

    def _written(self, name: str) -> bool:
        """Whether its driver has taken the ledger, and so hears requests."""
        return self._begun(name) and is_held(self._root / name / FILE)

    def _alive(self, name: str) -> bool:
        held = self._launches.get(name)
        return held is not None and held.process.poll() is None

    def _spawn(self, name: str, path: Path, settings: Sequence[str]) -> _Launch:
        command = [sys.executable, "-m", "rl.cli", "train", str(path)]
        for setting in settings:
            command += ["--set", setting]
        environment = {key: value for key, value in os.environ.items() if key not in VARIABLES}
        log = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the launch is remembered
        process = subprocess.Popen(
            command,
            env=environment | {"PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        return _Launch(name, process, log)
