"""`cwm-rl explain`: what held a finished run up, in a sentence, and the numbers behind it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from verifiers.errors import UserError

LEARNER, BATCH = "the learner's step", "a batch of scored groups"
"""As the driver's waits are named."""
WEIGHTS: Final = ("weights from the learner", "every worker's newest weights", "weights to the workers")
CHECKPOINT: Final = "a checkpoint"
COMMIT: Final = "the ledger's commit"
QUEUED: Final = "queued"
"""How a worker's causes begin that are of episodes without a slot."""
SLOTS: Final = {
    "sampling": "sampling",
    "tool": "tools",
    "grading": "grading",
    "waiting for weights": "waiting for weights",
    "failed": "episodes that failed",
}
"""What takes a slot's time, and its name in a sentence."""
BALANCED: Final = 0.1
"""Share of the training time within which two waits are alike."""
ADVICE: Final = {
    "learner": "more cores or a GPU for it, or a smaller algorithm.token_budget, would make steps faster; more workers "
    "would not",
    "sampling": "more workers, or rollout.slots, would bring more episodes",
    "tool": "more rollout.slots would fill the time that tools take",
    "grading": "faster or more verifiers would free the slots",
    "waiting for weights": "faster steps would help, or algorithm.max_lag above 0, where nobody waits",
    "failed": "`cwm-rl audit` tells what they failed of",
    "weights": "publishing takes its time: a faster transport of weights would help",
    "checkpoint": "a larger checkpoint.every would help",
    "commit": "a faster disk under run.directory would help",
    "balanced": "learner and workers wait for each other equally: only more of both would help",
}


class Share(NamedTuple):
    """A part of the training time, or of the slots' time."""

    of: str
    what: str
    seconds: float
    share: float


class ExplainError(UserError):
    """A run that cannot be explained, in a sentence."""


def explain(run: Path) -> dict[str, Any]:
    """Raises ExplainError where no report is, or one from before times were kept."""
    path = run / "report.json"
    try:
        report = json.loads(path.read_text())
        return _explained(report)
    except FileNotFoundError as error:
        raise ExplainError(f"{path} is not there: a run writes it at its end; until then see `cwm-rl top`") from error
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ExplainError(f"{path} is no report of a run that trained: {error}") from error


def _explained(report: Mapping[str, Any]) -> dict[str, Any]:
    time, training = dict(report["time"]), report["seconds"]["training"]
    driver, learner = time.pop("driver"), time.pop("learner")
    main = {
        "learner": driver.get(LEARNER, 0.0),
        "batches": driver.get(BATCH, 0.0),
        "weights": sum(driver.get(name, 0.0) for name in WEIGHTS),
        "checkpoint": driver.get(CHECKPOINT, 0.0),
        "commit": driver.get(COMMIT, 0.0),
    }
    shares = [Share("training", name, seconds, seconds / training) for name, seconds in main.items()]
    shares += _shares("learner", learner)
    slots, queues = dict[str, float](), dict[str, float]()
    for worker in time.values():
        for name, seconds in worker.items():
            sums = queues if name.startswith(QUEUED) else slots
            sums[name] = sums.get(name, 0.0) + seconds
    shares += _shares("slots", slots) + _shares("queues", queues)
    bottleneck = _bottleneck(main, training, slots)
    ledger = report["ledger"]
    return {
        "bottleneck": bottleneck,
        "why": _why(bottleneck, main, training, slots),
        "advice": ADVICE[bottleneck],
        "shares": [share._asdict() for share in shares],
        "trained": ledger["trained"] / max(1, ledger["dispatched"]),
        "dropped": {
            reason: count / max(1, ledger["dispatched"]) for reason, count in report["dropped"].items() if count
        },
        "lag": _mean_lag(report["lag"]),
    }


def _bottleneck(main: Mapping[str, float], training: float, slots: Mapping[str, float]) -> str:
    most = max(main, key=lambda name: main[name])
    if abs(main["learner"] - main["batches"]) < BALANCED * training and most in ("learner", "batches"):
        return "balanced"
    if most != "batches":
        return most
    return max(SLOTS, key=lambda name: slots.get(name, 0.0))


def _why(bottleneck: str, main: Mapping[str, float], training: float, slots: Mapping[str, float]) -> str:
    waits = (
        f"of {training:.0f} s of training, {main['learner'] / training:.0%} went to the learner's steps and "
        f"{main['batches'] / training:.0%} to waiting for episodes"
    )
    if bottleneck in SLOTS:
        total = sum(slots.values()) or 1.0
        return (
            f"{waits}, whose slots spent {slots.get(bottleneck, 0.0) / total:.0%} of their time on {SLOTS[bottleneck]}"
        )
    return waits


def _shares(of: str, seconds: Mapping[str, float]) -> list[Share]:
    total = sum(seconds.values()) or 1.0
    return [Share(of, name, took, took / total) for name, took in sorted(seconds.items(), key=lambda item: -item[1])]


def _mean_lag(lag: Mapping[str, int]) -> float:
    total = sum(lag.values())
    return sum(int(versions) * count for versions, count in lag.items()) / total if total else 0.0


def in_words(found: Mapping[str, Any]) -> str:
    """The result as text for people."""
    names = SLOTS | {"learner": "the learner", "balanced": "nothing alone"}
    name = names.get(found["bottleneck"], found["bottleneck"])
    lines = [f"What held it up: {name}. {found['why'][0].upper()}{found['why'][1:]}; {found['advice']}."]
    for of in ("training", "learner", "slots", "queues"):
        if parts := [share for share in found["shares"] if share["of"] == of]:
            lines.append(f"  {of:9} " + ", ".join(f"{share['what']} {share['share']:.0%}" for share in parts))
    dropped = ", ".join(f"{reason} {share:.1%}" for reason, share in found["dropped"].items()) or "nothing"
    lines.append(
        f"  episodes  {found['trained']:.0%} trained on; dropped: {dropped}; mean lag {found['lag']:.1f} versions"
    )
    return "\n".join(lines)
