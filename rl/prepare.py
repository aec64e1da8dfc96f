"""What a run is made of before it runs: its tasks, its model, its directory."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from rl.config import Config, PartConfig, validated
from rl.init_model import init_model
from rl.ledger import Ledger
from rl.progress import Say
from rl.sft import warm_start
from rl.tasks.files import load
from rl.tasks.stream import FilePool, GeneratedPool, Pool
from rollout_workers import environments
from rollout_workers.files import replacing
from verifiers.combine import Combined, Part
from verifiers.errors import UserError
from verifiers.task import Task


class RunError(UserError):
    """A run that cannot start or go on, in one sentence."""


def load_tasks(config: Config) -> list[Pool]:
    """All tasks, in pools, checked by the verifiers that will score them. Raises UserError."""
    check = _checker(config)
    check_generated(config)
    pools: list[Pool] = []
    tasks = [task for source in config.data.sources for task in load(source, config.data.dir, check)]
    if twice := [name for name, times in Counter(task.id for task in tasks).items() if times > 1]:
        raise RunError(
            f"{len(twice)} task id(s), the first '{twice[0]}', stand in more than one of data.sources: give their rows "
            "ids of their own, or name one source less"
        )
    if config.data.mixture:
        for domain in sorted({task.domain for task in tasks}):
            pools.append(FilePool(domain, [task for task in tasks if task.domain == domain], config.run.seed))
    elif tasks:
        pools.append(FilePool("", tasks, config.run.seed))
    prefixes = set[str]()
    for source in config.data.generated:
        if source.prefix in prefixes:
            raise RunError(
                f"data.generated has '{source.generator}' of difficulty {source.difficulty} twice with one seed, which "
                "draws the same tasks twice: give one of them another seed"
            )
        prefixes.add(source.prefix)
        pools.append(GeneratedPool(source.seeded(config.run.seed)))
    known = sorted({pool.domain for pool in pools})
    for stage in config.data.mixture:
        if unknown := sorted(set(stage.weights) - set(known)):
            raise RunError(
                f"data.mixture draws from '{unknown[0]}', of which there is no task: known are {', '.join(known)}"
            )
    return pools


def check_generated(config: Config) -> None:
    """Raises RunError where what a generator makes cannot be scored."""
    check = _checker(config)
    for source in config.data.generated:
        try:
            check(source.task(0))
        except ValueError as error:
            raise RunError(f"data.generated, {source.generator}: {error}") from error


def _checker(config: Config) -> Callable[[Task], None]:
    """Checks a task by the verifier that will score it; raises ValueError."""
    checkers: dict[str, Combined] = {}

    def check(task: Task) -> None:
        environments.find(task.environment)
        if task.verifier not in checkers:
            checkers[task.verifier] = Combined(recipe(config, task.verifier))
        checkers[task.verifier].check_task(task)

    return check


def recipe(config: Config, verifier: str) -> dict[str, Part]:
    """What scores the tasks that name `verifier`."""
    parts = config.verifiers.get(verifier) or {verifier: PartConfig()}
    return {name: Part(**part.model_dump()) for name, part in parts.items()}


def create(config: Config, say: Say) -> Path:
    """Make a run's directory with its configuration, its model and an empty ledger. Raises UserError, OSError.

    A warm start comes first: interrupted, it leaves no run, and the next one goes on with it.
    """
    name = config.run.id or time.strftime("%Y%m%d-%H%M%S")
    directory = config.run.directory.resolve() / name
    if directory.exists():
        raise RunError(f"{directory} exists: go on with `cwm-rl resume {directory}`, or set another run.id")
    began = time.monotonic()
    warm = warm_start.prepare(config, say) if config.warm_start else None
    seconds = time.monotonic() - began
    try:
        directory.mkdir(parents=True)
    except OSError as error:
        raise RunError(f"{directory} cannot be made: {error.strerror}") from error
    try:
        if warm is not None:
            shutil.copytree(warm, directory / "model")
            (directory / "warm_start.json").write_text(json.dumps({"model": str(warm), "seconds": seconds}))
        elif config.model.init is not None:
            size = init_model(config.model.init, directory / "model")
            say(f"made a model of {size:,} parameters from nothing")
        store(config, directory)
        with Ledger.create(directory, name, config.model_dump(mode="json")):
            pass
    except BaseException:
        shutil.rmtree(directory)
        raise
    say(f"run {name}: {config.run.steps} steps, in {directory}")
    return directory


def base_model(config: Config, directory: Path) -> str:
    """The model that the run in `directory` began with."""
    own = directory / "model"
    return str(own) if own.is_dir() else str(config.model.path)


def warm_start_seconds(directory: Path) -> dict[str, float]:
    """What the run's warm start took in this run, which is little where an earlier one had made it."""
    path = directory / "warm_start.json"
    return {"warm_start": float(json.loads(path.read_text())["seconds"])} if path.exists() else {}


def store(config: Config, directory: Path) -> None:
    """Write what the run in `directory` goes on with, its directories absolute: a resume may start anywhere.

    Raises OSError.
    """
    tree = config.model_dump(mode="json")
    for part, key in (("run", "directory"), ("data", "dir"), ("model", "path"), ("warm_start", "directory")):
        branch = tree[part]
        if branch and branch[key] and Path(branch[key]).is_dir():  # what is none may be a name on the hub
            branch[key] = str(Path(branch[key]).resolve())
    with replacing(directory / "config.json") as whole:
        whole.write_text(json.dumps(tree, indent=2) + "\n")


def stored_config(directory: Path) -> Config:
    """The configuration a run goes on with. Raises RunError, ConfigError."""
    path = directory / "config.json"
    try:
        tree = json.loads(path.read_text())
    except OSError as error:
        raise RunError(f"there is no run in {directory}: {error.strerror}") from error
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}") from error
    return validated(Config, tree, str(path))
