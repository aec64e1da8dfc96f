"""The laws that a sound ledger keeps, each as a question for the rows that break it. All are answered by no row.

They start from the rows of single episodes, steps and versions, not from totals that the writer keeps.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Law:
    """What is wrong if `breaches` finds rows; their columns name them."""

    wrong: str
    breaches: str


GROUPS = (
    Law(
        "groups lack a seat's first attempt",
        """SELECT g.id FROM groups AS g
        LEFT JOIN episodes AS e ON e.group_id = g.id AND e.attempt = 0 AND e.idx BETWEEN 0 AND g.size - 1
        GROUP BY g.id HAVING COUNT(e.idx) != g.size""",
    ),
    Law(
        "episodes sit outside their group",
        """SELECT e.group_id, e.idx, e.attempt FROM episodes AS e LEFT JOIN groups AS g ON g.id = e.group_id
        WHERE g.id IS NULL OR e.idx NOT BETWEEN 0 AND g.size - 1""",
    ),
    Law(
        "attempts follow one that did not fail by our fault",
        """SELECT e.group_id, e.idx, e.attempt FROM episodes AS e WHERE e.attempt != 0 AND NOT EXISTS (
            SELECT 1 FROM episodes AS p WHERE p.group_id = e.group_id AND p.idx = e.idx AND p.attempt = e.attempt - 1
            AND p.state = 'dropped' AND p.reason IN ('infra_error', 'verifier_error', 'worker_lost'))""",
    ),
    Law(
        "closed groups have unfinished members",
        """SELECT e.group_id, e.idx, e.attempt FROM episodes AS e JOIN groups AS g ON g.id = e.group_id
        WHERE g.closed_at IS NOT NULL AND e.state IN ('dispatched', 'sampled')""",
    ),
    Law(
        "episodes of open groups are trained",
        """SELECT e.group_id, e.idx, e.attempt FROM episodes AS e JOIN groups AS g ON g.id = e.group_id
        WHERE g.closed_at IS NULL AND e.state = 'trained'""",
    ),
)

EPISODES = (
    Law(
        "states are unknown",
        """SELECT e.group_id, e.idx, e.attempt FROM episodes AS e
        WHERE e.state NOT IN ('dispatched', 'sampled', 'scored', 'trained', 'dropped')""",
    ),
    Law(
        "episodes are dropped for no reason, or have a reason and are not dropped",
        """SELECT e.group_id, e.idx, e.attempt FROM episodes AS e
        WHERE (e.state = 'dropped') != (e.reason IS NOT NULL)""",
    ),
    Law(
        "rewards do not fit their outcome",
        """SELECT e.group_id, e.idx, e.attempt FROM episodes AS e
        WHERE (e.reward IS NOT NULL) != COALESCE(e.outcome IN ('scored', 'tampered'), FALSE)""",
    ),
    Law(
        "episodes were scored or trained without a reward",
        """SELECT e.group_id, e.idx, e.attempt FROM episodes AS e
        WHERE e.state IN ('scored', 'trained') AND e.reward IS NULL""",
    ),
    Law(
        "episodes that were sampled have no payload",
        """SELECT e.group_id, e.idx, e.attempt FROM episodes AS e LEFT JOIN payloads USING (group_id, idx, attempt)
        WHERE data IS NULL AND (e.sampled_at IS NOT NULL OR e.state IN ('sampled', 'scored', 'trained'))""",
    ),
    Law(
        "payloads belong to no sampled episode",
        """SELECT p.group_id, p.idx, p.attempt FROM payloads AS p
        LEFT JOIN episodes AS e USING (group_id, idx, attempt) WHERE e.sampled_at IS NULL""",
    ),
    Law(
        "episodes were sampled under a version that was not published by then",
        """SELECT e.group_id, e.idx, e.attempt FROM episodes AS e
        LEFT JOIN versions AS first ON first.version = e.first_version AND first.at <= e.sampled_at
        LEFT JOIN versions AS last ON last.version = e.last_version AND last.at <= e.sampled_at
        WHERE e.sampled_tokens > 0 AND (first.version IS NULL OR last.version IS NULL)""",
    ),
)

STEPS = (
    Law(
        "episodes are trained by a step that is not there, or was abandoned",
        """SELECT e.group_id, e.idx, e.attempt FROM episodes AS e WHERE e.state = 'trained'
        AND (e.step IS NULL OR e.lineage IS NULL OR (e.lineage, e.step) NOT IN (SELECT lineage, step FROM history))""",
    ),
    Law(
        "episodes name a step and are not trained",
        """SELECT e.group_id, e.idx, e.attempt FROM episodes AS e
        WHERE e.state != 'trained' AND (e.step IS NOT NULL OR e.lineage IS NOT NULL)""",
    ),
    Law(
        "seats were trained in two attempts",
        """SELECT group_id, idx FROM episodes WHERE state = 'trained'
        GROUP BY group_id, idx HAVING COUNT(*) > 1""",
    ),
    Law(
        "steps do not have as many episodes or tokens as they say",
        """SELECT s.step FROM history AS s LEFT JOIN episodes AS e
        ON e.lineage = s.lineage AND e.step = s.step AND e.state = 'trained' GROUP BY s.lineage, s.step
        HAVING COUNT(e.idx) != s.episodes OR COALESCE(SUM(e.sampled_tokens), 0) != s.sampled_tokens""",
    ),
    Law(
        "steps are missing or there twice, counted from 1",
        "SELECT step FROM (SELECT step, ROW_NUMBER() OVER (ORDER BY step) AS n FROM history) WHERE step != n",
    ),
    Law(
        "steps were committed out of order",
        "SELECT step FROM (SELECT step, at, LAG(at) OVER (ORDER BY step) AS before FROM history) WHERE at < before",
    ),
    Law(
        "steps name a version that was not published",
        "SELECT step FROM steps WHERE version != -1 AND version NOT IN (SELECT version FROM versions)",
    ),
    Law(
        "checkpoints are of a step that was not committed",
        """SELECT step FROM checkpoints
        WHERE step != 0 AND (lineage, step) NOT IN (SELECT seen_from, step FROM committed)""",
    ),
)

VERSIONS = (
    Law(
        "versions are missing, counted from 0",
        "SELECT version FROM (SELECT version, ROW_NUMBER() OVER (ORDER BY version) - 1 AS n FROM versions)"
        " WHERE version != n",
    ),
    Law(
        "versions went back in time, or to an older lineage",
        """SELECT version FROM (SELECT version, at, lineage, LAG(at) OVER w AS at_before, LAG(lineage) OVER w AS before
        FROM versions WINDOW w AS (ORDER BY version)) WHERE at < at_before OR lineage < before""",
    ),
    Law(
        "versions were published without their step, or before it was committed",
        """SELECT version FROM versions WHERE step != 0 AND version NOT IN (
            SELECT v.version FROM versions AS v JOIN committed AS c ON c.seen_from = v.lineage AND c.step = v.step
            WHERE c.at <= v.at)""",
    ),
)

LAWS = (*GROUPS, *EPISODES, *STEPS, *VERSIONS)
