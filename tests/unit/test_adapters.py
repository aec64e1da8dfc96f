"""Other frameworks' scoring functions as verifiers, in processes that may hang; the real packages where they are."""

import asyncio
import importlib.util
import json
from pathlib import Path
from typing import Any

import psutil
import pytest
from plain_sandbox import PlainSandboxes

from rl.tasks.files import FileSource, load
from verifiers import registry
from verifiers.adapters import _EVALUATING, ReasoningGym, RewardFunction
from verifiers.registry import Verifier
from verifiers.runner import Grader
from verifiers.task import Message, Submission, Task
from verifiers.verdict import Outcome, Verdict

REWARDS = """
import asyncio, time

def exact(prompts, completions, answer, **kwargs):
    print("noise on standard output")
    return [1.0 if completion == gold else 0.0 for completion, gold in zip(completions, answer)]

async def polite(prompts, completions, **kwargs):
    await asyncio.sleep(0)
    assert prompts[0][0] == {"role": "user", "content": "hello"}
    return [0.5 * (completions[0][0]["content"] == "please")]

def never(prompts, completions): return [None]
def low(prompts, completions): return [-3]
def nan(prompts, completions): return [float("nan")]
def two(prompts, completions): return [1, 2]
def fails(prompts, completions): raise KeyError("no")
def hangs(prompts, completions): time.sleep(60) if completions == ["hang"] else None; return [1]
"""


@pytest.fixture(scope="module")
def rewards(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("rewards") / "rewards.py"
    file.write_text(REWARDS)
    return str(file)


def grade(verifier: Verifier, *replies: str, messages: str = "hello", **payload: Any) -> list[Verdict]:
    task = Task("t", "x", (Message("user", messages),), "x", payload=payload)

    async def all_of_them() -> list[Verdict]:
        async with Grader(verifier, PlainSandboxes(), seconds=30) as grader:
            return [await grader.grade(task, Submission(reply)) for reply in replies]

    return asyncio.run(all_of_them())


def test_a_reward_function_of_columns(rewards: str) -> None:
    verifier = registry.load("reward_function", function=f"{rewards}:exact", columns=["answer"])
    right, wrong = grade(verifier, "4", "5", answer="4")
    assert (right.reward, right.correct, wrong.reward, wrong.correct) == (1.0, True, 0.0, False)
    (missing,) = grade(verifier, "4")
    assert (missing.outcome, missing.detail.count("'answer'")) == (Outcome.INVALID_TASK, 1)


def test_a_coroutine_of_conversations(rewards: str) -> None:
    verifier = RewardFunction(function=f"{rewards}:polite", conversational=True, correct_at=0.5)
    please, no = grade(verifier, "please", "no")
    assert (please.reward, please.correct, no.reward) == (0.5, True, 0.0)


@pytest.mark.parametrize(
    ("name", "outcome", "said"),
    [
        ("never", Outcome.INVALID_TASK, "does not apply"),
        ("low", Outcome.VERIFIER_ERROR, "below 0"),
        ("nan", Outcome.VERIFIER_ERROR, "scored nan"),
        ("two", Outcome.VERIFIER_ERROR, "too many values"),
        ("fails", Outcome.VERIFIER_ERROR, "KeyError"),
        ("nowhere", Outcome.VERIFIER_ERROR, "no attribute 'nowhere'"),
    ],
)
def test_what_is_no_score_is_no_reward(rewards: str, name: str, outcome: Outcome, said: str) -> None:
    (verdict,) = grade(RewardFunction(function=f"{rewards}:{name}"), "x")
    assert (verdict.outcome, verdict.reward) == (outcome, None)
    assert said in verdict.detail


@pytest.mark.slow
def test_one_that_hangs_is_killed_and_the_next_is_scored(rewards: str) -> None:
    before = psutil.Process().children()
    hung, fine = grade(RewardFunction(function=f"{rewards}:hangs", seconds=2), "hang", "x")
    assert (hung.outcome, fine.reward) == (Outcome.VERIFIER_ERROR, 1.0)
    assert "no score within 2 s" in hung.detail
    assert psutil.Process().children() == before


def test_a_target_that_is_none() -> None:
    with pytest.raises(ValueError, match="must be module:attribute"):
        RewardFunction(function="rewards")


needs_gym = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason="the package reasoning-gym is not installed"
)


@needs_gym
def test_entries_of_a_real_reasoning_gym_data_set(tmp_path: Path) -> None:
    import reasoning_gym

    entries = list(reasoning_gym.create_dataset("chain_sum", size=5, seed=1))
    (tmp_path / "gym.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    verifier = ReasoningGym()
    tasks = load(FileSource(path="gym.jsonl", form="reasoning_gym"), tmp_path, verifier.check_task)
    assert [task.verifier for task in tasks] == ["reasoning_gym"] * 5
    for task, entry in zip(tasks, entries, strict=True):
        thought = "so</think>"
        replies = (f"{thought}{entry['answer']}", f"{thought}<answer>{entry['answer']}</answer>", f"{thought}x")
        right, tagged, wrong = grade(verifier, *replies, messages="Think up to </think>", entry=task.payload["entry"])
        assert (right.reward, tagged.correct) == (1.0, True)
        assert wrong.correct is False


GYM = "def get_score_answer_fn(name): return lambda answer, entry: float(eval(answer) == entry['answer'])\n"


def test_an_answer_that_is_evaluated_reaches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reasoning_gym.py").write_text(GYM)
    monkeypatch.syspath_prepend(tmp_path)
    entry = {"question": "q", "answer": 4, "metadata": {"source_dataset": "sums"}}
    mark = tmp_path / "mark"
    attacks = (
        f"__import__('os').system('touch {mark}')",
        f"open('{mark}', 'w')",
        f"__import__('os').open('{mark}', 65)",
        f"__import__('subprocess').run(['touch', '{mark}'])",
        "__import__('socket').create_connection(('127.0.0.1', 9))",
        "__import__('os').fork()",
        "__import__('ctypes').CDLL(None)",
    )
    right, *verdicts, late = grade(ReasoningGym(), "2 + 2", *attacks, "5", entry=entry)
    assert right.correct and late.correct is False
    for attack, verdict in zip(attacks, verdicts, strict=True):
        assert (verdict.outcome, verdict.reward) == (Outcome.TAMPERED, -1.0), attack
    assert not mark.exists()
    undone = "__import__('sys').modules['__main__'].__dict__.update(_REFUSED=())"
    grade(ReasoningGym(), f"({undone}, __import__('os').system('touch {mark}'), 4)[2]", entry=entry)
    assert not mark.exists(), "the walls stand where the process has taken its own down"
    secret = tmp_path / "secret"
    secret.write_text("4")
    looks = [f"4 * __import__('os').path.exists('{path}')" for path in (secret, __file__, "/etc/passwd")]
    assert [verdict.reward for verdict in grade(ReasoningGym(), *looks, entry=entry)] == [-1.0] * len(looks)
    processes = "4 * (len([x for x in __import__('os').listdir('/proc') if x.isdigit()]) > 3)"
    assert grade(ReasoningGym(), processes, entry=entry)[0].correct is False
    (hung,) = grade(ReasoningGym(seconds=2.0), "9**9**9**9", entry=entry)
    assert (hung.outcome, hung.reward) == (Outcome.SCORED, -1.0)
    arithmetic = {**entry, "metadata": {"source_dataset": "countdown"}}
    told, fair = grade(
        ReasoningGym(), "__import__('sys')._getframe(1).f_locals['entry']['answer']", "2+2", entry=arithmetic
    )
    assert (told.reward, fair.reward) == (-1.0, 1.0)


def test_a_data_set_may_need_what_is_installed_and_what_lies_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reasoning_gym").mkdir()
    (tmp_path / "reasoning_gym/data.txt").write_text("4")
    (tmp_path / "reasoning_gym/__init__.py").write_text(
        "import decimal, pathlib, tempfile, numpy, psutil\n"
        "known = float(pathlib.Path(__file__).with_name('data.txt').read_text())\n"
        "def get_score_answer_fn(name): return lambda answer, entry: float(numpy.float64(answer) == known)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    entry = {"question": "q", "answer": 4, "metadata": {"source_dataset": "sums"}}
    right, wrong = grade(ReasoningGym(), "4", "5", entry=entry)
    assert (right.reward, wrong.reward) == (1.0, -1.0), right


@pytest.mark.parametrize(
    ("dataset", "fair", "foul"),
    [
        ("puzzle24", ("(3 + 5) * 3", "2^3*3"), ("abs(24)", "x")),
        ("simple_integration", ("3*x**2/2 + C", "exp(x) - 0.5*sin(2*X)", "4*x^3"), ("exec(chr(95))", "x.y", "a[0]")),
        ("polynomial_multiplication", ("6*x**4 - 2*y", "(x+1)*(y-1)"), ("eval('4')", "getattr(x, y)", "__x")),
        ("simple_integration", ("0.5 " * 5000, ".5*x", "1.*x"), ("0.5 " * 5000 + "and",)),
        ("spiral_matrix", ("1 2 3", "[1, 2]"), ("exec('')", "[].__class__", "(1)")),
        ("n_queens", ("_ Q _ _\n_ _ _ Q\nQ _ _ _\n_ _ Q _", "[['_', 'Q'], ['Q', '_']]"), ("exec('Q')", "__Q__.x")),
    ],
)
def test_what_is_evaluated_holds_no_calls(dataset: str, fair: tuple[str, ...], foul: tuple[str, ...]) -> None:
    allowed = _EVALUATING[dataset]
    assert all(allowed.fullmatch(answer) for answer in fair)
    assert not any(allowed.fullmatch(answer) for answer in foul)


def test_answers_between_tags() -> None:
    entry = {"question": "q", "answer": "1", "metadata": {"source_dataset": "chain_sum"}}
    for reply in ("<answer>1", "<answer>1</answer><answer>2</answer>", "<answer>1</answer></answer>"):
        (verdict,) = grade(ReasoningGym(), reply, entry=entry)
        assert (verdict.outcome, verdict.reward) == (Outcome.SCORED, -1.0), reply
    (verdict,) = grade(ReasoningGym(), "1", entry={"metadata": {}})
    assert verdict.outcome is Outcome.INVALID_TASK


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="the package trl is not installed")
def test_a_real_reward_function_of_trl() -> None:
    verifier = RewardFunction(
        function="trl.rewards:accuracy_reward", columns=["solution"], conversational=True, seconds=60
    )
    right, wrong = grade(verifier, r"\boxed{\frac{1}{2}}", r"\boxed{3}", solution=r"$\frac{1}{2}$")
    assert (right.reward, wrong.reward) == (1.0, 0.0)
