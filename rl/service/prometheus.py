"""What Prometheus scrapes, in its text format: the runs that were written last, and the service itself."""

import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import get_args

from rl.ledger import LedgerError, Reader
from rl.reports.pages import visible
from rl.service import models, runs
from rl.service.live import Hub

_RUNS = 20
_STATES: tuple[str, ...] = get_args(models.RunState)
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n"}
_FAMILIES = {
    "cwm_rl_run_state": ("gauge", "1 for the state that a run is in"),
    "cwm_rl_step": ("gauge", "last committed step"),
    "cwm_rl_version": ("gauge", "newest published weights"),
    "cwm_rl_reward": ("gauge", "mean reward of the last step"),
    "cwm_rl_stat": ("gauge", "a statistic of the last step"),
    "cwm_rl_episodes": ("gauge", "episodes by where they stand"),
    "cwm_rl_dropped": ("gauge", "episodes by why they were dropped"),
    "cwm_rl_faults": ("gauge", "failures of ours that were dealt with"),
    "cwm_rl_written_timestamp_seconds": ("gauge", "when the ledger last changed"),
    "cwm_rl_wait_seconds": ("gauge", "how long something is waited for"),
    "cwm_rl_wait_left_seconds": ("gauge", "until the deadline of a wait"),
    "cwm_rl_heartbeat_age_seconds": ("gauge", "since an actor last answered"),
    "cwm_rl_acting": ("gauge", "episodes that act at a worker"),
    "cwm_rl_slots": ("gauge", "episodes that may act at a worker"),
    "cwm_rl_grading": ("gauge", "episodes that are graded at a worker"),
    "cwm_rl_sandboxes": ("gauge", "sandboxes open at a worker"),
    "cwm_rl_worker_version": ("gauge", "weights that a worker samples from"),
    "cwm_rl_live_clients": ("gauge", "clients of the live stream"),
    "cwm_rl_live_events_total": ("counter", "events that were sent to clients"),
    "cwm_rl_live_dropped_total": ("counter", "clients of the live stream that were dropped"),
    "cwm_rl_service_cpu_seconds_total": ("counter", "processor time of the service"),
}
_STATS = ("entropy", "kl_k3", "clip_fraction", "grad_norm", "lag_max", "sampled_tokens", "episodes")

Sample = tuple[str, Mapping[str, str], float]


def text(root: Path, hub: Hub) -> str:
    """All families, in their order."""
    found: dict[str, list[str]] = {name: [] for name in _FAMILIES}
    for name, labels, value in _samples(root, hub):
        shown = ",".join(f'{key}="{_escaped(one)}"' for key, one in labels.items())
        found[name].append(f"{name}{{{shown}}} {value:.10g}" if shown else f"{name} {value:.10g}")
    lines = []
    for name, (kind, words) in _FAMILIES.items():
        if found[name]:
            lines += [f"# HELP {name} {words}", f"# TYPE {name} {kind}", *found[name]]
    return "\n".join([*lines, ""])


def _samples(root: Path, hub: Hub) -> Iterator[Sample]:
    for run in islice(runs.listed(root), _RUNS):
        try:
            with Reader(run) as reader:
                yield from _of_run(run, reader)
        except (LedgerError, runs.DatabaseError):
            yield from _state(run.name, "unreadable")
    yield "cwm_rl_live_clients", {}, hub.clients
    yield "cwm_rl_live_events_total", {}, hub.events
    for reason, count in hub.dropped.items():
        yield "cwm_rl_live_dropped_total", {"reason": reason}, count
    yield "cwm_rl_service_cpu_seconds_total", {}, time.process_time()


def _of_run(run: Path, reader: Reader) -> Iterator[Sample]:
    name = {"run": run.name}
    fleet, counts, now = runs.fleet(reader), reader.counts(), time.time()
    yield from _state(run.name, fleet.state)
    yield "cwm_rl_step", name, reader.step
    yield "cwm_rl_version", name, fleet.version
    yield "cwm_rl_faults", name, reader.fault_count
    if written := runs.written_at(run):
        yield "cwm_rl_written_timestamp_seconds", name, written
    yield "cwm_rl_episodes", name | {"state": "trained"}, counts.trained
    for state, count in counts.pending.items():
        yield "cwm_rl_episodes", name | {"state": state.value}, count
    for reason, count in counts.dropped.items():
        yield "cwm_rl_dropped", name | {"reason": reason.value}, count
    for step in reader.steps(after=reader.step - 1):
        stats = runs.flat_stats(step)
        for key, value in stats.items():
            if value is not None and key.startswith("reward."):
                yield "cwm_rl_reward", name | {"domain": key.removeprefix("reward.")}, value
            elif value is not None and key in _STATS:
                yield "cwm_rl_stat", name | {"stat": key}, value
    for wait in fleet.waits:
        yield "cwm_rl_wait_seconds", name | {"wait": wait.name}, max(0.0, now - wait.since)
        yield "cwm_rl_wait_left_seconds", name | {"wait": wait.name}, wait.until - now
    for actor in fleet.actors if fleet.state == "running" else ():
        which = name | {"actor": actor.name}
        if actor.seen is not None:
            yield "cwm_rl_heartbeat_age_seconds", which, max(0.0, now - actor.seen)
        if actor.slots:
            for key in ("acting", "slots", "grading", "sandboxes"):
                yield f"cwm_rl_{key}", which, getattr(actor, key)
        if actor.version is not None:
            yield "cwm_rl_worker_version", which, actor.version


def _state(run: str, now: str) -> Iterator[Sample]:
    for state in _STATES:
        yield "cwm_rl_run_state", {"run": run, "state": state}, state == now


def _escaped(value: str) -> str:
    return "".join(_ESCAPES.get(one, one) for one in visible(value))
