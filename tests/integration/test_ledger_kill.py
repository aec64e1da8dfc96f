"""A writing process is killed at random moments: the ledger adds up, and nothing that was reported is lost."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rl.ledger import Ledger, LedgerError, Reader
from rl.ledger.audit import audit

REPOSITORY = Path(__file__).parents[2]
KILLS = 12

# A driver without its workers: it resumes what is there, then runs until it is killed, and prints what became durable.
DRIVER = """
import itertools, random, sys
from rl.ledger import DropReason, Ledger
from rollout_workers.trajectory import Completion, Context, Episode, EpisodeKey, StopReason, Trajectory
from verifiers.task import Submission
from verifiers.verdict import Verdict

path, chance = sys.argv[1], random.Random(int(sys.argv[2]))

def episode(key, version):
    completion = Completion(tuple(range(500)), tuple(-chance.random() for _ in range(500)), version)
    return Episode(key, "task", "math", (Trajectory((Context((1,)), completion)),), StopReason.DONE, Submission("x"))

def say(word, number):
    sys.stdout.write(f"{word} {number}\\n")  # one write, so that a kill cuts no line in two
    sys.stdout.flush()

def group():
    number = ledger.dispatch("task", "math", 4, 4e9)
    for index in range(4):
        key = EpisodeKey(number, index, 0)
        fate = chance.random()
        if fate < 0.1:
            key = ledger.retry(key, DropReason.INFRA_ERROR, "drawn")
        if fate > 0.1:
            ledger.sampled(episode(key, ledger.version))
            ledger.scored(key, Verdict.scored(fate, correct=fate > 0.5))
    return ledger.close(number)

with Ledger.open(path) as ledger:
    ledger.interrupt()
    newest = ledger.newest_checkpoint()
    ledger.rollback(newest[0] if newest else 0)
    say("version", ledger.publish(ledger.step))
    for waiting in itertools.chain(ledger.ready(), iter(group, None)):
        keys = [member.episode.key for member in waiting.members]
        if len(keys) < 2:
            ledger.drop(keys, DropReason.GROUP_TOO_SMALL)
            continue
        step = ledger.step + 1
        ledger.commit(step, keys, {"loss": 0.1})
        say("step", step)
        say("version", ledger.publish(step))
        if step % 5 == 0:
            ledger.checkpoint(step, f"step-{step}")
            say("checkpoint", step)
"""


@contextmanager
def driver(path: Path, seed: int) -> Iterator[subprocess.Popen[str]]:
    """A writing process; killed, and waited for, on leaving."""
    command = [sys.executable, "-c", DRIVER, str(path), str(seed)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def first_line(process: subprocess.Popen[str]) -> str:
    """What it says first, so that it is at work; the test's own timeout bounds the wait."""
    assert process.stdout is not None
    return process.stdout.readline()


def test_the_ledger_survives_kill_minus_nine_at_any_moment(tmp_path: Path) -> None:
    Ledger.create(tmp_path, "run", {}).release()
    chance, said = random.Random(0), {"step": 0, "version": -1, "checkpoint": 0}
    for seed in range(KILLS):
        with driver(tmp_path, seed) as process:
            assert process.stdout is not None
            # A life is so many lines long, and then some moments: a slow disk makes it longer, not emptier.
            lines = [process.stdout.readline() for _ in range(chance.randint(1, 30))]
            time.sleep(chance.uniform(0.0, 0.02))
            process.send_signal(signal.SIGKILL)
            lines += process.stdout.readlines()
        assert process.returncode == -signal.SIGKILL

        found = audit(tmp_path)
        assert found.ok, found.problems
        for line in lines:
            word, number = line.split()
            if word == "version":
                assert int(number) > said["version"], "a version was used twice"
            said[word] = int(number)
        with Reader(tmp_path) as reader:
            assert reader.step >= said["step"]
            assert reader.version >= said["version"]
            assert [*reader.checkpoints(), (0, None)][0][0] >= said["checkpoint"]
        # What lies after the newest checkpoint is trained again.
        said["step"] = said["checkpoint"]
    assert said["checkpoint"] >= 5, "the drivers were killed before they did anything worth losing"


def test_a_second_writer_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    Ledger.create(tmp_path, "run", {}).release()
    with driver(tmp_path, 0) as process:
        first_line(process)
        with pytest.raises(LedgerError, match=f"already has a writer .process {process.pid}.: stop that run"):
            Ledger.open(tmp_path)
    with Ledger.open(tmp_path) as ledger, pytest.raises(LedgerError, match=f"process {os.getpid()}"):
        Ledger.create(ledger.path, "run", {})


FULL_DISK = """
import resource, sys
from rl.ledger import Ledger, LedgerError
from rl.ledger.audit import audit
from rollout_workers.trajectory import Completion, Episode, EpisodeKey, StopReason, Trajectory
from verifiers.task import Submission
from verifiers.verdict import Verdict

def fill(key):
    completion = Completion(tuple(range(4000)), (-0.5,) * 4000, 0)
    return Episode(key, "task", "math", (Trajectory((completion,)),), StopReason.DONE, Submission("x"))

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

with Ledger.create(sys.argv[1], "run", {}) as ledger:
    ledger.publish(0)
    group = ledger.dispatch("task", "math", 200, 4e9)
    keys = [EpisodeKey(group, index, 0) for index in range(200)]
    limit(300_000)
    try:
        for key in keys:
            ledger.sampled(fill(key))
            ledger.scored(key, Verdict.scored(1.0, correct=True))
    except LedgerError as error:
        print(error)
    limit(resource.RLIM_INFINITY)
    assert 0 < keys.index(key) < 199, "the disk was full at once, or never"
    for key in keys:
        ledger.sampled(fill(key))
        ledger.scored(key, Verdict.scored(1.0, correct=True))
    ledger.close(group)
    ledger.commit(1, keys, {})
assert audit(sys.argv[1]).ok
"""


def test_a_full_disk_changes_nothing_and_is_survived(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "was not written" in done.stdout
    assert "nothing changed, see to the disk" in done.stdout


def test_readers_add_up_at_every_moment_and_stop_nobody(tmp_path: Path) -> None:
    Ledger.create(tmp_path, "run", {}).release()
    balanced: list[bool] = []

    def read() -> None:
        for _ in range(50):
            with Reader(tmp_path) as reader:
                balanced.append(reader.balanced)

    with driver(tmp_path, 0) as process:
        first_line(process)
        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert audit(tmp_path).ok
        for thread in threads:
            thread.join(timeout=60)
        assert process.poll() is None
    assert balanced == [True] * 100
    with Reader(tmp_path) as reader:
        assert reader.step > 0
