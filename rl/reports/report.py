"""What happened, in numbers for programs and in words for people. Every figure is read back from the ledger."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil

from rl.algorithm.staleness import lag
from rl.driver.inbox import Batch
from rl.evaluation import evaluate
from rl.learner.exactness import Gap
from rl.ledger import DropReason, Reader
from rollout_workers.trajectory import Scored


def batch_stats(batch: Batch, newest: int) -> dict[str, Any]:
    """What a step's row in the ledger says of its batch. Lags are counted by token."""
    members = [member for group in batch.groups for member in group.members]
    lags: Counter[int] = Counter()
    for member in members:
        for completion in member.episode.completions:
            if completion.tokens:
                lags[newest - completion.version] += len(completion.tokens)
    return {
        "reward": by_domain(members),
        "correct": _shares(members),
        "parts": _parts(members),
        "episodes": len(members),
        "sampled_tokens": sum(member.episode.sampled_tokens for member in members),
        "lag_max": max(lag(member.episode, newest) for member in members),
        "lag_by_token": {str(key): lags[key] for key in sorted(lags)},
    }


def spent(after: Mapping[str, Mapping[str, float]], before: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Seconds by actor and cause between two looks; an actor that was started anew has only those since."""
    found = {}
    for actor, causes in after.items():
        earlier = before.get(actor, {})
        if any(seconds > causes.get(cause, 0.0) for cause, seconds in earlier.items()):
            earlier = {}
        found[actor] = {cause: seconds - earlier.get(cause, 0.0) for cause, seconds in causes.items()}
    return found


def by_domain(members: list[Scored]) -> dict[str, float]:
    """Mean reward by domain."""
    found: dict[str, list[float]] = {}
    for member in members:
        if member.verdict.reward is not None:
            found.setdefault(member.episode.domain, []).append(member.verdict.reward)
    return {domain: fmean(found[domain]) for domain in sorted(found)}


def _shares(members: list[Scored]) -> dict[str, float]:
    """Share that is right by domain, of those whose verifier says."""
    found: dict[str, list[bool]] = {}
    for member in members:
        if member.verdict.correct is not None:
            found.setdefault(member.episode.domain, []).append(member.verdict.correct)
    return {domain: fmean(found[domain]) for domain in sorted(found)}


def _parts(members: list[Scored]) -> dict[str, float]:
    """Mean of every component of the reward, before weights."""
    found: dict[str, list[float]] = {}
    for member in members:
        for name, value in member.verdict.parts.items():
            found.setdefault(name, []).append(value)
    return {name: fmean(found[name]) for name in sorted(found)}


def step_line(step: int, steps: int, stats: Mapping[str, Any], speed: float, dropped: Mapping[DropReason, int]) -> str:
    """A step in one line; `speed` in trained tokens a second, `dropped` since the run's beginning."""
    reward = "  ".join(f"{domain} {value:+.2f}" for domain, value in stats["reward"].items())
    lost = ", ".join(f"{reason} {count}" for reason, count in dropped.items()) or "none"
    return (
        f"step {step}/{steps}  {reward}  |  {stats['episodes']} episodes, {speed:,.0f} tokens/s, "
        f"lag ≤ {stats['lag_max']}, entropy {stats['entropy']:.2f}, |g| {stats['grad_norm']:.2g}  |  dropped: {lost}"
    )


def build(
    directory: Path,
    began: float,
    seconds: Mapping[str, float],
    time_by_actor: Mapping[str, Mapping[str, float]],
    gap: Gap | None,
    sandbox: str,
    actors: Iterable[int],
) -> dict[str, Any]:
    """The report of a run that has just ended.

    `began` is when this process began to train (Unix seconds), `seconds` its `startup` and `training`; rates are its
    own.
    """
    with Reader(directory) as reader:
        counts, steps = reader.counts(), reader.steps()
        wall = seconds["training"]
        trained = sum(step.sampled_tokens for step in steps if step.at >= began)
        return {
            "run": reader.run_id,
            **evaluations(directory),
            "steps": reader.step,
            "version": reader.version,
            "seconds": dict(seconds),
            "reward": [{"step": one.step, **_shown(one.stats)} for one in steps],
            "ledger": {
                "balanced": counts.balanced,
                "dispatched": counts.dispatched,
                "trained": counts.trained,
                "pending": sum(counts.pending.values()),
            },
            "dropped": {reason.value: counts.dropped.get(reason, 0) for reason in DropReason},
            "verdicts": reader.verdicts(),
            "correct": reader.correct(),
            "multi_version_fraction": reader.multi_version_fraction(),
            "lag": {str(key): value for key, value in reader.lags().items()},
            "logprob_gap": None
            if gap is None
            else {
                "max": gap.max,
                "tokens": gap.tokens,
                "versions": len(gap.by_version),
                "by_version": {str(version): worst for version, worst in gap.by_version.items()},
            },
            "throughput": {
                "sampled_tokens_per_s": reader.sampled_tokens(since=began) / wall,
                "trained_tokens_per_s": trained / wall,
            },
            "time": {actor: dict(causes) for actor, causes in time_by_actor.items()},
            "faults": [f"{fault.actor}: {fault.detail}" for fault in reader.faults()],
            "sandbox": sandbox,
            "peak_rss_bytes": peak_rss_bytes(actors),
        }


def evaluations(directory: Path) -> dict[str, Any]:
    """What the run's evaluations came to: `eval` by time and domain, `second_turn`; empty without any."""
    samples = {
        when: evaluate.read(path)
        for when in ("before", "after")
        if (path := directory / "eval" / f"{when}.jsonl").exists()
    }
    if not samples:
        return {}
    later = {when: evaluate.second_turn(one) for when, one in samples.items()}
    found: dict[str, Any] = {"eval": {when: evaluate.summarise(one) for when, one in samples.items()}}
    found["second_turn"] = {when: one["solved"] for when, one in later.items()}
    found["second_turn"]["tasks"] = {when: one["tasks"] for when, one in later.items()}
    if len(later) == 2:
        found["second_turn"]["gain"] = later["after"]["solved"] - later["before"]["solved"]
    return found


def _shown(stats: Mapping[str, Any]) -> dict[str, Any]:
    return {key: stats[key] for key in ("reward", "parts", "entropy", "kl_k3", "clip_fraction", "grad_norm", "lag_max")}


def in_words(report: Mapping[str, Any]) -> str:
    """The report as a person would tell it, the bad news included."""
    first, last = report["reward"][0], report["reward"][-1]
    ledger, dropped = report["ledger"], {reason: n for reason, n in report["dropped"].items() if n}
    lines = [f"{report['steps']} optimiser steps in {report['seconds']['training']:.0f} s of training."]
    lines += _evaluation_in_words(report)
    for kind in ("reward", "parts"):
        for name, after in last[kind].items():
            before = first[kind].get(name)
            if before is not None:
                lines.append(
                    f"  {kind.rstrip('s')} {name}: {before:+.3f} at step 1, {after:+.3f} at step {report['steps']}"
                )
    solved = ", ".join(f"{count} in {domain}" for domain, count in report["correct"].items()) or "none"
    lines += [
        f"Answers that were right, of {sum(report['verdicts'].values())}: {solved}.",
        f"Episodes: {ledger['dispatched']} dispatched = {ledger['trained']} trained + "
        f"{sum(dropped.values())} dropped + {ledger['pending']} pending; "
        + ("the ledger adds up." if ledger["balanced"] else "THE LEDGER DOES NOT ADD UP."),
        "Dropped: " + (", ".join(f"{reason} {count}" for reason, count in dropped.items()) or "none") + ".",
        f"{report['multi_version_fraction']:.0%} of the trained episodes were sampled under more than one version.",
    ]
    if report["logprob_gap"]:
        gap = report["logprob_gap"]
        lines.append(
            f"Engine and learner differ by at most {gap['max']:.1e} nats a token "
            f"({gap['tokens']} tokens of {gap['versions']} versions)."
        )
    speed = report["throughput"]
    lines.append(
        f"{speed['sampled_tokens_per_s']:.0f} tokens/s sampled, {speed['trained_tokens_per_s']:.0f} trained; "
        f"peak memory {report['peak_rss_bytes'] / 2**30:.1f} GiB. {report['sandbox']}"
    )
    return "\n".join(lines)


def _evaluation_in_words(report: Mapping[str, Any]) -> list[str]:
    lines = []
    before, after = (report.get("eval", {}).get(when, {}) for when in ("before", "after"))
    for domain, rates in after.items():
        first = before.get(domain)
        earlier = f"{first['pass@1']:.3f} ({first['low']:.2f} to {first['high']:.2f}) before, " if first else ""
        lines.append(
            f"  held-out {domain}, {rates['tasks']} tasks: {earlier}{rates['pass@1']:.3f} "
            f"({rates['low']:.2f} to {rates['high']:.2f}) after"
        )
    later = report.get("second_turn", {})
    if "gain" in later:
        lines.append(
            f"  code tasks solved at a later turn after a failed first one: {later['before']:.0%} of "
            f"{later['tasks']['before']:.0f} before, {later['after']:.0%} of {later['tasks']['after']:.0f} after"
        )
    return lines


def peak_rss_bytes(actors: Iterable[int]) -> int:
    """Sum of the largest resident sizes of this process, the actors' on this host and all below them.

    Each process's own peak counts, and shared pages count in each: more than was ever in use at once.
    """
    pids = set()
    for root in (os.getpid(), *actors):
        with suppress(psutil.NoSuchProcess):
            pids |= {root, *(child.pid for child in psutil.Process(root).children(recursive=True))}
    return sum(map(_peak, pids))


def _peak(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0  # ended meanwhile
    return next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM")), 0)
