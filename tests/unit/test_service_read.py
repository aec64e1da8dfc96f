"""What can be read beside runs and episodes: groups, tokens, comparisons, checkpoints, filters, bounds."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import episode_of, new_ledger, tiny_model
from starlette.testclient import TestClient

from rl.bench import history
from rl.ledger import DropReason, Ledger, Reader
from rl.ledger.audit import audit
from rl.service.app import create_app
from rollout_workers.trajectory import Completion, Context, EpisodeKey, Trajectory
from verifiers.task import Message, Submission
from verifiers.verdict import Verdict

HERE = "http://here:1"


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    return TestClient(create_app(tmp_path, ["here:1"]), base_url=HERE, raise_server_exceptions=False)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """A group of three: right and long, wrong and short, and one that says a word of its own."""
    (tmp_path / "one").mkdir()
    for ledger in new_ledger(tmp_path / "one"):
        ledger.publish(0)
        number = ledger.dispatch("t", "math", 3, 4e9)
        for index, (length, reward) in enumerate(((30, 1.0), (10, -1.0), (20, 0.0))):
            key = EpisodeKey(number, index, 0)
            parts = (Context((1, 2)), Completion((3,) * length, (-1.5,) * length, 0), Completion((4,), (-0.1,), 1))
            turns = (Message("user", "2 + 2?"), Message("assistant", "Vier\x1b[31m" if index == 2 else "four"))
            told = replace(episode_of(key), trajectories=(Trajectory(parts),), submission=Submission("x", turns))
            ledger.sampled(told)
            ledger.scored(key, Verdict.scored(reward, correct=reward > 0, detail="as told"))
        yield ledger


def test_a_group_side_by_side(ledger: Ledger, client: TestClient) -> None:
    found = client.get("/api/v1/runs/one/groups/1").json()
    assert [one["reward"] for one in found["members"]] == [1.0, -1.0, 0.0]
    assert found["members"][0]["sampled"]["messages"][1]["content"] == "four"
    page = client.get("/runs/one/groups/1").text
    assert "1/0/0" in page and "1/2/0" in page and "Vier\\x1b[31m" in page
    for path in ("/api/v1/runs/one/groups/9", "/runs/one/groups/9"):
        assert client.get(path).status_code == 404


def test_tokens_with_their_text_probability_version_and_advantage(
    ledger: Ledger, client: TestClient, tmp_path: Path
) -> None:
    found = client.get("/api/v1/runs/one/episodes/1/0/0/tokens").json()
    mean = (31 * 1.0 - 11 * 1.0) / (31 + 11 + 21)
    assert found["advantage"] == pytest.approx(1.0 - mean)
    context, first, second = found["trajectories"][0]
    assert (context["sampled"], context["version"], context["logprobs"]) == (False, None, [])
    assert (first["tokens"], first["logprobs"][0], first["version"], second["version"]) == ([3] * 30, -1.5, 0, 1)
    assert first["texts"] == []
    tiny_model(tmp_path / "one/model")
    again = TestClient(create_app(tmp_path, ["here:1"]), base_url=HERE)
    assert len(again.get("/api/v1/runs/one/episodes/1/0/0/tokens").json()["trajectories"][0][1]["texts"]) == 30
    page = again.get("/runs/one/episodes/1/0/0").text
    assert 'class="l1 v0 up"' in page and 'class="l0 v1 up"' in page
    assert 'class="l1 v0 down"' in again.get("/runs/one/episodes/1/1/0").text


@pytest.mark.parametrize(
    ("algorithm", "advantage"),
    [({"advantage": "dr_grpo"}, 0.5), ({"advantage": "rloo"}, 1.0), ({"shuffle_rewards": True}, None)],
)
def test_an_advantage_is_the_runs_own_without_dropped_members(
    algorithm: dict[str, object], advantage: float | None, ledger: Ledger, client: TestClient, tmp_path: Path
) -> None:
    (tmp_path / "one/config.json").write_text(json.dumps({"algorithm": algorithm}))
    ledger.drop([EpisodeKey(1, 1, 0)], DropReason.STALE)
    assert client.get("/api/v1/runs/one/episodes/1/0/0/tokens").json()["advantage"] == advantage
    assert client.get("/api/v1/runs/one/episodes/1/1/0/tokens").json()["advantage"] is None
    shown = "is +0.500." if advantage == 0.5 else "is +1.000." if advantage else "It has no advantage:"
    assert shown in client.get("/runs/one/episodes/1/0/0").text


def test_an_episode_as_a_file(ledger: Ledger, client: TestClient) -> None:
    answer = client.get("/api/v1/runs/one/episodes/1/0/0/download")
    assert answer.headers["content-disposition"] == 'attachment; filename="one-1-0-0.json"'
    assert answer.json()["episode"]["key"] == "1/0/0" and len(answer.json()["tokens"]["trajectories"][0]) == 3
    assert client.get("/api/v1/runs/one/episodes/1/9/0/download").status_code == 404


@pytest.mark.parametrize(
    ("query", "keys"),
    [
        ("text=vier", ["1/2/0"]),
        ("text=AS TOLD&correct=true", ["1/0/0"]),
        ("text=%27 OR 1=1", []),
        ("tokens_min=15&tokens_max=25", ["1/2/0"]),
        ("outcome=scored&correct=false", ["1/2/0", "1/1/0"]),
        ("outcome=tampered", []),
        ("text=&outcome=&correct=&tokens_min=", ["1/2/0", "1/1/0", "1/0/0"]),
    ],
)
def test_filters(query: str, keys: list[str], ledger: Ledger, client: TestClient) -> None:
    found = client.get(f"/api/v1/runs/one/episodes?{query}").json()
    assert [one["key"] for one in found["episodes"]] == keys and found["next"] is None
    shown = client.get(f"/runs/one/episodes?{query}").text
    assert all(key in shown for key in keys)


def test_two_evaluations_on_the_tasks_that_both_have(ledger: Ledger, client: TestClient, tmp_path: Path) -> None:
    def sample(task: str, correct: bool | None) -> str:
        row = {"task_id": task, "domain": "math", "difficulty": 1, "sample": 0, "outcome": "scored", "reward": 1.0}
        said = [{"role": "assistant", "content": f"<b>{task}</b> {correct}"}]
        return json.dumps(row | {"correct": correct, "turns": 1, "sampled_tokens": 3, "detail": "", "messages": said})

    (tmp_path / "one/eval").mkdir()
    before = [sample("a", False), sample("b", True), sample("b", False), sample("c", None), sample("d", True)]
    (tmp_path / "one/eval/before.jsonl").write_text("\n".join(before) + "\n")
    assert client.get("/api/v1/compare?a=one:before&b=one:after").status_code == 409
    after = [sample("a", True), sample("b", True), sample("b", False), sample("e", True)]
    (tmp_path / "one/eval/after.jsonl").write_text("\n".join(after) + "\n")
    found = client.get("/api/v1/compare?a=one:before&b=one:after").json()
    assert (found["a"]["pass_at_1"], found["b"]["pass_at_1"]) == ({"math": 0.25}, {"math": 0.75})
    assert (found["better"], found["worse"], found["same"]) == (1, 0, 1)
    assert found["tasks"][0] == {"task_id": "a", "domain": "math", "a": 0.0, "b": 1.0}
    assert found == client.get("/api/v1/compare?a=one:before&b=one").json() | {"b": found["b"]}
    assert "+0.500" in client.get("/compare?a=one:before&b=one:after").text
    assert (
        "/compare/answers?a=one%3Abefore&amp;b=one%3Aafter&amp;task=a"
        in client.get("/compare?a=one:before&b=one:after").text
    )
    sides = {"a": "one:before", "b": "one:after"}
    answers = client.get("/api/v1/compare/answers", params=sides | {"task": "b"}).json()
    assert [[one["correct"] for one in answers[side]] for side in "ab"] == [[True, False], [True, False]]
    page = client.get("/compare/answers", params=sides | {"task": "b"}).text
    assert page.count("&lt;b&gt;b&lt;/b&gt; True") == 2
    for only in ("d", "e", "nosuch", '"'):
        assert client.get("/compare/answers", params=sides | {"task": only}).status_code == 409
    for side, status in {"nosuch:after": 404, "../one:after": 422, "one:now": 422, "one:after:x": 422}.items():
        assert client.get("/api/v1/compare", params={"a": "one:before", "b": side}).status_code == status, side


def test_checkpoints_that_were_pruned_are_told_apart(ledger: Ledger, client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "one/here").mkdir()
    for name in ("gone", "here"):
        ledger.checkpoint(0, tmp_path / "one" / name)
    (found,) = client.get("/api/v1/runs/one/checkpoints").json()["checkpoints"]
    assert (found["step"], found["there"]) == (0, True)


@pytest.mark.slow
def test_a_long_run_is_read_in_pieces(client: TestClient, tmp_path: Path) -> None:
    history.make(tmp_path / "long", episodes=24_000, steps=300)
    assert audit(tmp_path / "long", sample=50).problems == ()
    query, pages = "reward_min=7&limit=500", 0
    while query:
        found = client.get(f"/api/v1/runs/long/episodes?{query}").json()
        assert found["episodes"] == []
        pages += 1
        query = f"reward_min=7&limit=500&before={found['next']}" if found["next"] else ""
    assert pages == 2
    assert "go on to older ones" in client.get("/runs/long/episodes?reward_min=7").text
    series = client.get("/api/v1/runs/long/metrics?points=100").json()
    assert len(series["step"]) == len(series["series"]["entropy"]) == 100
    assert series["step"][-1] == 300 and series["series"]["entropy"][0] > series["series"]["entropy"][-1]
    with Reader(tmp_path / "long") as reader:
        assert len(reader.trend(60)) == 60
    assert len(client.get("/api/v1/runs").json()["runs"][0]["trend"]) == 60
    (page,) = [client.get("/api/v1/runs/long/episodes?step=7&limit=500").json()]
    assert page["next"] is None and {one["step"] for one in page["episodes"]} == {7}


def test_what_a_step_has_not_got_is_in_no_mean(ledger: Ledger, client: TestClient) -> None:
    ledger.close(1)
    for step, stats in enumerate(({"a": 1.0}, {"a": None}, {"a": 4.0, "b": 2.0}), 1):
        ledger.commit(step, [EpisodeKey(1, step - 1, 0)], stats)
    wanted = {2000: ([1, None, 4], [None, None, 2]), 2: ([1, 4], [None, 2]), 1: ([2.5], [2])}
    for points, (a, b) in wanted.items():
        series = client.get(f"/api/v1/runs/one/metrics?points={points}").json()["series"]
        assert (series["a"], series["b"]) == (a, b)


def test_steps_that_were_read_once_are_forgotten_after_a_rollback(ledger: Ledger, client: TestClient) -> None:
    def entropy() -> list[float]:
        return list(client.get("/api/v1/runs/one/metrics").json()["series"].get("entropy", []))

    keys = [EpisodeKey(1, index, 0) for index in range(3)]
    ledger.close(1)
    ledger.commit(1, keys, {"entropy": 1.0})
    assert entropy() == [1.0]
    ledger.rollback(0)
    assert entropy() == []
    ledger.commit(1, keys, {"entropy": 2.0})
    assert entropy() == [2.0]
