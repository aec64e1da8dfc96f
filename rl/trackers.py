"""A run's numbers handed on to somebody's tracker: TensorBoard, Weights & Biases, MLflow or trackio.

A tracker is a process of its own that reads the ledger, as anybody may: it can be slow, fail or hang, and the run does
not notice. None of the libraries comes with this package; one that is missing is named, with what installs it.
"""

import importlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, Protocol, get_args

from rl.config import Tracker
from rl.ledger import LedgerError, Reader
from rl.progress import Say
from rl.service.runs import flat_stats
from verifiers.errors import UserError

NAMES: Final = get_args(Tracker)
_INSTALLS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow-skinny", "trackio": "trackio"}
_PERIOD = 2.0


class TrackerError(UserError):
    """A tracker that is not installed, or that failed, in one sentence."""

    exit_code = 1


class Sink(Protocol):
    """A tracker that is open."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the numbers of one step."""
        ...

    def close(self) -> None:
        """Finish: no more numbers will come."""
        ...


def track(run: Path, name: Tracker, say: Say, *, follow: bool) -> None:
    """Hand on every step from the first; `follow`: and each new one until the run ends. Raises TrackerError.

    Raises LedgerError if there is no run.
    """
    with Reader(run) as reader:
        config = dict(reader.config)
    try:
        with closing(_OPEN[name](run, config)) as sink:
            _hand_on(run, sink, say, follow=follow)
    except LedgerError:
        raise
    except Exception as error:  # whatever a library raises, this is the one place that names it
        if isinstance(error, UserError):
            raise
        raise TrackerError(f"{name} failed: {type(error).__name__}: {error}") from error


def start(run: Path, names: Sequence[Tracker]) -> "list[subprocess.Popen[bytes]]":
    """A process for each, which follows the run and ends after it; what it says goes to the run's `logs`."""
    started = []
    for name in names:
        (run / "logs").mkdir(exist_ok=True)
        with (run / "logs" / f"tracker-{name}.log").open("ab") as log:
            command = [sys.executable, "-m", "rl.cli", "track", str(run), "--to", name, "--follow"]
            # A session of its own: Ctrl-C ends the run, and this once it has told the last step.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        started.append(process)
    return started


def _hand_on(run: Path, sink: Sink, say: Say, *, follow: bool) -> None:
    lineage, last = 0, 0
    while True:
        with Reader(run) as reader:
            alive = reader.is_written
            if reader.lineage != lineage:  # the learner fell back: its steps are told again, from where they differ
                lineage, last = reader.lineage, min(last, reader.step)
            steps = reader.steps(after=last)
        for step in steps:
            sink.log(step.step, {name: value for name, value in flat_stats(step).items() if value is not None})
            last = step.step
        if not follow or not alive:
            say(f"{last} steps were handed on")
            return
        time.sleep(_PERIOD)


def _library(name: str, module: str) -> Any:
    """Raises TrackerError if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise TrackerError(f"{name} is not installed: {sys.executable} -m pip install {_INSTALLS[name]}") from error


class _TensorBoard:
    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        _library("tensorboard", "tensorboard")
        self._writer = _library("tensorboard", "torch.utils.tensorboard").SummaryWriter(str(run / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name.replace(".", "/"), value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """The interface that trackio shares: init, log, finish."""

    def __init__(self, name: str, run: Path, config: Mapping[str, Any]) -> None:
        self._library = _library(name, name)
        options: dict[str, Any] = {"project": "cwm-rl", "name": run.name, "config": dict(config)}
        if name == "wandb":
            options |= {"id": run.name, "resume": "allow", "dir": str(run)}
        self._library.init(**options)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._library.log({name.replace(".", "/"): value for name, value in values.items()}, step=step)

    def close(self) -> None:
        self._library.finish()


class _MlFlow:
    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        self._library = _library("mlflow", "mlflow")
        self._library.set_experiment("cwm-rl")
        self._library.start_run(run_name=run.name)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._library.log_metrics(dict(values), step=step)

    def close(self) -> None:
        self._library.end_run()


_OPEN: Final[Mapping[str, Callable[[Path, Mapping[str, Any]], Sink]]] = {
    "tensorboard": _TensorBoard,
    "wandb": lambda run, config: _Wandb("wandb", run, config),
    "trackio": lambda run, config: _Wandb("trackio", run, config),
    "mlflow": _MlFlow,
}
