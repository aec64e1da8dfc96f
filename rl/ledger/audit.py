"""Adds a ledger up, from its rows: what cannot be if everything was recorded as it happened."""

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from rl.ledger import codec, queries, schema
from rl.ledger.laws import LAWS
from rl.ledger.lives import summary
from rl.ledger.records import Counts
from rollout_workers.trajectory import EpisodeKey

_SHOWN = 5
_PAYLOAD = """
    SELECT data, first_version, last_version, multi_version, sampled_tokens, tokens, turns, stop
    FROM episodes JOIN payloads USING (group_id, idx, attempt) WHERE group_id = ? AND idx = ? AND attempt = ?
"""


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found: breaches of the ledger's laws, and totals."""

    problems: tuple[str, ...]
    """One sentence each; empty if all is well."""
    counts: Counts | None
    """None where the file is too damaged to count."""
    steps: int = 0
    version: int = -1
    """The newest published version."""
    lineages: int = 0
    payloads: int = 0
    """Episodes that were read back whole and compared with their columns."""

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return not self.problems


def audit(path: Path | str, *, sample: int | None = None) -> Audit:
    """Check a ledger, as of one moment; its writer may go on. `path` is its file or the run's directory.

    All payloads are read, or `sample` of them, drawn at random. Raises LedgerError if there is no ledger that we know.
    """
    with closing(schema.connect_reader(schema.locate(path))) as connection:
        try:
            connection.execute("BEGIN")
            return _audit(connection, sample)
        except sqlite3.Error as error:
            return Audit((f"the file cannot be read to its end ({error}): restore it from a copy",), None)


def in_words(audit: Audit) -> str:
    """A few lines for people."""
    findings = [f"WRONG: {problem}" for problem in audit.problems] or ["all is well"]
    if audit.counts is None:
        return "\n".join(findings)
    counts = audit.counts
    gone, pending = sum(counts.dropped.values()), sum(counts.pending.values())
    reasons = ", ".join(f"{reason} {count}" for reason, count in counts.dropped.items() if count) or "none"
    totals = (
        f"dispatched {counts.dispatched} = trained {counts.trained} + dropped {gone} + pending {pending}",
        f"dropped: {reasons}",
        f"steps {audit.steps}, newest version {audit.version}, lineages {audit.lineages}, payloads {audit.payloads}",
    )
    return "\n".join([*totals, *findings])


def _audit(connection: sqlite3.Connection, sample: int | None) -> Audit:
    problems = [str(row[0]) for row in connection.execute("PRAGMA quick_check") if row[0] != "ok"]
    orphans = sorted({f"{row[0]} -> {row[2]}" for row in connection.execute("PRAGMA foreign_key_check")})
    problems += [f"rows refer to rows that are not there: {link}" for link in orphans]
    for law in LAWS:
        names = ["/".join(map(str, row)) for row in connection.execute(law.breaches)]
        if names:
            problems.append(_sentence(law.wrong, names))
    counts = queries.counts(connection)
    if not counts.balanced:
        problems.append("the counts do not add up: dispatched is not trained + dropped + pending")
    keys = _payload_keys(connection, sample)
    damaged = [f"{EpisodeKey(*key)} ({fault})" for key in keys for fault in _payload_faults(connection, key)]
    if damaged:
        problems.append(_sentence("payloads are damaged", damaged))
    (lineages,) = connection.execute("SELECT COUNT(*) FROM lineages").fetchone()
    step, version = queries.current_step(connection), queries.newest_version(connection)
    return Audit(tuple(problems), counts, step, version, lineages, len(keys))


def _sentence(wrong: str, names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{wrong}: {', '.join(names[:_SHOWN])}{more}"


def _payload_keys(connection: sqlite3.Connection, sample: int | None) -> list[tuple[int, int, int]]:
    keys = connection.execute("SELECT group_id, idx, attempt FROM payloads ORDER BY rowid").fetchall()
    return keys if sample is None or sample >= len(keys) else random.sample(keys, sample)


def _payload_faults(connection: sqlite3.Connection, key: tuple[int, int, int]) -> Iterator[str]:
    """At most one."""
    row = connection.execute(_PAYLOAD, key).fetchone()
    if row is None:
        return
    try:
        episode = codec.unpack(row[0])
    except ValueError as error:
        yield str(error)
        return
    if episode.key != EpisodeKey(*key):
        yield f"it is that of episode {episode.key}"
    elif row[1:] != summary(episode):
        yield "its tokens or versions are not those of its row"
