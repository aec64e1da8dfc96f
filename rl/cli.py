"""`cwm-rl`: one sub-command a use. Bad input gets a sentence and exit code 2; a run that failed, 1; Ctrl-C, 130."""

import argparse
import asyncio
import errno
import io
import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from verifiers.errors import UserError

OK, FAILED, INTERRUPTED = 0, 1, 130
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
        _unheard()
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

    def add(
        name: str, command: Callable[[argparse.Namespace], int], text: str, group: Any = commands
    ) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = group.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        return sub

    train = add("train", _train, "Train from a configuration, on this machine or on the cluster of RAY_ADDRESS.")
    _config_options(train)
    train.add_argument(
        "--dry-run", action="store_true", help="print the resolved configuration, and to stderr what would start"
    )

    controls = add("controls", _controls, "Take a run twice so that it cannot learn, and show that it does not.")
    _config_options(controls)
    study = add("study-lag", _study_lag, "What old episodes cost, and what not waiting brings: many runs, for hours.")
    _config_options(study)
    study.add_argument("--lags", type=int, nargs="+", metavar="LAG", help="of algorithm.max_lag")
    study.add_argument("--corrections", nargs="+", metavar="NAME", help="of algorithm.correction")
    study.add_argument("--caches", nargs="+", metavar="NAME", help="of rollout.engine.kv")
    study.add_argument("--seeds", type=int, nargs="+", metavar="SEED")

    resume = add("resume", _resume, "Go on with a run from its newest checkpoint.")
    resume.add_argument("run", type=Path, help="directory of the run")
    resume.add_argument(
        "--set", action="append", default=[], metavar="A.B=VALUE", help="change a setting, e.g. run.steps=10"
    )

    audit = add("audit", _audit, "Add a run's ledger up; exit code 1 if it does not.")
    audit.add_argument("run", type=Path, help="directory of the run")

    explain = add("explain", _explain, "What held a finished run up, in a sentence, and the numbers behind it.")
    explain.add_argument("run", type=Path, help="directory of the run")
    explain.add_argument("--json", action="store_true", help="print it for programs")

    init = add("init-model", _init_model, "Make a small model of CWM's architecture, with a tokenizer, from nothing.")
    init.add_argument("target", type=Path, help="directory to make")
    init.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="shape, e.g. hidden_size=256")
    init.add_argument("--corpus", action="append", default=[], help="text file to learn the vocabulary from")

    sft = add("sft", _sft, "Learn from demonstrations: a configuration's warm start, or any model on a file.")
    sft.add_argument("config", type=Path, nargs="?", help="TOML file with a [warm_start]; its model is kept and reused")
    sft.add_argument("--model", help="Hugging Face directory or hub name to start from")
    sft.add_argument("--data", type=Path, help='JSONL file of rows {"messages": [{"role": ..., "content": ...}, ...]}')
    sft.add_argument("--out", type=Path, help="directory to make; a stage that was interrupted goes on")
    sft.add_argument("--column", action="append", default=[], metavar="FIELD=NAME", help="e.g. messages=conversation")
    sft.add_argument("--dtype", choices=("float32", "bfloat16"), help="of a --model's weights; float32 if left out")
    words = "e.g. tokens=1000000, device=cuda; of a --model, lr is 1e-5 and Muon has no part in it if left out"
    sft.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=words)

    evaluate = add("eval", _eval, "Say how good a model is: pass@1 and pass@k on held-out tasks, with intervals.")
    evaluate.add_argument("model", help="Hugging Face directory or hub name, such as a run's checkpoint")
    evaluate.add_argument("--tasks", default="all", help="domains between commas, such as math,code; or all")
    evaluate.add_argument("-n", type=int, default=200, help="held-out tasks a domain")
    evaluate.add_argument("-k", type=int, default=1, help="samples a task, and the k of pass@k")
    evaluate.add_argument("--greedy", action="store_true", help="take the likeliest token each time")
    evaluate.add_argument("--difficulty", type=int, help="instead of the sources' own; 1 is the easiest")
    evaluate.add_argument("--config", type=Path, help="TOML file whose generators and rollout are used")
    evaluate.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="override one setting")
    evaluate.add_argument("--out", type=Path, help="directory to make for the results; one below evals/ if left out")
    evaluate.add_argument("--json", action="store_true", help="print the results for programs, and all else to stderr")

    submit = add("submit", _submit, "Hand a run to a Ray cluster as a job named like the run.")
    _config_options(submit)
    submit.add_argument("--wait", action="store_true", help="until the job has ended; exit code 1 if it failed")
    submit.add_argument("--json", action="store_true", help="for programs")
    _address_option(submit)

    status = add("status", _status, "Where a run, or a job of a cluster, stands.")
    status.add_argument("run", help="directory of the run, or the job's name")
    status.add_argument("--json", action="store_true", help="for programs")
    _address_option(status)

    logs = add("logs", _logs, "What a job of a cluster has printed.")
    logs.add_argument("job", help="its name, which is the run's")
    _address_option(logs)

    stop = add("stop", _stop, "End a run, or a job of a cluster, in good order.")
    stop.add_argument("run", help="directory of the run, or the job's name")
    _address_option(stop)

    top = add("top", _top, "Watch a run's essentials in the terminal.")
    top.add_argument("run", type=Path, nargs="?", help="directory of the run; the newest one below runs/ if left out")
    top.add_argument("--once", action="store_true", help="print them once")

    track = add("track", _track, "Hand a run's numbers on to a tracker, one that is installed.")
    track.add_argument("run", type=Path, help="directory of the run")
    track.add_argument("--to", choices=("tensorboard", "wandb", "mlflow", "trackio"), required=True)
    track.add_argument("--follow", action="store_true", help="go on until the run ends")

    serve = add("serve", _serve, "Show runs to a browser and to programs, start and stop them.")
    serve.add_argument("--runs", type=Path, default=Path("runs"), help="directory of the runs")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on; any but loopback's needs a token")
    serve.add_argument("--port", type=int, default=8400, help="port to listen on; 0: a free one")
    serve.add_argument("--name", action="append", default=[], metavar="HOST[:PORT]", help="by which others reach it")
    serve.add_argument("--token-file", type=Path, help="lines `read TOKEN` or `operate TOKEN`, for its owner alone")
    serve.add_argument("--configs", type=Path, help="directory of the configurations that may be started")

    sandbox = commands.add_parser("sandbox", help="Prove a sandbox's walls; remove what dead owners left.")
    sandboxes = sandbox.add_subparsers(required=True, metavar="COMMAND")
    selftest = add("selftest", _selftest, "Try every known escape; exit code 0 only if all were contained.", sandboxes)
    _backend_option(selftest)
    reap = add("reap", _reap, "Remove sandboxes whose owners are gone.", sandboxes)
    reap.add_argument("--every", type=float, metavar="SECONDS", help="go on doing it")

    verifier = commands.add_parser("verifier", help="Begin a verifier, check, attack and audit one.")
    verifiers = verifier.add_subparsers(required=True, metavar="COMMAND")
    new = add("new", _verifier_new, "Write a package with a verifier that works, and its test.", verifiers)
    new.add_argument("name", help="small letters, digits and _")
    new.add_argument("--directory", type=Path, default=Path(), help="where its own directory is made")
    check = add("check", _verifier_check, "Try the contract on a verifier's own examples, attacks included.", verifiers)
    check.add_argument("name", help="a name, module:attribute, or file.py:attribute")
    _backend_option(check)
    attack = add("attack", _verifier_attack, "Try what has fooled graders; exit code 0 if none was paid.", verifiers)
    attack.add_argument("names", nargs="*", help="all that are built in, if left out")
    _backend_option(attack)
    audit_ = add(
        "audit", _verifier_audit, "Measure error rates on labelled answers, and list disagreements.", verifiers
    )
    audit_.add_argument("name", help="a name, module:attribute, or file.py:attribute")
    audit_.add_argument(
        "--data", type=Path, required=True, help="JSONL: {payload, reply, correct}, GSM8K's or HumanEval's"
    )
    _backend_option(audit_)

    image = commands.add_parser("image", help="Make what docker sandboxes start from.")
    images = image.add_subparsers(required=True, metavar="COMMAND")
    build = add("build", _image_build, "Make the base image, and print its content's hash.", images)
    build.add_argument(
        "--method",
        choices=("auto", "dockerfile", "debootstrap"),
        default="auto",
        help="auto: by a registry if it answers",
    )
    build.add_argument("--new", action="store_true", help="also if it is there")

    bench = commands.add_parser("bench", help="Measure a part against the raw thing.")
    benches = bench.add_subparsers(required=True, metavar="PART")
    bench_sandbox = add("sandbox", _bench_sandbox, "Commands, creation, a warm pool, a full house, leaks.", benches)
    _backend_option(bench_sandbox)
    bench_sandbox.add_argument("--quick", action="store_true", help="a little of everything, to see that it runs")

    bench_verifiers = add("verifiers", _bench_verifiers, "Gradings a second, hangs, memory.", benches)
    bench_verifiers.add_argument("--quick", action="store_true", help="a little of everything, to see that it runs")
    bench_verifiers.add_argument(
        "--json", action="store_true", help="print the result for programs, all else to stderr"
    )
    bench_rollouts = add("rollouts", _bench_rollouts, "Sampling against raw vLLM, without and with updates.", benches)
    bench_rollouts.add_argument("--shape", choices=("nano", "3m", "500m"), default="nano")
    bench_rollouts.add_argument("--streams", type=_count, default=64)
    bench_rollouts.add_argument("--tokens", type=_count, default=128, help="of each stream")
    bench_rollouts.add_argument("--rounds", type=_count, default=5)
    bench_rollouts.add_argument("--update-every", type=_amount, default=1.0, metavar="SECONDS")
    bench_rollouts.add_argument("--json", action="store_true", help="print the result for programs, all else to stderr")
    bench_weights = add("weights", _bench_weights, "An update of the weights under running requests.", benches)
    bench_weights.add_argument("--shape", choices=("nano", "3m", "500m"), default="3m")
    bench_weights.add_argument("--updates", type=_count, default=20)
    bench_weights.add_argument("--json", action="store_true", help="print the result for programs, all else to stderr")
    bench_async = add("async", _bench_async, "What it is worth that nobody waits: whole runs, slow tools.", benches)
    bench_async.add_argument("--mean", type=_amount, default=0.5, metavar="SECONDS", help="of a tool call, log-normal")
    bench_async.add_argument("--slots", type=_count, nargs="+", default=(320, 576), help="tried; the best counts")
    bench_async.add_argument("--steps", type=_count, default=30)
    bench_async.add_argument("--json", action="store_true", help="print the result for programs, all else to stderr")
    bench_service = add("service", _bench_service, "Reading routes and the live stream, on a long run.", benches)
    bench_service.add_argument("--episodes", type=_count, default=100_000)
    bench_service.add_argument("--steps", type=_count, default=2_000)
    bench_service.add_argument("--clients", type=_count, default=200, help="of the live stream")
    bench_service.add_argument("--frozen", type=int, default=20, help="of them, those that take nothing")
    bench_service.add_argument("--seconds", type=_amount, default=30.0, help="of the live part, and of the rest")
    bench_service.add_argument("--json", action="store_true", help="print the result for programs, all else to stderr")

    bench_learner = add("learner", _bench_learner, "A step against a bare torch loop, memory, MFU on a GPU.", benches)
    bench_learner.add_argument("--shape", default="nano", help="nano, or a Qwen3: 0.6b, 1.7b, 4b")
    bench_learner.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    bench_learner.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    bench_learner.add_argument("--rows", type=_count, default=64, help="rows of a step")
    bench_learner.add_argument("--tokens", type=_count, nargs=2, default=(64, 640), help="of the shortest, longest row")
    bench_learner.add_argument("--microbatch", type=_count, default=4096, metavar="TOKENS")
    bench_learner.add_argument("--steps", type=_count, default=10)
    bench_learner.add_argument("--recompute", action="store_true", help="checkpoint activations")
    bench_learner.add_argument("--compile", action="store_true", help="norms and feed-forward parts, by torch")
    bench_learner.add_argument("--alone", action="store_true", help="without the bare loop")
    bench_learner.add_argument("--json", action="store_true", help="print the result for programs, all else to stderr")

    doctor = add("doctor", _doctor, "Say what is there, and for what is missing, what brings it.")
    doctor.add_argument("--json", action="store_true", help="for programs")
    return parser


def _count(text: str) -> int:
    """Of an option: one at least."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def _amount(text: str) -> float:
    """Of an option: a finite number, and not a negative one."""
    if not 0 <= (number := float(text)) < math.inf:
        raise ValueError
    return number


_count.__name__, _amount.__name__ = "positive whole number", "number from 0 on"  # argparse says "invalid ... value"


def _config_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="TOML file, see deploy/configs/")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="override one setting")


def _address_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--address", help="the cluster's dashboard, http://HOST:8265; else RAY_ADDRESS")


def _backend_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", choices=("auto", "bubblewrap", "docker", "gvisor"), default="auto")
    parser.add_argument("--json", action="store_true", help="print the result for programs, and all else to stderr")


def _train(options: argparse.Namespace) -> int:
    from rl import config, plan, prepare

    settings = config.load(options.config, options.set)
    if options.dry_run:
        prepare.load_tasks(settings)
        print(settings.model_dump_json(indent=2), flush=True)
        _say_aside("\n".join(plan.in_words(settings)))
        return OK
    return _execute(settings, None)


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
    directory = directory or prepare.create(settings, _say)
    advice = f"go on with: cwm-rl resume {shlex.quote(str(directory))} (what its actors printed: its folder logs)"
    try:
        result = run_interruptible(run.execute(settings, directory, pools, _say), advice)
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
        prepare(config.load(options.config, options.set), _say, options.out)
        return OK
    if not (options.model and options.data and options.out):
        raise config.ConfigError("sft takes a configuration, or --model, --data and --out")
    settings = config.validated(SftConfig, {"lr": 1e-5, "muon_lr": 0.0} | _tree(options.set), "--set")
    sft.check_free(options.out)
    columns = {field: name for field, _, name in (mapped.partition("=") for mapped in options.column)}
    stage = sft.from_file(options.model, options.data, settings, columns=columns, dtype=options.dtype or "float32")
    print(sft.in_words(sft.train(stage, options.out, _say), options.out))
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
    say = _say_aside if options.json else _say
    result = run_interruptible(evaluation_run.execute(evaluation, say), "stopped; nothing of the evaluation is kept")
    if result is None:
        return INTERRUPTED
    print(json.dumps(result, indent=2) if options.json else evaluation_run.in_words(result, evaluation.out))
    return OK if all(rates["tasks"] for rates in result["eval"].values()) else FAILED


def _submit(options: argparse.Namespace) -> int:
    from rl import cluster, config, jobs

    settings = config.load(options.config, options.set)
    job = jobs.job_for(settings, options.config, options.set)
    with cluster.jobs(options.address) as there:
        state = there.submit(job, _say_aside if options.json else _say)
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

    trackers.track(options.run.resolve(), options.to, _say, follow=options.follow)
    return OK


def _serve(options: argparse.Namespace) -> int:
    from rl.service.server import Place, serve

    usual = Path("deploy/configs")
    configs = options.configs or (usual if usual.is_dir() else None)
    serve(Place(options.runs, options.host, options.port, tuple(options.name), options.token_file, configs), _say)
    return OK


def _selftest(options: argparse.Namespace) -> int:
    from rollout_workers.sandbox import selftest
    from rollout_workers.sandbox.select import choose

    async def prove() -> tuple[str, list[selftest.Finding]]:
        sandboxes, words = await choose(options.backend, run="selftest")
        _say_aside(words)
        return words, await selftest.try_all(sandboxes, lambda one: say(selftest.in_words(one)))

    say = _say_aside if options.json else _say
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
        reaper.keep_reaping(options.every, _say)
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


def _bench_sandbox(options: argparse.Namespace) -> int:
    from rl.bench import sandbox

    scale = sandbox.QUICK if options.quick else sandbox.Scale()
    return _measure(options, lambda: asyncio.run(sandbox.bench(options.backend, scale, _say_aside)), sandbox.in_words)


def _bench_verifiers(options: argparse.Namespace) -> int:
    from rl.bench import verifiers

    scale = verifiers.QUICK if options.quick else verifiers.Scale()
    return _measure(options, lambda: asyncio.run(verifiers.bench(scale, _say_aside)), verifiers.in_words)


def _bench_rollouts(options: argparse.Namespace) -> int:
    from rl.bench import rollouts

    work = rollouts.Work(
        options.shape, options.streams, options.tokens, rounds=options.rounds, update_every=options.update_every
    )
    return _measure(options, lambda: asyncio.run(rollouts.rollouts(work, _say_aside)), rollouts.in_words)


def _bench_async(options: argparse.Namespace) -> int:
    from rl.bench import asynchrony

    steps, waiting = (max(asynchrony.SKIPPED + 1, some) for some in (options.steps, options.steps // 3))
    work = asynchrony.Work(options.mean, slots=tuple(options.slots), steps=steps, waiting_steps=waiting)
    return _measure(options, lambda: asyncio.run(asynchrony.bench(work, _say_aside)), asynchrony.in_words)


def _bench_weights(options: argparse.Namespace) -> int:
    from rl.bench import rollouts

    work = rollouts.Updates(options.shape, updates=options.updates)
    return _measure(options, lambda: asyncio.run(rollouts.weights(work, _say_aside)), rollouts.in_words)


def _bench_service(options: argparse.Namespace) -> int:
    from rl.bench import service

    scale = service.Scale(options.episodes, options.steps, options.clients, options.frozen, options.seconds)
    return _measure(options, lambda: service.bench(scale, _say_aside), service.in_words)


def _bench_learner(options: argparse.Namespace) -> int:
    from rl.bench import learner

    shortest, longest = options.tokens
    work = learner.Work(
        shape=options.shape,
        device=options.device,
        dtype=options.dtype,
        rows=options.rows,
        shortest=shortest,
        longest=longest,
        steps=options.steps,
        microbatch_tokens=options.microbatch,
        recompute=options.recompute,
        compile=options.compile,
        rival=not options.alone,
    )
    return _measure(options, lambda: learner.bench(work, _say_aside), learner.in_words)


def _measure(
    options: argparse.Namespace, measure: Callable[[], dict[str, Any]], in_words: Callable[[dict[str, Any]], str]
) -> int:
    """Print what a benchmark found, and on stdout nothing else: engines say things there, from their processes too."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        found = measure()
        sys.stdout.flush()
    finally:
        os.dup2(kept, 1)
        os.close(kept)
    print(json.dumps(found, indent=2) if options.json else in_words(found))
    return OK


def _doctor(options: argparse.Namespace) -> int:
    from rl import doctor

    found = asyncio.run(doctor.examine())
    print(json.dumps([vars(item) for item in found], indent=2) if options.json else doctor.in_words(found))
    return OK if all(item.ok or not item.needed for item in found) else FAILED


def _say(text: str) -> None:
    try:
        print(text, flush=True)
    except OSError:  # who listened has gone, or the disk of the log is full: no run ends for that
        _unheard()


def _unheard() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say_aside(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
