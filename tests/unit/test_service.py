"""The status service: what it tells of runs alive, finished and dead, and what it refuses."""

import fcntl
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from fakes import closed_group, episode_of
from starlette.testclient import TestClient

from rl.cli import main
from rl.ledger import DropReason, Ledger, LedgerError
from rl.service.app import create_app
from rollout_workers.trajectory import EpisodeKey
from verifiers.task import Message, Submission
from verifiers.verdict import Verdict

PORT = 8400
HERE = f"http://127.0.0.1:{PORT}"
NAMES = [f"{name}:{PORT}" for name in ("127.0.0.1", "localhost", "[::1]")]
ATTACK = "</pre><script>alert(1)</script>\x1b[31mred \u202eback"
TURNS = (Message("user", "2 + 2?"), Message("assistant", ATTACK), Message("tool: bash", "1 failed"))
STATS = {"entropy": 1.5, "grad_norm": float("nan"), "lag_max": 1, "lag_by_token": {"0": 6}, "reward": {"math": 0.25}}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Where the runs are."""
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


@pytest.fixture
def ledger(runs: Path) -> Iterator[Ledger]:
    """Of a run that goes on: a step, a group of `code` that is half graded, a retry, a fault."""
    (runs / "one").mkdir()
    with Ledger.create(runs / "one", "one", {"run": {"steps": 7}}) as ledger:
        ledger.publish(0)
        group = closed_group(ledger, 1.0, -1.0)
        ledger.commit(1, [member.episode.key for member in group.members], STATS)
        ledger.publish(1)
        number = ledger.dispatch(ATTACK, "code", 4, 4e9)
        for index in (0, 1):
            told = replace(episode_of(EpisodeKey(number, index, 0)), submission=Submission("x", TURNS))
            ledger.sampled(told)
        ledger.scored(EpisodeKey(number, 1, 0), Verdict.scored(-0.5, correct=False, detail=ATTACK, parts={"tests": -1}))
        ledger.retry(EpisodeKey(number, 2, 0), DropReason.INFRA_ERROR, ATTACK)
        ledger.fault("worker-0", "EngineError", ATTACK)
        yield ledger


@pytest.fixture
def client(runs: Path) -> TestClient:
    return TestClient(create_app(runs, NAMES), base_url=HERE, raise_server_exceptions=False)


def ask(client: TestClient, path: str) -> Any:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


def page(client: TestClient, path: str) -> str:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return answer.text


def keys(client: TestClient, query: str) -> list[str]:
    return [one["key"] for one in ask(client, f"/api/v1/runs/one/episodes?{query}")["episodes"]]


# --- what it tells --------------------------------------------------------------------------------------------------


def test_no_run_yet(client: TestClient) -> None:
    assert ask(client, "/healthz") == {"ok": True}
    assert ask(client, "/api/v1/runs") == {"runs": []}
    assert "No run in" in page(client, "/")


def test_the_state_of_a_run(ledger: Ledger, runs: Path, client: TestClient) -> None:
    def state() -> str:
        (only,) = ask(client, "/api/v1/runs")["runs"]
        assert ask(client, "/api/v1/runs/one")["state"] == only["state"]
        return str(only["state"])

    assert state() == "running"
    (runs / "one/report.json").write_text("{}")
    assert state() == "running"
    ledger.release()
    assert state() == "finished"
    (runs / "one/report.json").unlink()
    assert state() == "stopped"
    assert f"cwm-rl resume {runs / 'one'}" in page(client, "/runs/one")


def test_looking_does_not_keep_a_run_from_its_lock(ledger: Ledger, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.release()
    with open(runs / "one/ledger.sqlite.lock", "rb") as looking, monkeypatch.context() as patched:
        fcntl.flock(looking, fcntl.LOCK_SH)
        patience = SimpleNamespace(sleep=lambda _: fcntl.flock(looking, fcntl.LOCK_UN))  # they look away meanwhile
        patched.setattr("rl.ledger.schema.time", patience)
        with Ledger.open(runs / "one"):
            pass
    with Ledger.open(runs / "one"), pytest.raises(LedgerError, match="already has a writer"):
        Ledger.open(runs / "one")


def test_a_run(ledger: Ledger, client: TestClient) -> None:
    found = ask(client, "/api/v1/runs/one")
    assert (found["step"], found["steps"], found["version"]) == (1, 7, 1)
    assert found["reward"] == {"math": 0.25}
    assert (found["dispatched"], found["trained"], found["balanced"]) == (7, 2, True)
    assert found["pending"] == {"dispatched": 2, "sampled": 1, "scored": 1}
    assert found["dropped"]["infra_error"] == 1
    pending = "2 being sampled, 1 being graded, 1 waiting for their group or for the learner"
    assert found["waiting"] == f"episodes ({pending})"
    assert found["faults"][0]["actor"] == "worker-0"


def test_metrics_are_series_with_nothing_that_json_lacks(ledger: Ledger, client: TestClient) -> None:
    found = ask(client, "/api/v1/runs/one/metrics")
    assert found["step"] == [1]
    assert found["series"]["reward.math"] == [0.25]
    assert found["series"]["lag_by_token.0"] == [6.0]
    assert found["series"].get("grad_norm", [None]) == [None]
    assert ask(client, "/api/v1/runs/one/metrics?after=1")["step"] == []


def test_episodes_by_filter_newest_first(ledger: Ledger, client: TestClient) -> None:
    assert keys(client, "") == ["2/3/0", "2/2/1", "2/2/0", "2/1/0", "2/0/0", "1/1/0", "1/0/0"]
    assert keys(client, "domain=math") == ["1/1/0", "1/0/0"]
    assert keys(client, "state=sampled") == ["2/0/0"]
    assert keys(client, "step=1&reward_min=0") == ["1/0/0"]
    assert keys(client, "reward_max=-0.25") == ["2/1/0", "1/1/0"]
    assert keys(client, "domain=code&reward_min=0.5") == []
    assert keys(client, "domain=&state=&step=&reward_min=&reward_max=&limit=2") == ["2/3/0", "2/2/1"]


def test_pages_of_episodes_hold_each_once(ledger: Ledger, client: TestClient) -> None:
    seen, query = [], "limit=3"
    while True:
        found = ask(client, f"/api/v1/runs/one/episodes?{query}")
        seen += [one["key"] for one in found["episodes"]]
        if found["next"] is None:
            break
        query = f"limit=3&before={found['next']}"
    assert seen == keys(client, "")


def test_an_episode_turn_by_turn(ledger: Ledger, client: TestClient) -> None:
    found = ask(client, "/api/v1/runs/one/episodes/2/1/0")
    assert found["sampled"]["messages"] == [{"role": turn.role, "content": turn.content} for turn in TURNS]
    assert found["verdict"]["parts"] == {"tests": -1.0}
    shown = page(client, "/runs/one/episodes/2/1/0")
    assert "of which tests" in shown and "tool: bash" in shown and "-0.500" in shown


def test_an_episode_that_has_no_verdict_or_no_turn_yet(ledger: Ledger, client: TestClient) -> None:
    graded = ask(client, "/api/v1/runs/one/episodes/2/0/0")
    assert graded["verdict"] is None and graded["reward"] is None
    assert "It is being graded." in page(client, "/runs/one/episodes/2/0/0")
    assert ask(client, "/api/v1/runs/one/episodes/2/3/0")["sampled"] is None
    assert "It is being sampled." in page(client, "/runs/one/episodes/2/3/0")
    assert "It was never graded." in page(client, "/runs/one/episodes/2/2/0")


def test_the_pages_show_it_and_their_fragments_are_parts_of_them(ledger: Ledger, client: TestClient) -> None:
    for whole, fragment in (("/", "/live"), ("/runs/one", "/runs/one/live")):
        shown = page(client, whole)
        assert f'data-live="{fragment}"' in shown and shown.startswith("<!doctype html>")
        assert "<html" not in (part := page(client, fragment))
        assert "data-part=" in part and "running" in part
    assert "2/1/0" in page(client, "/runs/one/episodes?state=scored")
    assert "No episode is like that." in page(client, "/runs/one/episodes?step=5")


def test_curves_are_drawn_and_another_run_is_laid_over(ledger: Ledger, runs: Path, client: TestClient) -> None:
    alone = page(client, "/runs/one")
    assert alone.count('<svg class="chart"') == 4  # what its steps have numbers of
    assert "Reward by domain" in alone and "Not recorded by this run." in alone
    (runs / "two").mkdir()
    with Ledger.create(runs / "two", "two", {}) as other:
        other.publish(0)
        group = closed_group(other, 1.0, -1.0)
        other.commit(1, [member.episode.key for member in group.members], STATS | {"reward": {"code": 0.5}})
    both = page(client, "/runs/one?with=two")
    assert "two: code" in both and "dashed" in both
    assert client.get("/runs/one?with=nosuch").status_code == 404
    assert client.get("/runs/one?with=two&with=two&with=two&with=two").status_code == 422


def test_what_a_page_refers_to_is_there(ledger: Ledger, client: TestClient) -> None:
    for name in ("style.css", "status.css", "live.js", "charts.js", "icon.svg"):
        assert f"/static/{name}" in page(client, "/")
        assert client.get(f"/static/{name}").status_code == 200
    assert "paths" in ask(client, "/api/v1/openapi.json")


def test_a_ledger_that_cannot_be_read_is_named_and_hides_no_other(
    ledger: Ledger, runs: Path, client: TestClient
) -> None:
    (runs / "two").mkdir()
    (runs / "two/ledger.sqlite").write_text("hello, this is no database at all")
    found = {run["name"]: run for run in ask(client, "/api/v1/runs")["runs"]}
    assert found["one"]["state"] == "running"
    assert found["two"]["state"] == "unreadable" and "cannot be read" in found["two"]["problem"]
    assert "unreadable" in page(client, "/")
    answer = client.get("/api/v1/runs/two")
    assert answer.status_code == 503 and "cannot be read" in answer.json()["detail"]


def test_a_damaged_episode_is_named_and_hides_no_other(ledger: Ledger, runs: Path, client: TestClient) -> None:
    with closing(sqlite3.connect(runs / "one/ledger.sqlite")) as vandal, vandal:
        vandal.execute("UPDATE payloads SET data = x'00' WHERE group_id = 2 AND idx = 1")
    answer = client.get("/api/v1/runs/one/episodes/2/1/0")
    assert answer.status_code == 503 and "episode 2/1/0" in answer.json()["detail"]
    assert client.get("/runs/one/episodes/2/1/0").status_code == 503
    assert client.get("/runs/one/episodes/2/0/0").status_code == 200
    assert len(keys(client, "")) == 7
    assert client.get("/api/v1/runs/one/episodes?text=x").status_code == 503


def test_a_damaged_step_hides_no_other_run(ledger: Ledger, runs: Path, client: TestClient) -> None:
    with closing(sqlite3.connect(runs / "one/ledger.sqlite")) as vandal, vandal:
        vandal.execute("UPDATE steps SET stats = '{'")
    assert client.get("/").status_code == client.get("/metrics").status_code == 200
    states = {run["name"]: run["state"] for run in client.get("/api/v1/runs").json()["runs"]}
    assert states["one"] == "unreadable"
    assert client.get("/api/v1/runs/one").status_code == 503


def test_a_run_made_anew_under_its_name_is_another(ledger: Ledger, runs: Path, client: TestClient) -> None:
    assert len(client.get("/api/v1/runs/one/metrics").json()["step"]) > 0
    ledger.release()
    for file in (runs / "one").glob("ledger*"):
        file.unlink()
    with Ledger.create(runs / "one", "one", {}):
        assert client.get("/api/v1/runs/one/metrics").json()["step"] == []


# --- what it refuses ------------------------------------------------------------------------------------------------

HOSTS = [f"127.0.0.1:{PORT}", f"localhost:{PORT}", f"LOCALHOST:{PORT}", f"[::1]:{PORT}"]
FORGED = [
    "evil.example",
    f"evil.example:{PORT}",
    "127.0.0.1",
    "localhost:80",
    f"localhost.evil.example:{PORT}",
    f"127.0.0.1:{PORT}.evil.example",
    f"127.0.0.1:{PORT}@evil.example",
    "",
    f" 127.0.0.1:{PORT}",
]
OUTSIDE = [
    "..",
    "../outside",
    "%2e%2e",
    "%252e%252e",
    "..%2foutside",
    "%2e%2e%2foutside",
    "%2e%2e/outside",
    "one%2f..%2f..%2foutside",
    "one/../../outside",
    "one%00",
    "%2fetc",
    "/etc",
    ".",
    "one;ls",
    "$(ls)",
    "one%0a",
    "one'--",
    "link",
    "n" * 300,
    "%ff%fe",
]
BEYOND = [
    "limit=0",
    "limit=501",
    "limit=99999999999999999999999",
    "step=-1",
    "reward_min=nan",
    "reward_max=inf",
    "before=1",
    "before=9999999999999999999/0/0",
    "domain=" + "x" * 201,
    "nosuch=1",
]


def test_it_answers_to_this_machines_own_names_alone(ledger: Ledger, client: TestClient) -> None:
    for host in HOSTS:
        assert client.get("/healthz", headers={"Host": host}).status_code == 200, host
    for host in FORGED:
        answer = client.get("/api/v1/runs", headers={"Host": host})
        assert answer.status_code == 421, host
        assert "one" not in answer.text.split()


def test_only_get_and_post(ledger: Ledger, client: TestClient) -> None:
    for method in ("PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE", "MADEUP"):
        for path in ("/", "/api/v1/runs/one", "/nowhere"):
            answer = client.request(method, path, headers={"Origin": "http://evil.example"})
            assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST"), (method, path)
            policy_of(answer)


def test_a_post_comes_from_here_or_not_at_all(ledger: Ledger, runs: Path, client: TestClient) -> None:
    """Each of these would stop the run; the last two may."""
    foreign: list[dict[str, str]] = [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": f"http://127.0.0.1:{PORT + 1}"},
        {"Origin": f"http://127.0.0.1:{PORT}.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
    ]
    for path in ("/api/v1/runs/one/stop", "/runs/one/stop"):
        for headers in foreign:
            answer = client.post(path, headers=headers)
            assert answer.status_code == 403, headers
            policy_of(answer)
    assert not (runs / "one/stop.request").exists()
    assert client.post("/api/v1/runs/one/stop", headers={"Origin": HERE}).status_code == 202
    (runs / "one/stop.request").unlink()
    assert client.post("/runs/one/stop", follow_redirects=False).status_code == 303
    assert (runs / "one/stop.request").exists()


def policy_of(answer: httpx2.Response) -> str:
    """The content security policy of an answer, which carries all headers that it must and lets no other site in."""
    headers = answer.headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cache-control"] == "no-store"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert not [name for name in headers if name.startswith("access-control")]
    policy = str(headers["content-security-policy"])
    assert policy.startswith("default-src 'none'") and "frame-ancestors 'none'" in policy
    return policy


def test_every_answer_carries_the_headers(ledger: Ledger, client: TestClient) -> None:
    ids = set()
    for path in ("/", "/runs/one", "/api/v1/runs", "/nowhere", "/static/live.js", "/runs/one/episodes?limit=x"):
        ids.add(client.get(path).headers["x-request-id"])
        policy = policy_of(client.get(path, headers={"Origin": "http://evil.example"}))
        assert "script-src 'self'" in policy and "unsafe" not in policy
    assert len(ids) == 6


def test_sql_in_a_filter_is_a_value(ledger: Ledger, client: TestClient) -> None:
    for value in ("' OR 1=1 --", '" OR ""="', "x'; DROP TABLE episodes; --", "%", "code' UNION SELECT 1"):
        answer = client.get("/api/v1/runs/one/episodes", params={"domain": value})
        assert answer.status_code == 200 and answer.json()["episodes"] == []
        assert client.get("/api/v1/runs/one/episodes", params={"text": value}).json()["episodes"] == []
        numbers = ("step", "reward_min", "reward_max", "tokens_min", "tokens_max", "before", "limit")
        for name in ("state", "outcome", "correct", *numbers):
            assert client.get("/api/v1/runs/one/episodes", params={name: value}).status_code == 422, name
    assert len(keys(client, "")) == 7


def test_a_question_out_of_bounds_gets_a_sentence(ledger: Ledger, client: TestClient) -> None:
    for query in BEYOND:
        answer = client.get(f"/api/v1/runs/one/episodes?{query}")
        assert answer.status_code == 422 and answer.json()["detail"].startswith("This cannot be asked: "), query
        shown = client.get(f"/runs/one/episodes?{query}")
        assert shown.status_code == 422 and "This cannot be asked" in shown.text, query


def test_an_episode_that_is_not_there(ledger: Ledger, client: TestClient) -> None:
    for key, status in {"2/99/0": 404, "-1/0/0": 422, f"{2**70}/0/0": 422, "a/0/0": 422, "2/0": 404}.items():
        assert client.get(f"/api/v1/runs/one/episodes/{key}").status_code == status, key
        assert client.get(f"/runs/one/episodes/{key}").status_code == status, key


def test_what_a_model_wrote_is_only_text(ledger: Ledger, client: TestClient) -> None:
    for rest in ("", "/live", "/episodes", "/episodes/2/1/0", "/episodes/2/2/0"):
        shown = page(client, f"/runs/one{rest}")
        assert "<script>alert" not in shown and "&lt;script&gt;alert(1)" in shown
        assert "\\x1b[31mred \\u202eback" in shown
        assert not {one for one in shown if not one.isprintable()} - {"\n", "\t"}
        assert " style=" not in shown and "<style" not in shown and " onerror=" not in shown


def test_the_answer_to_a_wrong_question_does_not_repeat_it(ledger: Ledger, client: TestClient) -> None:
    for path in ("/runs/<script>alert(1)</script>", "/runs/one/episodes?state=<script>alert(1)</script>"):
        assert "<script>alert" not in client.get(path).text


# --- as a command ---------------------------------------------------------------------------------------------------


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["serve", *map(str, arguments)])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and not out and "Traceback" not in err
    return err


def test_it_listens_on_loopback_only(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org", ""):
        assert "without a token the service answers on loopback only" in refusal(capsys, "--runs", runs, "--host", host)


def test_a_busy_port_and_a_missing_directory_get_a_sentence(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} is taken" in refusal(capsys, "--runs", runs, "--port", port)
    assert "no directory" in refusal(capsys, "--runs", runs / "nowhere")
    assert "no port" in refusal(capsys, "--runs", runs, "--port", 70000)


@pytest.fixture
def served(ledger: Ledger, runs: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The command itself, and its port."""
    command = [sys.executable, "-m", "rl.cli", "serve", "--runs", runs, "--port", "0"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as child:
        try:
            assert child.stdout is not None
            said = re.match(r"http://127\.0\.0\.1:(\d+)/ shows the runs in ", child.stdout.readline())
            assert said is not None
            yield child, int(said[1])
        finally:
            child.kill()


def get(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, str]:
    """Over a socket, the path as it stands: most clients would straighten `..` out before they ask."""
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    with closing(connection):
        connection.request("GET", path, headers={"Host": f"{host}:{port}"})
        answer = connection.getresponse()
        assert answer.headers["server"] is None
        return answer.status, answer.read().decode()


@pytest.mark.slow
def test_the_command_serves_runs_and_nothing_else_until_it_is_told_to_stop(
    served: tuple[subprocess.Popen[str], int], runs: Path
) -> None:
    child, port = served
    (runs.parent / "outside").mkdir()
    with Ledger.create(runs.parent / "outside", "outside", {}):
        (runs / "link").symlink_to(runs.parent / "outside")
    for name in OUTSIDE:
        for path in (f"/runs/{name}", f"/runs/{name}/episodes", f"/runs/{name}/fleet", f"/api/v1/runs/{name}"):
            status, text = get(port, path)
            assert status == 404 and "outside" not in text, path
    for name in ("..%2f..%2frun.py", "%2e%2e/app.py", "../app.py", "guard.py", "%2fetc%2fpasswd"):
        assert get(port, f"/static/{name}")[0] == 404, name
    assert get(port, "/", host="evil.example")[0] == 421
    status, text = get(port, "/api/v1/runs")
    assert status == 200 and [run["name"] for run in json.loads(text)["runs"]] == ["one"]
    child.send_signal(signal.SIGINT)
    assert child.wait(20) == 0
    assert child.stdout is not None and child.stdout.read() == ""
