"""The controls of a run: the same run where nothing can be learnt. If one changes, the instrument is wrong."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rl.config import Config, ConfigError, changed
from rl.reports import closing
from rollout_workers.files import replacing

CONTROLS: Mapping[str, Sequence[str]] = {
    "lr 0": ("learner.lr=0", "learner.muon_lr=0"),
    "shuffled rewards": ("algorithm.shuffle_rewards=true",),
}
"""Name -> the settings that take the learning out."""

SAMPLES = 4
"""Tries at each task: with one at each of 200, a change of .05 is no more than chance, where nothing has changed."""

Execute = Callable[[Config], tuple[Path, Mapping[str, Any]] | None]


def run_controls(config: Config, execute: Execute) -> str | None:
    """Take every control run, put the table of all of them into their reports, and return it in words.

    `execute` takes a run and gives its directory and report, None where it was interrupted. Raises ConfigError where
    the configuration evaluates nothing.
    """
    if config.eval is None:
        raise ConfigError("controls compare evaluations, and the configuration has no [eval]: add one")
    samples = max(SAMPLES, config.eval.samples)
    name = config.run.id or time.strftime("%Y%m%d-%H%M%S")
    directories, found = [], {}
    for control, settings in CONTROLS.items():
        own = [*settings, f"eval.samples={samples}", f"run.id={name}-{control.replace(' ', '-')}"]
        done = execute(changed(config, own))
        if done is None:
            return None
        directory, report = done
        directories.append(directory)
        found[control] = report["eval"]
    for directory in directories:
        path = directory / "report.json"
        report = json.loads(path.read_text()) | {"controls": found}
        with replacing(path) as whole:
            whole.write_text(json.dumps(report, indent=2) + "\n")
        closing.close(directory, report)
    return in_words(found)


def in_words(controls: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for every control and domain."""
    lines = []
    for control, evaluations in controls.items():
        for domain, after in evaluations["after"].items():
            before = evaluations["before"][domain]["pass@1"]
            lines.append(
                f"control {control}, {domain}: {before:.3f} before, {after['pass@1']:.3f} after, "
                f"{after['pass@1'] - before:+.3f}"
            )
    return "\n".join(lines)
