"""What generators draw: the same every time, on one side of the split, valid, and solved by their demonstrations."""

import re
from collections import defaultdict
from itertools import islice
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_sandbox import PlainSandboxes
from play import played, replies
from pydantic import ValidationError

from rl.evaluation.evaluate import held_out
from rl.tasks.files import LimitsOverride
from rl.tasks.generated import HELD_OUT, GeneratedSource
from rl.tasks.generators import GENERATORS, Problem
from rl.tasks.split import Split, split_of
from rollout_workers.environments import ENVIRONMENTS
from verifiers import registry
from verifiers.reply import asks_to_reason
from verifiers.task import Task

SPLITS: tuple[Split, Split] = ("train", "held_out")
LEVELS = [(name, difficulty) for name in GENERATORS for difficulty in (1, 2, 3)]
MANY = 24

every_level = pytest.mark.parametrize(("name", "difficulty"), LEVELS)
every_name = pytest.mark.parametrize("name", GENERATORS)


def source(name: str, difficulty: int = 1, seed: int = 0) -> GeneratedSource:
    return GeneratedSource.model_validate({"generator": name, "difficulty": difficulty, "seed": seed})


def content(task: Task) -> str:
    """What a policy can learn by heart: the module to repair, elsewhere what the user says."""
    files = task.visible.get("files")
    return str(files[task.payload["module"]] if files else task.messages[-1].content)


@pytest.mark.slow
@every_level
def test_the_same_index_gives_the_same_task_at_any_time(name: str, difficulty: int) -> None:
    one, other = source(name, difficulty), source(name, difficulty)
    for split in SPLITS:
        tasks = [one.task(index, split) for index in range(MANY)]
        assert tasks == [other.task(index, split) for index in reversed(range(MANY))][::-1]
        assert len({task.id for task in tasks}) == MANY
    for mistakes in (0.0, 0.3):
        assert [one.demonstration(k, mistakes) for k in range(5)] == [
            other.demonstration(k, mistakes) for k in range(5)
        ]


@every_level
def test_another_index_seed_or_level_gives_another_task(name: str, difficulty: int) -> None:
    tasks = [source(name, difficulty).task(index) for index in range(MANY)]
    assert len({repr((task.messages, task.payload)) for task in tasks}) > 0.9 * MANY
    others = source(name, difficulty).seeded(1), source(name, difficulty + 1)
    for other in others:
        assert {other.task(index).id for index in range(MANY)}.isdisjoint(task.id for task in tasks)
        assert [other.task(index).payload for index in range(5)] != [task.payload for task in tasks[:5]]


@pytest.mark.slow
@every_name
def test_no_content_stands_on_both_sides_whatever_the_seed_and_the_level(name: str) -> None:
    sides: dict[Split, set[str]] = {"train": set(), "held_out": set()}
    for difficulty in (1, 2, 3):
        for seed in (0, 1):
            for split in SPLITS:
                tasks = (source(name, difficulty, seed).task(index, split) for index in range(MANY))
                sides[split].update(map(content, tasks))
    assert sides["train"].isdisjoint(sides["held_out"])
    assert all(len(side) > MANY for side in sides.values())


@every_level
def test_what_is_drawn_has_one_key_for_one_content_and_the_split_goes_by_it(name: str, difficulty: int) -> None:
    keys = defaultdict(set)
    for seed in range(120):
        problem = GENERATORS[name].draw(Random(seed), difficulty)
        files = problem.visible.get("files")
        shown = files[problem.payload["module"]] if files else problem.messages[-1].content
        keys[shown].add(problem.key)
    assert all(len(found) == 1 for found in keys.values())
    held_out = sum(split_of(key, HELD_OUT) == "held_out" for (key,) in keys.values())
    assert held_out / len(keys) == pytest.approx(HELD_OUT, abs=0.12)


@every_name
def test_held_out_tasks_are_different_ones(name: str) -> None:
    one = source(name, 1)
    found = [task for _, task in islice(one.held_out(), 60)]
    assert len({content(task) for task in found}) == len(found) == 60
    assert found[:20] == [task for _, task in islice(one.held_out(), 20)]
    assert all(task.id.split("/")[0] == found[0].id.split("/")[0] for task in found)


def test_there_are_no_more_held_out_tasks_than_a_generator_can_make(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(GENERATORS["math"]), "draw", lambda *_: Problem("0", (), {"answer": "1"}))
    monkeypatch.setattr("rl.tasks.generated.HELD_OUT", 1.0)
    assert len(list(source("math", 1).held_out())) == 1


def test_an_evaluation_takes_no_problem_twice_and_fills_up_from_the_source_that_has_more() -> None:
    found = held_out([source("code", difficulty) for difficulty in (1, 2)], 100)
    assert len({content(one.task) for one in found}) == len(found) == 100
    assert {one.difficulty for one in found} == {1, 2}
    shorter = source("math", 1).model_copy(update={"limits": LimitsOverride(tokens=99)})
    same = held_out([source("math", 1), shorter], 30)
    assert len({content(one.task) for one in same}) == len(same) == 30


def test_a_broken_module_is_the_same_whatever_its_parameters_are_called() -> None:
    texts = defaultdict(set)
    for seed in range(400):
        problem = GENERATORS["repair"].draw(Random(seed), 1)
        texts[problem.key].add(problem.visible["files"][problem.payload["module"]])
    assert any(len(found) > 1 for found in texts.values())


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_split_is_the_contents_alone_and_grows_with_its_share(text: str, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert split_of(text, low) == split_of(text, low)
    assert not (split_of(text, low) == "held_out" and split_of(text, high) == "train")
    assert (split_of(text, 0.0), split_of(text, 1.0)) == ("train", "held_out")


@pytest.mark.slow
@every_level
def test_tasks_are_valid_and_nothing_of_their_grading_is_shown(name: str, difficulty: int) -> None:
    for split in SPLITS:
        for index in range(MANY):
            task = source(name, difficulty).task(index, split)
            registry.load(task.verifier).check_task(task)
            assert task.environment in ENVIRONMENTS
            assert task.domain == source(name).domain
            assert task.limits.turns == GENERATORS[name].turns
            hidden = task.payload.get("tests")
            assert hidden is None or hidden != task.visible.get("tests")
            assert str(task.payload.get("patch", "no such patch")) not in repr(task.visible)


@every_name
def test_limits_are_the_sources_and_turns_the_generators_unless_set(name: str) -> None:
    limits = {"tokens": 300, "reply_tokens": 50}
    task = GeneratedSource.model_validate({"generator": name, "limits": limits}).task(0)
    assert (task.limits.tokens, task.limits.reply_tokens, task.limits.turns) == (300, 50, GENERATORS[name].turns)
    task = GeneratedSource.model_validate({"generator": name, "limits": limits | {"turns": 9}}).task(0)
    assert task.limits.turns == 9


@every_name
def test_a_source_says_what_it_makes(name: str) -> None:
    one = source(name, 2, seed=5)
    assert all(one.task(index).id.startswith(one.prefix) for index in range(3))
    assert not one.task(0, "held_out").id.startswith(one.prefix)
    assert (one.domain, one.verifier) == (one.task(0).domain, one.task(0).verifier)
    assert one.seeded(3) == source(name, 2, seed=8)


@pytest.mark.parametrize("wrong", [{"generator": "maths"}, {"difficulty": 0}, {"difficulty": 6}, {"kind": 1}])
def test_sources_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        GeneratedSource.model_validate({"generator": "math"} | wrong)


@pytest.mark.slow
@every_level
async def test_demonstrations_without_mistakes_are_right_and_show_what_the_environment_says(
    name: str, difficulty: int
) -> None:
    sandboxes = PlainSandboxes()
    for index in range(3):
        verdict, answers = await played(source(name, difficulty), index, 0.0, sandboxes)
        assert verdict.correct, verdict.detail
        assert verdict.reward == 1.0
        for shown, said in answers:
            assert said is not None
            assert shown.role == said.role
            assert shown.content.partition("\n</output>")[0] == said.content.partition("\n</output>")[0]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "amount"), [("math", MANY), ("trace", MANY), ("code", 12), ("repair", 12)])
async def test_demonstrations_with_mistakes_are_partly_wrong(name: str, amount: int) -> None:
    sandboxes = PlainSandboxes()
    verdicts = [(await played(source(name, 2), index, 0.2, sandboxes))[0] for index in range(amount)]
    wrong = sum(verdict.correct is False for verdict in verdicts)
    assert 0 < wrong < amount


@every_level
def test_a_demonstration_is_the_tasks_own_conversation(name: str, difficulty: int) -> None:
    for index in range(MANY):
        one = source(name, difficulty)
        task, demonstration = one.task(index), one.demonstration(index, 0.2)
        begin = next(at for at, message in enumerate(demonstration) if message.role == "assistant")
        assert task.messages[-1] == demonstration[begin - 1]
        assert set(demonstration[:begin]) <= set(task.messages)
        assert 1 <= len(replies(demonstration)) <= task.limits.turns
        roles = [message.role.partition(":")[0] for message in demonstration[begin:]]
        assert roles == ["assistant", "tool"] * (len(roles) // 2) + ["assistant"]


def test_reasoning_is_demonstrated_with_and_without_and_as_the_system_message_says() -> None:
    shown = [source("math", 2).demonstration(index, 0.0) for index in range(100)]
    reasoned = [asks_to_reason(messages) for messages in shown]
    assert {True, False} == set(reasoned)
    for messages, asked in zip(shown, reasoned, strict=True):
        assert ("</think>" in replies(messages)[0]) is asked


@pytest.mark.slow
@pytest.mark.parametrize("difficulty", [1, 2, 3])
async def test_an_open_choice_is_taken_the_other_way_after_it_failed(difficulty: int) -> None:
    one = source("code", difficulty)
    shown = {index: replies(one.demonstration(index, 0.0)) for index in range(100)}
    later = [index for index, said in shown.items() if len(said) > 1]
    assert 0.1 < len(later) / len(shown) < 0.5
    assert {len(said) for said in shown.values()} == {1, 2}
    sandboxes = PlainSandboxes()
    for index in later[:2]:
        first, second = shown[index]
        assert first != second
        verdict, ((_, said),) = await played(one, index, 0.0, sandboxes)
        assert verdict.correct
        assert said is not None
        assert "failed: " in said.content


def test_an_open_choice_is_not_in_the_sentence() -> None:
    """Else the first turn could be learnt to be right, and nothing would be left for the second one."""
    taken = defaultdict(set)
    for seed in range(1500):
        problem = GENERATORS["code"].draw(Random(seed), 1)
        taken[problem.key].add(problem.plan.choice)
    assert any(len(choices) == 2 for choices in taken.values())


@pytest.mark.parametrize("difficulty", [1, 2, 3])
def test_a_broken_module_is_one_line_away_from_the_right_one(difficulty: int) -> None:
    for index in range(MANY):
        payload = source("repair", difficulty).task(index).payload
        changed = [
            line for line in payload["patch"].splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")
        ]
        assert [line[0] for line in changed] == ["-", "+"]
        assert changed[0][1:] in payload["files"][payload["module"]].splitlines()
        assert sum(name.startswith("test_") for name in payload["files"]) == 1


def test_demonstrations_of_repair_show_budgets_of_many_sizes_that_only_shrink() -> None:
    seen: set[int] = set()
    for index in range(MANY):
        said = [one.content for one in source("repair").demonstration(index, 0.0) if one.role.startswith("tool")]
        budgets = [int(re.findall(r"(\d+) tokens left", text)[-1]) for text in said]
        assert budgets == sorted(set(budgets), reverse=True)
        assert budgets[-1] > 0
        seen.update(budgets)
    assert len(seen) > MANY


def test_some_mistakes_of_repair_are_refused_and_mended_in_the_next_turn() -> None:
    refused = 0
    for index in range(200):
        shown = source("repair").demonstration(index, 0.4)
        told = [at for at, one in enumerate(shown) if one.role == "tool: edit" and "matches 0 times" in one.content]
        for at in told:
            quoted, again = (shown[place].content.partition("=======") for place in (at - 1, at + 1))
            assert quoted[0] != again[0]
            assert quoted[2] == again[2]
            assert "matches" not in shown[at + 2].content
        refused += len(told)
        assert int(re.findall(r"(\d+) tokens left", shown[-2].content)[0]) > 0
    assert 0.05 < refused / 200 < 0.15


@pytest.mark.parametrize("difficulty", [1, 2, 3, 4, 5])
def test_a_level_is_a_length(difficulty: int) -> None:
    for index in range(10):
        (answer,) = replies(source("math", difficulty).demonstration(index, 0.0))
        assert answer.count("=") in (0, difficulty + 1)
        module = source("repair", difficulty).task(index)
        assert content(module).count("def ") == difficulty
        assert content(source("trace", difficulty).task(index)).count(" = ") == difficulty
