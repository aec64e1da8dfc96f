"""The math verifier: its format rule, equality, and answers that attack it."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import psutil
import pytest
import pytest_asyncio
from plain_sandbox import PlainSandboxes
from public_data import public

from verifiers.math import MathVerifier
from verifiers.reply import last_boxed
from verifiers.runner import Grader
from verifiers.task import Message, Submission, Task
from verifiers.verdict import Outcome, Verdict


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def verifier() -> AsyncIterator[MathVerifier]:
    made = MathVerifier(seconds=3.0)
    yield made
    await made.aclose()


pytestmark = pytest.mark.asyncio(loop_scope="module")


def task(gold: object, system: str = "Think first, up to </think>.") -> Task:
    return Task("t", "math", (Message("system", system),), "math", payload={"answer": gold})


async def grade(verifier: MathVerifier, gold: str, answer: str) -> Verdict:
    reply = Submission(f"thoughts</think>\nSo it is $\\boxed{{{answer}}}$.")
    return await verifier.verify(task(gold), reply, PlainSandboxes())


def first_child(process: psutil.Process) -> psutil.Process:
    deadline = time.monotonic() + 10
    while not (children := process.children()):
        assert time.monotonic() < deadline, "no child was forked"
        time.sleep(0.01)
    return children[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        *[("72", "72"), ("72", " 72.0 "), ("72", "72."), ("1000", "1,000"), ("1000", "1{,}000"), ("1000", "1\\,000")],
        *[("18", "\\$18"), ("18", "18 \\text{ dollars}"), ("18", "18 dollars"), ("5", "5\\text{ cm}^2"), ("25", "025")],
        *[("-3", "−3"), ("0.75", "\\dfrac{3}{4}"), ("0.75", "\\frac34"), ("3/4", "0.75"), ("1/3", "0.333333")],
        *[("4.5e33", "4.5 \\times 10^{33}"), ("8", "2^{3}"), ("12", "\\frac{24}{2}"), ("6", "2 \\cdot 3")],
        *[("\\sqrt{2}", "2^{1/2}"), ("2x+1", "1+2x"), ("2x+1", "y = 2x+1"), ("2x", "x=2x"), ("x=5", "5")],
        *[("1,2", "2, 1"), ("1,2", "1 \\text{ and } 2"), ("(1,2)", "\\left(1, 2\\right)"), ("[0,1)", "[0,1)")],
        *[("2516_8", "2516_{8}"), ("2516_8", "2516"), ("2i", "2\\mathrm{i}"), ("3 \\text{ dozen}", "3 \\text{ dozen}")],
        *[
            ("2", "k=2"),
            ("18", "x = 18"),
            ("(1,2)", "(x,y)=(1,2)"),
            ("1,2", "x=1, x=2"),
            ("1,2", "x=1 \\text{ or } x=2"),
        ],
        *[("\\{1,2,3\\}", "1, 2, 3"), ("\\pm 2", "2,-2"), ("1 \\pm \\sqrt{2}", "1+\\sqrt{2}, 1-\\sqrt{2}")],
        *[("1000", "1{,}000\\text{ dollars}"), ("\\frac13", "0.\\overline{3}"), ("\\frac{7}{6}", "1.1\\overline{6}")],
        *[("18", "18°"), ("18", "18cm"), ("18", "18 m"), ("[0,\\infty)", "x \\ge 0")],
        *[("(-\\infty,2)", "x < 2"), ("\\emptyset", "\\varnothing"), ("n \\equiv 3 \\pmod 5", "n \\equiv 3 \\pmod{5}")],
        *[("B", "\\textbf{(B) }5"), ("-3", "–3"), ("18", "18 pairs of shoes"), ("18", "18 more than Bob")],
        *[("7", "7\\text{ m squared}"), ("x=7", "x = 7"), ("y=2x+1", "2x+1")],
        *[("\\text{Evelyn}", "Evelyn"), ("B", "\\text{(B)}"), ("50\\%", "50\\%"), ("\\frac{\\pi}{2}", "\\pi/2")],
    ],
)
async def test_equal_answers_are_right(verifier: MathVerifier, gold: str, answer: str) -> None:
    verdict = await grade(verifier, gold, answer)
    assert (verdict.outcome, verdict.reward, verdict.correct) == (Outcome.SCORED, 1.0, True), verdict.detail


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        *[("3", "4"), ("3", ""), ("3", "three"), ("3", "nan"), ("3", "\\infty"), ("1000", "1,00"), ("1/3", "0.33")],
        *[("3", "4=3"), ("3", "x=4=3"), ("3", "3=3"), ("3", "4\\neq 3"), ("3", "x \\ge 3"), ("3", "\\approx 3")],
        *[("3", "4, or else 3"), ("3", "3 or 4"), ("3", "3 \\text{ or } 4"), ("3", "4 \\text{ (not } 3)")],
        *[("3", "2,3"), ("3", "3;4"), ("3", "3\\quad 4"), ("3", "\\pm 3"), ("3", "4\\lor 3"), ("3", "\\{3\\}")],
        *[("2516_8", "2516_9"), ("3", "3_4"), ("2\\mathrm{i}", "2"), ("3", "3\\mathrm{i}"), ("x=7", "x=4=7")],
        *[("3", "3 million"), ("3", "3\\text{ million}"), ("3", "3 minus one"), ("3", "3\\text{x}")],
        *[("3 \\text{ dozen}", "3"), ("3", "3 squared")],
        *[("3", f"3 {word}") for word in ("tenths", "hundredths", "fifths", "halves", "lakh", "pairs", "per cent")],
        *[
            ("3", "3 over four"),
            ("3", "3\\text{ factorial}"),
            ("3", "3\\text{ k}"),
            ("3", "4=3"),
            ("3", "3m"),
            ("3", "3xy"),
        ],
        *[("1,2", "x=1, y=2"), ("1,2", "x=1, x=2, x=5"), ("\\{1,2,3\\}", "1,2,3,4"), ("\\{1,2,3\\}", "1,2")],
        *[
            ("\\pm 2", "2"),
            ("\\pm 2", "2,-2,3"),
            ("\\pm 2", "2,2"),
            ("\\frac13", "0.\\overline{4}"),
            ("[0,\\infty)", "x > 0"),
        ],
        *[
            ("[0,\\infty)", "x \\le 0"),
            ("B", "\\textbf{(A) }5"),
            ("B", "(A), (B)"),
            ("B", "(B) or (A)"),
            ("B", "(B) A"),
        ],
        *[("10", "10\\%"), ("10", "10 \\text{ percent}"), ("10", "10%"), ("0.1", "10\\%")],
        *[("2", "1,2,3,4,5,6,7,8,9"), ("1,2", "1,2,3"), ("(1,2)", "(2,1)"), ("\\frac{1}{2}", "\\frac12 \\text{ or }3")],
        *[("\\frac{\\pi}{2}", "5\\lor\\frac{\\pi}{2}"), ("2x+1", "2x+1=2x+1=3"), ("B", "A"), ("B", "A \\text{ or } B")],
    ],
)
async def test_other_answers_are_wrong(verifier: MathVerifier, gold: str, answer: str) -> None:
    verdict = await grade(verifier, gold, answer)
    assert (verdict.outcome, verdict.reward, verdict.correct) == (Outcome.SCORED, -1.0, False)
    assert verdict.detail


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "\\boxed{4}",
        "</think>4",
        "</think>\\boxed{4}</think>",
        "</think>a</think>\\boxed{4}",
        "</think>\\boxed{3} \\boxed{4}",
        "</think>\\boxed 4",
        "</think>\\boxed{4",
        "\\boxed{4}</think>",
        "</think>\\boxed{4}\\boxed",
    ],
)
async def test_a_broken_format_is_scored_and_wrong(verifier: MathVerifier, reply: str) -> None:
    verdict = await verifier.verify(task("4"), Submission(reply), PlainSandboxes())
    assert (verdict.outcome, verdict.reward, verdict.correct) == (Outcome.SCORED, -1.0, False)


async def test_a_task_that_asks_for_no_reasoning_takes_an_answer_without(verifier: MathVerifier) -> None:
    for reply, right in [("\\boxed{4}", True), ("so</think>\\boxed{4}", True), ("a</think>b</think>\\boxed{4}", False)]:
        verdict = await verifier.verify(task("4", "Answer."), Submission(reply), PlainSandboxes())
        assert verdict.correct is right


async def test_the_same_box_twice_is_one_answer(verifier: MathVerifier) -> None:
    for reply, right in (("\\boxed{4}. So $\\boxed{4}$.", True), ("\\boxed{4} or \\boxed{ 5 }", False)):
        verdict = await verifier.verify(task("4"), Submission(f"</think>{reply}"), PlainSandboxes())
        assert verdict.correct is right


async def test_a_box_among_the_thoughts_does_not_count(verifier: MathVerifier) -> None:
    reply = Submission("first \\boxed{3}</think> \\boxed{4}")
    assert (await verifier.verify(task("4"), reply, PlainSandboxes())).correct


@pytest.mark.slow
@pytest.mark.parametrize(
    "answer", ["9^{9^{9^{9}}}", "9**9**9**9", "\\sqrt{" * 60 + "3" + "}" * 60, "{" * 5000 + "3" + "}" * 5000]
)
async def test_an_answer_on_which_algebra_hangs_is_wrong_and_the_next_is_graded(
    verifier: MathVerifier, answer: str
) -> None:
    begun = time.monotonic()
    verdict = await grade(verifier, "\\sqrt{3}", answer)
    assert (verdict.outcome, verdict.correct) == (Outcome.SCORED, False)
    assert time.monotonic() - begun < 20
    assert (await grade(verifier, "\\sqrt{3}", "3^{1/2}")).correct


def _grades(process: psutil.Process) -> bool:
    with suppress(psutil.Error):  # one that has ended has no command line
        return any("_math_worker" in part for part in process.cmdline())
    return False


@pytest.mark.slow
async def test_a_killed_process_is_ours_and_the_next_answer_is_graded() -> None:
    verifier, before = MathVerifier(seconds=20.0, processes=1), psutil.Process().children()
    try:
        await verifier.start()
        (process,) = (one for one in psutil.Process().children() if _grades(one) and one not in before)
        hanging = asyncio.create_task(grade(verifier, "\\sqrt{3}", "9^{9^{9^{9}}}"))
        child = await asyncio.to_thread(first_child, process)
        process.kill()
        with pytest.raises(RuntimeError, match="died"):
            await asyncio.wait_for(hanging, 10)
        psutil.wait_procs([child], timeout=10)
        assert not child.is_running(), "the child must die with its parent"
        assert (await grade(verifier, "\\sqrt{3}", "3^{1/2}")).correct
    finally:
        await verifier.aclose()


@pytest.mark.slow
async def test_many_at_once_are_graded_in_turn(verifier: MathVerifier) -> None:
    verdicts = await asyncio.gather(*(grade(verifier, "\\sqrt{4}+x", f"{k}+x") for k in range(10)))
    assert [verdict.correct for verdict in verdicts] == [k == 2 for k in range(10)]


@pytest.mark.slow
async def test_answers_that_hang_do_not_use_up_the_time_of_those_behind_them() -> None:
    verifier = MathVerifier(seconds=0.5)
    await verifier.start()
    answers = ["9^{9^{9^{9}}}"] * 4 + ["3^{1/2}"]
    async with Grader(verifier, PlainSandboxes(), seconds=1.5) as grader:
        replies = [Submission(f"</think>\\boxed{{{answer}}}") for answer in answers]
        verdicts = await asyncio.gather(*(grader.grade(task("\\sqrt{3}"), reply) for reply in replies))
    assert [verdict.correct for verdict in verdicts] == [False] * 4 + [True], verdicts


@pytest.mark.parametrize("gold", [None, "", "  ", 72, "np.arcsin(10/13)", "}{"])
async def test_a_gold_that_is_missing_or_unreadable_is_refused_at_load(verifier: MathVerifier, gold: object) -> None:
    with pytest.raises(ValueError, match="task t: "):
        verifier.check_task(task(gold))


@pytest.mark.parametrize("gold", ["72", "1,000", "\\frac{3}{4}", "x^2+1", "(1,2)", "\\text{Evelyn}", "18 \\text{ cm}"])
async def test_a_good_gold_is_accepted_and_equals_itself(verifier: MathVerifier, gold: str) -> None:
    verifier.check_task(task(gold))
    assert (await grade(verifier, gold, gold)).correct


async def test_a_missing_gold_is_an_invalid_task_not_a_reward(verifier: MathVerifier) -> None:
    verdict = await verifier.verify(Task("t", "math", (), "math"), Submission("</think>\\boxed{1}"), PlainSandboxes())
    assert (verdict.outcome, verdict.reward) == (Outcome.INVALID_TASK, None)


@pytest.mark.slow
@pytest.mark.required
async def test_agrees_with_labelled_gsm8k_solutions(verifier: MathVerifier) -> None:
    name = "gsm8k_labelled_solutions.jsonl"
    asked = agreed = 0
    with (public(name) / name).open() as lines:
        for line in lines:
            row = json.loads(line)
            gold = row["ground_truth"].rpartition("A:")[2].strip().replace(",", "")
            for solution in (value for value in row.values() if isinstance(value, dict)):
                answer = solution["solution"].rpartition("A:")[2].strip()
                verdict = await grade(verifier, gold, answer)
                asked += 1
                agreed += verdict.correct is solution["is_correct"]
    assert asked == 5276
    assert agreed >= 0.998 * asked


@pytest.mark.slow
@pytest.mark.required
async def test_public_golds_equal_themselves(verifier: MathVerifier) -> None:
    name = "minerva_math.jsonl"
    rows = (public(name) / name).read_text("utf-8").splitlines()[::4]
    golds = [last_boxed(json.loads(row)["solution"]) for row in rows]
    verdicts = [await grade(verifier, gold, gold) for gold in golds]
    assert all(verdict.correct for verdict in verdicts)
    others = [await grade(verifier, gold, "17.7707") for gold in golds]
    assert not any(verdict.correct for verdict in others)
