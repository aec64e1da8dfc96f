"""`cwm-rl`: one sub-command a use. Bad input gets a sentence and exit code 2; a run that failed, 1; Ctrl-C, 130."""

import argparse
import asyncio
import errno
import io
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rl.bench import cli as bench
from rl.console import (
    FAILED,
    INTERRUPTED,
    OK,
    add,
    address_option,
    backend_option,
    config_options,
    group,
    json_option,
    say,
    say_aside,
    set_option,
    unheard,
)
from verifiers.errors import UserError

_OF_THE_MACHINE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR}
"""What files and disks refuse; the sentence is theirs. Any other OSError is a fault of ours."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; ends the process."""
    # Before torch is loaded: an OpenMP thread that spins while it waits costs a busy machine most of its speed.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that has no ≤ shall not end a run
    code = _guarded(options)
    if code == INTERRUPTED:  # all is put away already, and somebody waits: unloading torch and Ray takes seconds
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _guarded(options: argparse.Namespace) -> int:
    """Every error that has a sentence for people ends here, and no other."""
    code = INTERRUPTED
    try:
        code = int(options.command(options))
        sys.stdout.flush()
    except* KeyboardInterrupt:
        pass
    except* BrokenPipeError:  # whoever read what we say has enough, `head` for one
        code = FAILED
        unheard()
    except* UserError as group:
        found = list(_leaves(group))
        code = max(error.exit_code for error in found)
        for sentence in dict.fromkeys(map(str, found)):
            print(f"cwm-rl: {sentence}", file=sys.stderr)
    except* OSError as group:
        known, others = group.split(lambda error: isinstance(error, OSError) and error.errno in _OF_THE_MACHINE)
        if others is not None:
            raise others from None
        code = FAILED
        for error in _leaves(known) if known else ():
            print(f"cwm-rl: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
    return code


def _leaves(group: BaseExceptionGroup[Any]) -> Iterator[Any]:
    for inner in group.exceptions:
        if isinstance(inner, BaseExceptionGroup):
            yield from _leaves(inner)
        else:
            yield inner


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cwm-rl", description="Asynchronous multi-turn GRPO for coding models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_runs(commands)
    _add_finished_runs(commands)
    _add_models(commands)
    _add_jobs(commands)
    _add_watching(commands)
    _add_sandboxes(commands)
    _add_verifiers(commands)
    bench.add_commands(commands)
    json_option(add(commands, "doctor", _doctor, "Say what is there, and for what is missing, what brings it."))
    return parser


def _add_runs(commands: Any) -> None:
    train = add(
        commands, "train", _train, "Train from a configuration, on this machine or on the cluster of RAY_ADDRESS."
    )
    config_options(train)
    words = "print the resolved configuration, and to stderr what would start"
    train.add_argument("--dry-run", action="store_true", help=words)

    controls = add(
        commands, "controls", _controls, "Take a run twice so that it cannot learn, and show that it does not."
    )
    config_options(controls)
    words = "What old episodes cost, and what not waiting brings: many runs, for hours."
    study = add(commands, "study-lag", _study_lag, words)
    config_options(study)
    study.add_argument("--lags", type=int, nargs="+", metavar="LAG", help="of algorithm.max_lag")
    study.add_argument("--corrections", nargs="+", metavar="NAME", help="of algorithm.correction")
    study.add_argument("--caches", nargs="+", metavar="NAME", help="of rollout.engine.kv")
    study.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="of run.seed: all runs with each")

    resume = add(commands, "resume", _resume, "Go on with a run from its newest checkpoint.")
    resume.add_argument("run", type=Path, help="directory of the run")
    set_option(resume, "change a setting, e.g. run.steps=10")

    keys = group(commands, "config", "Say what a configuration may hold.")
    add(keys, "keys", _config_keys, "Print every key with its type, its default and what it is for.")


def _add_finished_runs(commands: Any) -> None:
    audit = add(commands, "audit", _audit, "Add a run's ledger up; exit code 1 if it does not.")
    audit.add_argument("run", type=Path, help="directory of the run")

    explain = add(
        commands, "explain", _explain, "What held a finished run up, in a sentence, and the numbers behind it."
    )
    explain.add_argument("run", type=Path, help="directory of the run")
    json_option(explain)


def _add_models(commands: Any) -> None:
    init = add(
        commands, "init-model", _init_model, "Make a small model of CWM's architecture, with a tokenizer, from nothing."
    )
    init.add_argument("target", type=Path, help="directory to make")
    set_option(init, "shape, e.g. hidden_size=256", "KEY=VALUE")
    init.add_argument("--corpus", action="append", default=[], help="text file to learn the vocabulary from")

    sft = add(commands, "sft", _sft, "Learn from demonstrations: a configuration's warm start, or any model on a file.")
    sft.add_argument("config", type=Path, nargs="?", help="TOML file with a [warm_start]; its model is kept and reused")
    sft.add_argument("--model", help="Hugging Face directory or hub name to start from")
    sft.add_argument("--data", type=Path, help='JSONL file of rows {"messages": [{"role": ..., "content": ...}, ...]}')
    sft.add_argument("--out", type=Path, help="directory to make; a stage that was interrupted goes on")
    sft.add_argument("--column", action="append", default=[], metavar="FIELD=NAME", help="e.g. messages=conversation")
    sft.add_argument("--dtype", choices=("float32", "bfloat16"), help="of a --model's weights; float32 if left out")
    words = "e.g. tokens=1000000, device=cuda; of a --model, lr is 1e-5 and Muon has no part in it if left out"
    set_option(sft, words, "KEY=VALUE")

    evaluate = add(
        commands, "eval", _eval, "Say how good a model is: pass@1 and pass@k on held-out tasks, with intervals."
    )
    evaluate.add_argument("model", help="Hugging Face directory or hub name, such as a run's checkpoint")
    evaluate.add_argument("--tasks", default="all", help="domains between commas, such as math,code; or all")
    evaluate.add_argument("-n", type=int, default=200, help="held-out tasks a domain")
    evaluate.add_argument("-k", type=int, default=1, help="samples a task, and the k of pass@k")
    evaluate.add_argument("--greedy", action="store_true", help="take the likeliest token each time")
    evaluate.add_argument("--difficulty", type=int, help="instead of the sources' own; 1 is the easiest")
    evaluate.add_argument("--config", type=Path, help="TOML file whose generators and rollout are used")
    set_option(evaluate, "override one setting")
    evaluate.add_argument("--out", type=Path, help="directory to make for the results; one below evals/ if left out")
    json_option(evaluate)


def _add_jobs(commands: Any) -> None:
    submit = add(commands, "submit", _submit, "Hand a run to a Ray cluster as a job named like the run.")
    config_options(submit)
    submit.add_argument("--wait", action="store_true", help="until the job has ended; exit code 1 if it failed")
    json_option(submit)
    address_option(submit)

    status = add(commands, "status", _status, "Where a run, or a job of a cluster, stands.")
    status.add_argument("run", help="directory of the run, or the job's name")
    json_option(status)
    address_option(status)

    logs = add(commands, "logs", _logs, "What a job of a cluster has printed.")
    logs.add_argument("job", help="its name, which is the run's")
    address_option(logs)

    stop = add(commands, "stop", _stop, "End a run, or a job of a cluster, in good order.")
    stop.add_argument("run", help="directory of the run, or the job's name")
    address_option(stop)


def _add_watching(commands: Any) -> None:
    top = add(commands, "top", _top, "Watch a run's essentials in the terminal.")
    top.add_argument("run", type=Path, nargs="?", help="directory of the run; the newest one below runs/ if left out")
    top.add_argument("--once", action="store_true", help="print them once")

    track = add(commands, "track", _track, "Hand a run's numbers on to a tracker, one that is installed.")
    track.add_argument("run", type=Path, help="directory of the run")
    trackers = ("tensorboard", "wandb", "mlflow", "trackio")
    track.add_argument("--to", choices=trackers, required=True, help="the tracker")
    track.add_argument("--follow", action="store_true", help="go on until the run ends")

    serve = add(commands, "serve", _serve, "Show runs to a browser and to programs, start and stop them.")
    serve.add_argument("--runs", type=Path, default=Path("runs"), help="directory of the runs")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on; any but loopback's needs a token")
    serve.add_argument("--port", type=int, default=8400, help="port to listen on; 0: a free one")
    serve.add_argument("--name", action="append", default=[], metavar="HOST[:PORT]", help="by which others reach it")
    serve.add_argument("--token-file", type=Path, help="lines `read TOKEN` or `operate TOKEN`, for its owner alone")
    serve.add_argument("--configs", type=Path, help="directory of the configurations that may be started")


def _add_sandboxes(commands: Any) -> None:
    sandboxes = group(commands, "sandbox", "Prove a sandbox's walls; remove what dead owners left.")
    selftest = add(sandboxes, "selftest", _selftest, "Try every known escape; exit code 0 only if all were contained.")
    backend_option(selftest)
    json_option(selftest)
    reap = add(sandboxes, "reap", _reap, "Remove sandboxes whose owners are gone.")
    reap.add_argument("--every", type=float, metavar="SECONDS", help="go on doing it")

    images = group(commands, "image", "Make what docker sandboxes start from.")
    build = add(images, "build", _image_build, "Make the base image, and print its content's hash.")
    methods = ("auto", "dockerfile", "debootstrap")
    build.add_argument("--method", choices=methods, default="auto", help="auto: by a registry if it answers")
    build.add_argument("--new", action="store_true", help="also if it is there")


def _add_verifiers(commands: Any) -> None:
    verifiers = group(commands, "verifier", "Begin a verifier, check, attack and audit one.")
    new = add(verifiers, "new", _verifier_new, "Write a package with a verifier that works, and its test.")
    new.add_argument("name", help="small letters, digits and _")
    new.add_argument("--directory", type=Path, default=Path(), help="where its own directory is made")
    check = add(verifiers, "check", _verifier_check, "Try the contract on a verifier's own examples, attacks included.")
    check.add_argument("name", help="a name, module:attribute, or file.py:attribute")
    attack = add(verifiers, "attack", _verifier_attack, "Try what has fooled graders; exit code 0 if none was paid.")
    attack.add_argument("names", nargs="*", help="all that are built in, if left out")
    words = "Measure error rates on labelled answers, and list disagreements."
    audit = add(verifiers, "audit", _verifier_audit, words)
    audit.add_argument("name", help="a name, module:attribute, or file.py:attribute")
    words = "JSONL: {payload, reply, correct}, GSM8K's or HumanEval's"
    audit.add_argument("--data", type=Path, required=True, help=words)
    for parser in (check, attack, audit):
        backend_option(parser)
        json_option(parser)


def _train(options: argparse.Namespace) -> int:
    from rl import config, plan, prepare

    settings = config.load(options.config, options.set)
    if options.dry_run:
        prepare.load_tasks(settings)
        print(settings.model_dump_json(indent=2), flush=True)
        say_aside("\n".join(plan.in_words(settings)))
        return OK
    return _execute(settings, None)


def _config_keys(_: argparse.Namespace) -> int:
    from rl import keys

    print("\n".join(keys.in_words()))
    return OK


def _resume(options: argparse.Namespace) -> int:
    from rl import config, prepare
    from rl.reports import closing

    settings = config.changed(prepare.stored_config(options.run), options.set)
    if words := closing.finished(options.run, settings.run.steps):
        print(words)
        return OK
    return _execute(settings, options.run.resolve())


def _execute(settings: Any, directory: Path | None) -> int:
    from rl.reports import closing

    done = _run(settings, directory)
    if done is None:
        return INTERRUPTED
    print(closing.close(*done))
    return OK if done[1]["ledger"]["balanced"] else FAILED


def _controls(options: argparse.Namespace) -> int:
    from rl import config, controls

    words = controls.run_controls(config.load(options.config, options.set), lambda settings: _run(settings, None))
    if words is None:
        return INTERRUPTED
    print(words)
    return OK


def _study_lag(options: argparse.Namespace) -> int:
    from rl import config, study

    names = ("lags", "corrections", "caches", "seeds")
    chosen: dict[str, Any] = {name: values for name in names if (values := getattr(options, name))}
    settings = config.load(options.config, options.set)
    words = study.run_study(settings, lambda one: _run(one, None), **chosen)
    if words is None:
        return INTERRUPTED
    print(words)
    return OK


def _run(settings: Any, directory: Path | None) -> tuple[Path, dict[str, Any]] | None:
    """Take a run to its end: its directory and report, or None where it was interrupted."""
    from rl import cluster, plan, prepare
    from rl.driver import run
    from rl.interrupts import run_interruptible
    from rollout_workers.renderer import Renderer

    plan.check_machine(settings)
    cluster.check(settings.cluster)
    pools = prepare.load_tasks(settings)
    if settings.model.path is not None:
        Renderer.load(settings.model.path)  # complains of a missing or unfit model before anything is made for it
    directory = directory or prepare.create(settings, say)
    advice = f"go on with: cwm-rl resume {shlex.quote(str(directory))} (what its actors printed: its folder logs)"
    try:
        result = run_interruptible(run.execute(settings, directory, pools, say), advice)
    except* UserError:
        print(advice, file=sys.stderr)
        raise
    return None if result is None else (directory, result)


def _audit(options: argparse.Namespace) -> int:
    from rl.ledger.audit import audit, in_words

    found = audit(options.run)
    print(in_words(found))
    return OK if found.ok else FAILED


def _explain(options: argparse.Namespace) -> int:
    from rl.reports import explain

    found = explain.explain(options.run)
    print(json.dumps(found, indent=2) if options.json else explain.in_words(found))
    return OK


def _init_model(options: argparse.Namespace) -> int:
    from rl import config
    from rl.init_model import InitModel, digest, init_model

    shape = config.validated(InitModel, {"corpus": options.corpus} | _tree(options.set), "init-model")
    size = init_model(shape, options.target)
    print(f"{options.target}: {size:,} parameters, sha256 {digest(options.target)}")
    return OK


def _sft(options: argparse.Namespace) -> int:
    from rl import config
    from rl.sft import stage as sft
    from rl.sft.config import SftConfig

    if options.config is not None:
        from rl.sft.warm_start import prepare

        if options.model or options.data or options.column:
            raise config.ConfigError("sft takes a configuration, or --model and --data, not both")
        if options.dtype:
            raise config.ConfigError("--dtype is for --model: with a configuration, say --set model.dtype=...")
        prepare(config.load(options.config, options.set), say, options.out)
        return OK
    if not (options.model and options.data and options.out):
        raise config.ConfigError("sft takes a configuration, or --model, --data and --out")
    settings = config.validated(SftConfig, {"lr": 1e-5, "muon_lr": 0.0} | _tree(options.set), "--set")
    sft.check_free(options.out)
    columns = {field: name for field, _, name in (mapped.partition("=") for mapped in options.column)}
    stage = sft.from_file(options.model, options.data, settings, columns=columns, dtype=options.dtype or "float32")
    print(sft.in_words(sft.train(stage, options.out, say), options.out))
    return OK


def _tree(overrides: Sequence[str]) -> dict[str, Any]:
    from rl import config

    tree: dict[str, Any] = {}
    for text in overrides:
        config.override(tree, text)
    return tree


def _eval(options: argparse.Namespace) -> int:
    from rl.evaluation import plan as evaluation_plan
    from rl.evaluation import run as evaluation_run
    from rl.interrupts import run_interruptible

    evaluation = evaluation_plan.prepare(
        evaluation_plan.Request(
            model=options.model,
            domains=options.tasks,
            tasks=options.n,
            samples=options.k,
            greedy=options.greedy,
            difficulty=options.difficulty,
            config=options.config,
            overrides=options.set,
            out=options.out,
        )
    )
    tell = say_aside if options.json else say
    result = run_interruptible(evaluation_run.execute(evaluation, tell), "stopped; nothing of the evaluation is kept")
    if result is None:
        return INTERRUPTED
    print(json.dumps(result, indent=2) if options.json else evaluation_run.in_words(result, evaluation.out))
    return OK if all(rates["tasks"] for rates in result["eval"].values()) else FAILED


def _submit(options: argparse.Namespace) -> int:
    from rl import cluster, config, jobs

    settings = config.load(options.config, options.set)
    job = jobs.job_for(settings, options.config, options.set)
    with cluster.jobs(options.address) as there:
        state = there.submit(job, say_aside if options.json else say)
        if options.wait:
            state = there.wait(job.name)
    if options.json:
        print(json.dumps({"job": job.name, "state": state, "run": str(job.directory)}))
    else:
        print(f"job {job.name}: {state}; its run: {job.directory}")
    return FAILED if options.wait and state != "SUCCEEDED" else OK


def _status(options: argparse.Namespace) -> int:
    from rl import cluster
    from rl.service import runs

    if (directory := Path(options.run)).is_dir():
        found = runs.summary(directory.resolve())
        if found.state == "unreadable":
            raise UserError(found.problem)
        more = [f"waits for {found.waiting}"] if found.waiting else [found.problem] if found.problem else []
        words = ", ".join([f"{found.name}: {found.state}", f"step {found.step}", *more])
        print(found.model_dump_json(indent=2) if options.json else words)
        return OK
    _may_be_a_job(options)
    with cluster.jobs(options.address) as there:
        state = there.state(options.run)
    print(json.dumps({"job": options.run, "state": state}) if options.json else f"job {options.run}: {state}")
    return OK


def _logs(options: argparse.Namespace) -> int:
    from rl import cluster

    with cluster.jobs(options.address) as there:
        print(there.logs(options.job), end="")
    return OK


def _stop(options: argparse.Namespace) -> int:
    from rl import cluster
    from rl.service.launch import ask_to_stop

    if (directory := Path(options.run)).is_dir():
        ask_to_stop(directory.resolve())
        print(f"{directory}: was asked to end")
        return OK
    _may_be_a_job(options)
    with cluster.jobs(options.address) as there:
        print(f"job {options.run}: {there.stop(options.run)}")
    return OK


def _may_be_a_job(options: argparse.Namespace) -> None:
    """Raises UserError where no cluster was named."""
    if options.address is None and not os.environ.get("RAY_ADDRESS"):
        raise UserError(f"there is no run in {options.run}: name its directory, or give --address for a cluster's job")


def _top(options: argparse.Namespace) -> int:
    from rl import top

    top.show(options.run or top.newest(Path("runs")), once=options.once)
    return OK


def _track(options: argparse.Namespace) -> int:
    from rl import trackers

    trackers.track(options.run.resolve(), options.to, say, follow=options.follow)
    return OK


def _serve(options: argparse.Namespace) -> int:
    from rl.service.server import Place, serve

    usual = Path("deploy/configs")
    configs = options.configs or (usual if usual.is_dir() else None)
    serve(Place(options.runs, options.host, options.port, tuple(options.name), options.token_file, configs), say)
    return OK


def _selftest(options: argparse.Namespace) -> int:
    from rollout_workers.sandbox import selftest
    from rollout_workers.sandbox.select import choose

    async def prove() -> tuple[str, list[selftest.Finding]]:
        sandboxes, words = await choose(options.backend, run="selftest")
        say_aside(words)
        return words, await selftest.try_all(sandboxes, lambda one: tell(selftest.in_words(one)))

    tell = say_aside if options.json else say
    words, found = asyncio.run(prove())
    contained, listed = sum(one.contained for one in found), [one._asdict() for one in found]
    if options.json:
        print(json.dumps({"sandbox": words, "tried": len(found), "contained": contained, "attempts": listed}, indent=2))
    else:
        print(f"{contained} of {len(found)} contained")
    return OK if contained == len(found) else FAILED


def _reap(options: argparse.Namespace) -> int:
    from rollout_workers.sandbox import reaper

    if options.every is not None:
        if not 0 < options.every < float("inf"):
            raise UserError(f"--every takes seconds above 0, not {options.every:g}")
        reaper.keep_reaping(options.every, say)
    print(f"removed {reaper.reap()}")
    return OK


def _verifier_new(options: argparse.Namespace) -> int:
    from rl import verifying

    place = verifying.new(options.name, options.directory)
    command = shlex.join([sys.executable, "-m", "pip", "install", "--no-build-isolation", "-e", str(place)])
    print(f"{place}: install it with {command}, then: cwm-rl verifier check {options.name}")
    return OK


def _verifier_check(options: argparse.Namespace) -> int:
    from rl import verifying

    found = asyncio.run(verifying.check(options.name, options.backend))
    if options.json:
        print(json.dumps([one._asdict() for one in found], indent=2))
    else:
        print("\n".join(f"{'kept' if one.kept else 'BROKEN':6}  {one.rule}: {one.seen or 'yes'}" for one in found))
    return OK if all(one.kept for one in found) else FAILED


def _verifier_attack(options: argparse.Namespace) -> int:
    from rl import verifying

    tried = asyncio.run(verifying.attack(options.names, options.backend))
    paid = sum(one.paid for one in tried)
    if options.json:
        rows = [one._asdict() for one in tried]
        print(json.dumps({"tried": len(tried), "paid": paid, "attacks": rows}, indent=2))
    else:
        print(verifying.attack_table(tried))
    return OK if not paid else FAILED


def _verifier_audit(options: argparse.Namespace) -> int:
    from rl import verifying

    found = asyncio.run(verifying.audit(options.name, options.data, options.backend))
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        lines = [f"{one['where']}: {one['kind']}, {one['detail']}" for one in found.pop("disagreements")]
        print("\n".join([*lines, *(f"{key:18} {value:.6g}" for key, value in found.items())]))
    return OK


def _image_build(options: argparse.Namespace) -> int:
    from rl import images

    images.build(options.method, new=options.new)
    return OK


def _doctor(options: argparse.Namespace) -> int:
    from rl import doctor

    found = asyncio.run(doctor.examine())
    print(json.dumps([vars(item) for item in found], indent=2) if options.json else doctor.in_words(found))
    return OK if all(item.ok or not item.needed for item in found) else FAILED


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
