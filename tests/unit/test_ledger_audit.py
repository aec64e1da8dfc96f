"""The audit finds each way in which a ledger can be wrong: every one is made by hand, in SQL."""

import sqlite3
import zlib
from pathlib import Path

import pytest

from rl.ledger import DropReason, Ledger, codec
from rl.ledger.audit import audit, in_words
from rl.ledger.laws import LAWS
from rollout_workers.trajectory import Completion, Context, Episode, EpisodeKey, StopReason, Trajectory
from verifiers.task import Submission
from verifiers.verdict import Verdict


def episode(key: EpisodeKey, version: int) -> Episode:
    trajectory = Trajectory((Context((1, 2)), Completion((7, 8, 9), (-0.1, -0.25, -2.5), version)))
    return Episode(key, "task", "math", (trajectory,), StopReason.DONE, Submission("x"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Four steps, a rollback to 2 and a new step 3, checkpoints, one retry, one closed group that waits, one open.

    Groups 1 to 4 of two were trained by steps 1 to 4; 3 and 4 are pending again, then 5 became step 3 of lineage 1.
    """
    with Ledger.create(tmp_path, "run", {}) as ledger:
        ledger.publish(0)
        ledger.checkpoint(0, "step-0")
        for step in (1, 2, 3, 4):
            ledger.commit(step, scored(ledger), {})
            ledger.publish(step)
        ledger.checkpoint(4, "step-4")
        ledger.rollback(2)
        ledger.publish(2)
        ledger.commit(3, scored(ledger), {})
        ledger.publish(3)
        ledger.checkpoint(3, "step-3")
        ledger.retry(EpisodeKey(ledger.dispatch("task", "math", 2, 4e9), 1, 0), DropReason.WORKER_LOST)
    return tmp_path / "ledger.sqlite"


def scored(ledger: Ledger) -> list[EpisodeKey]:
    group = ledger.dispatch("task", "math", 2, 4e9)
    keys = [EpisodeKey(group, index, 0) for index in range(2)]
    for index, key in enumerate(keys):
        ledger.sampled(episode(key, ledger.version))
        ledger.scored(key, Verdict.scored(float(index), correct=bool(index)))
    ledger.close(group)
    return keys


def corrupt(path: Path, sql: str, *values: object) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA ignore_check_constraints = ON")
    changed = connection.execute(sql, values).rowcount
    connection.commit()
    connection.close()
    assert changed, "the corruption itself must do something"


def test_a_sound_ledger_is_sound(path: Path) -> None:
    found = audit(path)
    assert found.problems == ()
    assert found.ok
    assert found.counts is not None
    assert (found.counts.dispatched, found.counts.trained, found.payloads) == (13, 6, 10)
    assert (found.steps, found.version, found.lineages) == (3, 6, 2)
    assert in_words(found).splitlines()[0] == "dispatched 13 = trained 6 + dropped 1 + pending 6"
    assert in_words(found).endswith("all is well")


RETRIED = "group_id = 6 AND idx = 1"
CORRUPTIONS = [
    ("groups lack a seat", "UPDATE groups SET size = 3 WHERE id = 1"),
    ("groups lack a seat", "DELETE FROM episodes WHERE group_id = 6 AND idx = 0"),
    ("outside their group", "UPDATE groups SET size = 1 WHERE id = 1"),
    ("outside their group", "DELETE FROM groups WHERE id = 6"),
    ("did not fail by our fault", f"UPDATE episodes SET reason = 'stale' WHERE {RETRIED} AND attempt = 0"),
    ("did not fail by our fault", f"UPDATE episodes SET attempt = 2 WHERE {RETRIED} AND attempt = 1"),
    ("unfinished members", "UPDATE groups SET closed_at = 5.0 WHERE id = 6"),
    ("open groups are trained", "UPDATE groups SET closed_at = NULL WHERE id = 1"),
    ("states are unknown", "UPDATE episodes SET state = 'lost' WHERE group_id = 1"),
    ("for no reason", f"UPDATE episodes SET reason = NULL WHERE {RETRIED} AND attempt = 0"),
    ("for no reason", "UPDATE episodes SET reason = 'stale' WHERE group_id = 1"),
    ("rewards do not fit", "UPDATE episodes SET outcome = 'infra_error' WHERE group_id = 1"),
    ("rewards do not fit", "UPDATE episodes SET reward = 1.0 WHERE group_id = 6"),
    ("without a reward", "UPDATE episodes SET reward = NULL, outcome = NULL WHERE group_id = 3"),
    ("have no payload", "DELETE FROM payloads WHERE group_id = 1"),
    ("belong to no sampled", "UPDATE payloads SET group_id = 99 WHERE group_id = 1"),
    ("not published by then", "UPDATE episodes SET last_version = 40 WHERE group_id = 1"),
    ("not published by then", "UPDATE episodes SET first_version = NULL WHERE group_id = 1"),
    ("not published by then", "UPDATE versions SET at = at + 1e6 WHERE version = 0"),
    ("not there, or was abandoned", "UPDATE episodes SET step = 9 WHERE group_id = 1"),
    ("not there, or was abandoned", "UPDATE episodes SET state = 'trained', lineage = 0, step = 4 WHERE group_id = 4"),
    ("not there, or was abandoned", "UPDATE episodes SET step = NULL WHERE group_id = 1"),
    ("are not trained", "UPDATE episodes SET lineage = 0, step = 1 WHERE group_id = 4"),
    ("trained in two attempts", f"UPDATE episodes SET state = 'trained', lineage = 0, step = 1 WHERE {RETRIED}"),
    ("as many episodes or tokens", "UPDATE steps SET episodes = 3 WHERE step = 1"),
    ("as many episodes or tokens", "UPDATE steps SET sampled_tokens = 7 WHERE step = 1"),
    ("as many episodes or tokens", "UPDATE episodes SET sampled_tokens = 4 WHERE group_id = 1"),
    ("steps are missing", "DELETE FROM steps WHERE step = 2"),
    ("steps are missing", "UPDATE steps SET step = 2 WHERE lineage = 1"),
    ("steps were committed out of order", "UPDATE steps SET at = 5.0 WHERE step = 2"),
    ("name a version", "UPDATE steps SET version = 40 WHERE step = 1"),
    ("checkpoints are of a step", "INSERT INTO checkpoints VALUES (1, 4, 'never', 0.0)"),
    ("versions are missing", "DELETE FROM versions WHERE version = 3"),
    ("versions went back", "UPDATE versions SET at = 5.0 WHERE version = 3"),
    ("versions went back", "UPDATE versions SET lineage = 1 WHERE version = 3"),
    ("without their step", "UPDATE versions SET step = 4 WHERE version = 6"),
    ("before it was committed", "UPDATE steps SET at = at + 1e6 WHERE step = 1"),
    ("do not add up", "UPDATE steps SET episodes = 3 WHERE step = 1"),
    ("do not add up", "DELETE FROM episodes WHERE group_id = 6 AND idx = 0"),
    ("refer to rows that are not there", "DELETE FROM groups WHERE id = 6"),
    ("payloads are damaged", "UPDATE payloads SET data = x'00' WHERE group_id = 1"),
    ("payloads are damaged", "UPDATE payloads SET data = substr(data, 1, 40) WHERE group_id = 1"),
    ("not those of its row", "UPDATE episodes SET tokens = 6 WHERE group_id = 4"),
    ("not those of its row", "UPDATE episodes SET multi_version = 1 WHERE group_id = 4"),
    ("that of episode 1/0/0", "UPDATE payloads SET data = (SELECT data FROM payloads WHERE group_id = 1 AND idx = 0)"),
]


@pytest.mark.parametrize(("words", "sql"), CORRUPTIONS)
def test_every_corruption_is_found(path: Path, words: str, sql: str) -> None:
    corrupt(path, sql)
    found = audit(path)
    assert not found.ok
    assert any(words in problem for problem in found.problems), found.problems
    assert f"WRONG: {found.problems[0]}" in in_words(found)


def test_every_law_is_broken_by_a_corruption() -> None:
    assert [law.wrong for law in LAWS if not any(words in law.wrong for words, _ in CORRUPTIONS)] == []


@pytest.mark.parametrize(
    "body", [b"", b"\x90", b"\x81\xa3key\x01", zlib.compress(b"x")], ids=["empty", "array", "torn", "twice"]
)
def test_a_payload_of_something_else_is_damage_and_no_crash(path: Path, body: bytes) -> None:
    corrupt(path, "UPDATE payloads SET data = ? WHERE group_id = 1 AND idx = 0", zlib.compress(body))
    assert any("payloads are damaged: 1/0/0 (not an episode" in problem for problem in audit(path).problems)


def test_a_torn_number_is_damage(path: Path) -> None:
    whole = zlib.decompress(codec.pack(episode(EpisodeKey(1, 0, 0), 0)))
    torn = whole.replace(b"\xc4\x08\x01\x02\x00", b"\xc4\x07\x01\x02")  # the context's two tokens, less a byte
    corrupt(path, "UPDATE payloads SET data = ? WHERE group_id = 1 AND idx = 0", zlib.compress(torn))
    assert any("1/0/0 (not an episode: 7 bytes" in problem for problem in audit(path).problems)


def test_a_sample_reads_no_more_than_it_says(path: Path) -> None:
    assert audit(path, sample=4).payloads == 4
    assert audit(path, sample=400).payloads == 10


def test_a_file_that_was_overwritten_in_its_middle_is_reported(path: Path) -> None:
    data = bytearray(path.read_bytes())
    half = len(data) // 2
    data[half : half + 16384] = b"\xff" * 16384
    path.write_bytes(data)
    found = audit(path)
    assert not found.ok
    assert "WRONG" in in_words(found)
