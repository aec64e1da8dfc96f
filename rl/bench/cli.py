"""`cwm-rl bench PART`: options of the benchmarks, and what becomes of their results."""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from rl.console import OK, add, amount, backend_option, count, group, json_option, say_aside


def add_commands(commands: Any) -> None:
    """`bench` and its parts."""
    parts = group(commands, "bench", "Measure a part against the raw thing.", "PART")
    _sandbox_and_verifiers(parts)
    _rollouts_and_weights(parts)
    _runs_and_service(parts)
    _learner_options(parts)


def _sandbox_and_verifiers(parts: Any) -> None:
    sandbox = add(parts, "sandbox", _sandbox, "Commands, creation, a warm pool, a full house, leaks.")
    backend_option(sandbox)
    verifiers = add(parts, "verifiers", _verifiers, "Gradings a second, hangs, memory.")
    for parser in (sandbox, verifiers):
        parser.add_argument("--quick", action="store_true", help="a little of everything, to see that it runs")
        json_option(parser)


def _rollouts_and_weights(parts: Any) -> None:
    shapes, drawn = ("nano", "3m", "500m"), "of the model, whose weights are drawn at random"
    rollouts = add(parts, "rollouts", _rollouts, "Sampling against raw vLLM, without and with updates.")
    rollouts.add_argument("--shape", choices=shapes, default="nano", help=drawn)
    rollouts.add_argument("--streams", type=count, default=64, help="that are sampled at once")
    rollouts.add_argument("--tokens", type=count, default=128, help="of each stream")
    rollouts.add_argument("--rounds", type=count, default=5, help="of each kind, by turns; the median counts")
    words = "between two updates of the weights"
    rollouts.add_argument("--update-every", type=amount, default=1.0, metavar="SECONDS", help=words)
    json_option(rollouts)
    weights = add(parts, "weights", _weights, "An update of the weights under running requests.")
    weights.add_argument("--shape", choices=shapes, default="3m", help=drawn)
    weights.add_argument("--updates", type=count, default=20, help="how many are measured")
    json_option(weights)


def _runs_and_service(parts: Any) -> None:
    runs = add(parts, "async", _async, "What it is worth that nobody waits: whole runs, slow tools.")
    runs.add_argument("--mean", type=amount, default=0.5, metavar="SECONDS", help="of a tool call, log-normal")
    runs.add_argument("--slots", type=count, nargs="+", default=(320, 576), help="tried; the best counts")
    runs.add_argument("--steps", type=count, default=30, help="of the run that does not wait; the other has a third")
    json_option(runs)
    service = add(parts, "service", _service, "Reading routes and the live stream, on a long run.")
    service.add_argument("--episodes", type=count, default=100_000, help="of the long run")
    service.add_argument("--steps", type=count, default=2_000, help="of the long run")
    service.add_argument("--clients", type=count, default=200, help="of the live stream")
    service.add_argument("--frozen", type=int, default=20, help="of them, those that take nothing")
    service.add_argument("--seconds", type=amount, default=30.0, help="of the live part, and of the rest")
    json_option(service)


def _learner_options(parts: Any) -> None:
    learner = add(parts, "learner", _learner, "A step against a bare torch loop, memory, MFU on a GPU.")
    learner.add_argument("--shape", default="nano", help="nano, or a Qwen3: 0.6b, 1.7b, 4b")
    learner.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="on which both sides compute")
    learner.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights")
    learner.add_argument("--rows", type=count, default=64, help="rows of a step")
    learner.add_argument("--tokens", type=count, nargs=2, default=(64, 640), help="of the shortest, longest row")
    learner.add_argument(
        "--microbatch", type=count, default=4096, metavar="TOKENS", help="of one forward pass, at most"
    )
    learner.add_argument("--steps", type=count, default=10, help="that are measured")
    learner.add_argument("--recompute", action="store_true", help="checkpoint activations")
    learner.add_argument("--compile", action="store_true", help="norms and feed-forward parts, by torch")
    learner.add_argument("--alone", action="store_true", help="without the bare loop")
    json_option(learner)


def _sandbox(options: argparse.Namespace) -> int:
    from rl.bench import sandbox

    scale = sandbox.QUICK if options.quick else sandbox.Scale()
    return _measure(options, lambda: asyncio.run(sandbox.bench(options.backend, scale, say_aside)), sandbox.in_words)


def _verifiers(options: argparse.Namespace) -> int:
    from rl.bench import verifiers

    scale = verifiers.QUICK if options.quick else verifiers.Scale()
    return _measure(options, lambda: asyncio.run(verifiers.bench(scale, say_aside)), verifiers.in_words)


def _rollouts(options: argparse.Namespace) -> int:
    from rl.bench import rollouts

    work = rollouts.Work(
        options.shape, options.streams, options.tokens, rounds=options.rounds, update_every=options.update_every
    )
    return _measure(options, lambda: asyncio.run(rollouts.rollouts(work, say_aside)), rollouts.in_words)


def _async(options: argparse.Namespace) -> int:
    from rl.bench import asynchrony

    steps, waiting = (max(asynchrony.SKIPPED + 1, some) for some in (options.steps, options.steps // 3))
    work = asynchrony.Work(options.mean, slots=tuple(options.slots), steps=steps, waiting_steps=waiting)
    return _measure(options, lambda: asyncio.run(asynchrony.bench(work, say_aside)), asynchrony.in_words)


def _weights(options: argparse.Namespace) -> int:
    from rl.bench import rollouts

    work = rollouts.Updates(options.shape, updates=options.updates)
    return _measure(options, lambda: asyncio.run(rollouts.weights(work, say_aside)), rollouts.in_words)


def _service(options: argparse.Namespace) -> int:
    from rl.bench import service

    scale = service.Scale(options.episodes, options.steps, options.clients, options.frozen, options.seconds)
    return _measure(options, lambda: service.bench(scale, say_aside), service.in_words)


def _learner(options: argparse.Namespace) -> int:
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
    return _measure(options, lambda: learner.bench(work, say_aside), learner.in_words)


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
