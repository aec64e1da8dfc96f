"""The code verifier over the real bubblewrap sandbox, and on a public data set."""

import asyncio
import gzip
import json
from typing import Any

import pytest
from public_data import public

from rollout_workers.sandbox import bubblewrap
from verifiers import conformance, registry
from verifiers.code import CodeVerifier
from verifiers.runner import Grader
from verifiers.sandbox import Sandboxes
from verifiers.task import Submission, Task
from verifiers.verdict import Outcome, Verdict


@pytest.fixture(scope="module")
def sandboxes() -> Sandboxes:
    probe, backend = asyncio.run(bubblewrap.probe())
    if backend is None:
        pytest.skip(probe.why)
    return backend


async def grade(sandboxes: Sandboxes, payload: dict[str, Any], source: str, *, total: float = 60.0) -> Verdict:
    task = Task("t", "code", (), "code", payload=payload)
    verifier = CodeVerifier(seconds=2.0, total_seconds=total, memory_bytes=256 << 20)
    return await Grader(verifier, sandboxes).grade(task, Submission(f"</think>\n```python\n{source}\n```"))


@pytest.mark.slow
@pytest.mark.required
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", ["code", "repair", "swe"])
async def test_no_attack_is_paid(sandboxes: Sandboxes, name: str) -> None:
    tried = [one async for one in conformance.attack(name, registry.load(name), sandboxes)]
    assert len(tried) > 20
    assert [one for one in tried if one.paid or one.reward is None] == []


TESTS = {"tests": [{"call": "f", "args": [k], "expected": k + 1} for k in range(4)]}
CHECK = {"check": "def check(candidate):\n    for k in range(9): assert candidate(k) == k + 1", "entry_point": "f"}
PROGRAM = {"stdin_tests": [{"stdin": "1", "stdout": "2"}, {"stdin": "7", "stdout": "8"}]}


@pytest.mark.required
@pytest.mark.parametrize(
    ("payload", "source"),
    [(TESTS, "def f(x): return x + 1"), (CHECK, "def f(x): return x + 1"), (PROGRAM, "print(int(input()) + 1)")],
    ids=["tests", "check", "stdin"],
)
async def test_right_answers_pass(sandboxes: Sandboxes, payload: dict[str, Any], source: str) -> None:
    verdict = await grade(sandboxes, payload, source)
    assert (verdict.outcome, verdict.reward) == (Outcome.SCORED, 1.0), verdict.detail


@pytest.mark.required
@pytest.mark.parametrize("payload", [TESTS, CHECK, PROGRAM], ids=["tests", "check", "stdin"])
@pytest.mark.parametrize(
    "body",
    [
        "while True: pass",
        "x = bytearray(1 << 32)",
        "while True: x = [x, bytearray(1 << 22)]",
        "import os\n    while True: os.fork()",
        "import os; os.kill(-1, 9)",
        "import os; os._exit(0)",
        "open('big', 'wb').write(bytes(1 << 28))",
        "while True: print('x' * 100000)",
    ],
)
async def test_attacks_are_scored_with_the_lowest_reward(
    sandboxes: Sandboxes, payload: dict[str, Any], body: str
) -> None:
    source = f"x = 0\ndef f(n):\n    global x\n    {body}\nif __name__ == '__main__': f(0)"
    total = 2.0 if payload is PROGRAM else 60.0  # one that hangs has four more, for its start
    verdict = await grade(sandboxes, payload, source, total=total)
    assert (verdict.outcome, verdict.reward, verdict.correct) == (Outcome.SCORED, -1.0, False)


def humaneval() -> list[dict[str, str]]:
    name = "humaneval.jsonl.gz"
    with gzip.open(public(name) / name, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.required
async def test_humaneval_solutions_pass_and_their_neighbours_fail(sandboxes: Sandboxes) -> None:
    rows = humaneval()[2::5]  # HumanEval/32, whose check loops over what it needs of its prompt, among them
    limit = asyncio.Semaphore(2)

    async def verdict(row: dict[str, str], author: dict[str, str]) -> Verdict:
        payload = {"check": row["test"], "entry_point": row["entry_point"], "prompt": row["prompt"]}
        source = author["prompt"] + author["canonical_solution"] + f"\n{row['entry_point']} = {author['entry_point']}"
        async with limit:
            return await grade(sandboxes, payload, source)

    right = await asyncio.gather(*(verdict(row, row) for row in rows))
    assert [row["task_id"] for row, said in zip(rows, right, strict=True) if not said.correct] == []
    wrong = await asyncio.gather(*(verdict(rows[k], rows[k + 1]) for k in range(0, 32, 4)))
    assert [said.detail for said in wrong if said.correct is not False] == []
