"""`cwm-rl`: one sub-command a use. Bad input gets a sentence and exit code 2; a run that failed, 1; Ctrl-C, 130."""

import argparse
import asyncio
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from verifiers.errors import UserError

OK, FAILED, INTERRUPTED = 0, 1, 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; ends the process."""
    options = _parser().parse_args(arguments)
    sys.exit(_guarded(options))


def _guarded(options: argparse.Namespace) -> int:
    """Every error that has a sentence for people ends here, and no other."""
    code = INTERRUPTED
    try:
        return int(options.command(options))
    except* KeyboardInterrupt:
        pass
    except* UserError as group:
        found = list(_leaves(group))
        code = max(error.exit_code for error in found)
        for sentence in dict.fromkeys(map(str, found)):
            print(f"cwm-rl: {sentence}", file=sys.stderr)
    return code


def _leaves(group: BaseExceptionGroup[UserError]) -> Iterator[UserError]:
    for inner in group.exceptions:
        if isinstance(inner, BaseExceptionGroup):
            yield from _leaves(inner)
        else:
            yield inner


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cwm-rl", description="Asynchronous multi-turn GRPO for coding models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        return sub

    train = add("train", _train, "Train from a configuration, on this machine or on the cluster of RAY_ADDRESS.")
    _config_options(train)
    train.add_argument("--dry-run", action="store_true", help="print the resolved configuration and what would start")

    resume = add("resume", _resume, "Go on with a run from its newest checkpoint.")
    resume.add_argument("run", type=Path, help="directory of the run")
    resume.add_argument(
        "--set", action="append", default=[], metavar="A.B=VALUE", help="change a setting, e.g. run.steps=10"
    )

    audit = add("audit", _audit, "Add a run's ledger up; exit code 1 if it does not.")
    audit.add_argument("run", type=Path, help="directory of the run")

    init = add("init-model", _init_model, "Make a small model of CWM's architecture, with a tokenizer, from nothing.")
    init.add_argument("target", type=Path, help="directory to make")
    init.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="shape, e.g. hidden_size=256")
    init.add_argument("--corpus", action="append", default=[], help="text file to learn the vocabulary from")

    submit = add("submit", _submit, "Hand a run to a Ray cluster as a job named like the run.")
    _config_options(submit)
    submit.add_argument("--address", help="the cluster's dashboard, http://HOST:8265; else RAY_ADDRESS")

    doctor = add("doctor", _doctor, "Say what is there, and for what is missing, what brings it.")
    doctor.add_argument("--json", action="store_true", help="for programs")
    return parser


def _config_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="TOML file, see deploy/configs/")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="override one setting")


def _train(options: argparse.Namespace) -> int:
    from rl import config, plan

    settings = config.load(options.config, options.set)
    if options.dry_run:
        print(settings.model_dump_json(indent=2))
        print("\n".join(plan.in_words(settings)))
        return OK
    return _execute(settings, None)


def _resume(options: argparse.Namespace) -> int:
    from rl import config, run

    return _execute(config.changed(run.stored_config(options.run), options.set), options.run.resolve())


def _execute(settings: Any, directory: Path | None) -> int:
    from rl import cluster, plan, report, run
    from rl.interrupts import run_interruptible
    from rollout_workers.renderer import Renderer

    plan.check_machine(settings)
    cluster.check(settings.cluster)
    tasks = run.load_tasks(settings)
    if settings.model.path is not None:
        Renderer.load(settings.model.path)  # complains of a missing or unfit model before anything is made for it
    directory = directory or run.create(settings, _say)
    advice = f"go on with: cwm-rl resume {shlex.quote(str(directory))} (what its actors printed: its folder logs)"
    try:
        result = run_interruptible(run.execute(settings, directory, tasks, _say), advice)
    except* UserError:
        print(advice, file=sys.stderr)
        raise
    if result is None:
        return INTERRUPTED
    print(report.in_words(result))
    print(f"All of it: {directory / 'report.json'}")
    return OK if result["ledger"]["balanced"] else FAILED


def _audit(options: argparse.Namespace) -> int:
    from rl.ledger.audit import audit, in_words

    found = audit(options.run)
    print(in_words(found))
    return OK if found.ok else FAILED


def _init_model(options: argparse.Namespace) -> int:
    from rl import config
    from rl.init_model import InitModel, digest, init_model

    tree: dict[str, Any] = {"corpus": options.corpus}
    for override in options.set:
        config.override(tree, override)
    size = init_model(config.validated(InitModel, tree, "init-model"), options.target)
    print(f"{options.target}: {size:,} parameters, sha256 {digest(options.target)}")
    return OK


def _submit(options: argparse.Namespace) -> int:
    from rl import cluster, config, jobs

    settings = config.load(options.config, options.set)
    job = jobs.job_for(settings, options.config, options.set)
    state = cluster.submit(options.address, job, _say)
    print(f"job {job.name}: {state}; its run: {job.directory}")
    return OK


def _doctor(options: argparse.Namespace) -> int:
    from rl import doctor

    found = asyncio.run(doctor.examine())
    print(json.dumps([vars(item) for item in found], indent=2) if options.json else doctor.in_words(found))
    return OK if all(item.ok or not item.needed for item in found) else FAILED


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
