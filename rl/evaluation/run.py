"""`cwm-rl eval`: a model on held-out tasks, through workers of its own as a run has them, and no learner."""

import json
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any, Final

from rl import cluster
from rl.driver.fleet import Fleet
from rl.driver.live import shown
from rl.driver.waits import Waits
from rl.evaluation import evaluate, reading
from rl.evaluation.evaluate import Sample
from rl.evaluation.plan import Evaluation, EvaluationError, deadline
from rl.prepare import recipe
from rl.progress import Say
from rollout_workers.engine import EngineError
from rollout_workers.scratch import scratch
from rollout_workers.worker import WorkerSetup

EPISODES: Final = "episodes.jsonl"
SUMMARY: Final = "eval.json"
_LENGTH: Final = 240
"""Characters of a cause that an engine gives."""
_CAUSE = re.compile(r"\b((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception)): (\S.*)")


@dataclass
class _Faults:
    """What a run would write into its ledger."""

    told: list[str] = field(default_factory=list)

    def fault(self, actor: str, kind: str, detail: str) -> None:
        """See `rl.driver.fleet.Faults`."""
        self.told.append(f"{actor}: {kind}: {detail}")


async def execute(evaluation: Evaluation, say: Say) -> dict[str, Any]:
    """Evaluate, write DIR/episodes.jsonl and DIR/eval.json, and return what stands in the latter.

    What ends it early leaves nothing. Raises UserError; EvaluationError where the model cannot be served.
    """
    out = evaluation.out
    with scratch("cwm-rl-eval", Path(tempfile.gettempdir())) as temporary:
        place = temporary / out.name
        place.mkdir()
        try:
            samples, facts = await _sampled(evaluation, place, say)
        except _NotServedError as error:
            cause = shorten(_cause(place / "logs") or str(error), _LENGTH, placeholder=" ...")
            raise EvaluationError(f"the model at {evaluation.model} does not load: {cause}") from error
    result = _result(evaluation, samples) | facts
    try:
        _write(out, samples, result)
    except OSError as error:
        spare = Path(tempfile.mkdtemp(prefix="cwm-rl-eval-"))
        _write(spare, samples, result)
        raise EvaluationError(f"{out} cannot be written: {error.strerror}; what was found lies in {spare}") from error
    return result


def _write(out: Path, samples: Sequence[evaluate.Sample], result: Mapping[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    evaluate.write(samples, out / EPISODES)
    (out / SUMMARY).write_text(json.dumps(result, indent=2) + "\n")


def in_words(result: Mapping[str, Any], out: Path) -> str:
    """What came of it, for people."""
    lines = [evaluate.table(result["eval"])]
    if later := result.get("second_turn"):
        lines.append(
            f"Of {later['tasks']} code tasks whose first reply failed, {later['solved']:.0%} were solved later."
        )
    lines += [f"{out / EPISODES}:{one['line']}  {one['task_id']}: {one['why']}" for one in result["worth_reading"]]
    return "\n".join([*lines, f"All of it: {out / SUMMARY}"])


def _result(evaluation: Evaluation, samples: Sequence[Sample]) -> dict[str, Any]:
    request, summary = evaluation.request, evaluate.summarise(samples, evaluation.request.samples)
    return {
        "model": evaluation.model,
        "tasks": request.tasks,
        "samples": request.samples,
        "temperature": 0.0 if request.greedy else evaluation.config.rollout.temperature,
        "sources": [source.model_dump(mode="json") for source in evaluation.config.data.generated],
        "eval": summary,
        **({"second_turn": evaluate.second_turn(samples)} if "code" in summary else {}),
        "worth_reading": reading.of_one(samples),
    }


class _NotServedError(Exception):
    """No engine came up on the model; why stands in its log at best."""


async def _sampled(evaluation: Evaluation, place: Path, say: Say) -> tuple[list[Sample], dict[str, Any]]:
    """All episodes, and what else there is to tell; what the workers print is kept in `place`."""
    config, request = evaluation.config, evaluation.request
    rollout, faults, waits, began = config.rollout, _Faults(), Waits(), time.monotonic()
    async with AsyncExitStack() as stack:
        cpus, gpus = rollout.workers * rollout.cpus, rollout.workers * rollout.gpus
        where = stack.enter_context(cluster.connected(config.cluster, place, cpus, gpus))
        say(f"{where}; starting {rollout.workers} worker(s) on {evaluation.model}")
        recipes = {source.verifier: recipe(config, source.verifier) for source in config.data.generated}
        setup = WorkerSetup(place.name, evaluation.model, config.model.dtype, config.run.seed, rollout, recipes)
        fleet = Fleet(setup, faults, config.guard.worker_restarts)
        stack.push_async_callback(fleet.stop)
        async with waits.named("the workers to start", rollout.engine.start_seconds):
            await _start(fleet)
        say(fleet.sandbox)
        tasks = evaluate.held_out(config.data.generated, request.tasks)
        episodes, started, done = len(tasks) * request.samples, time.monotonic(), list[int]()

        def speed() -> str:
            return f"{len(done)} episodes, {len(done) / max(time.monotonic() - started, 1e-9):.1f}/s"

        async with (
            waits.named("the held-out episodes", deadline(config, episodes)),
            shown("evaluation", episodes, lambda: len(done), speed, say),
        ):
            samples = await evaluate.evaluate(fleet, tasks, request.samples, greedy=request.greedy, done=done.append)
        seconds = {"startup": started - began, "evaluation": time.monotonic() - started}
        return samples, {"seconds": seconds, "sandbox": fleet.sandbox, "faults": faults.told}


async def _start(fleet: Fleet) -> None:
    """Raises _NotServedError, and what else a worker's start raises."""
    refusals: list[str] = []
    try:
        await fleet.start()
        await fleet.serve()
    except* EngineError as group:
        refusals += map(str, group.exceptions)
    if refusals:
        raise _NotServedError(refusals[0])


def _cause(logs: Path) -> str:
    """The first error in the workers' logs, which is what the others follow from; empty if there is none."""
    for path in sorted(logs.glob("*")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if found := _CAUSE.search(line):
                return f"{found[1]}: {found[2]}"
    return ""
