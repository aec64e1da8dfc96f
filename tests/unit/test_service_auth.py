"""Tokens, roles, sessions and limits of the service; no request here names a run that it may not see."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes import new_ledger
from starlette.testclient import TestClient

from rl.ledger import Ledger
from rl.service.app import create_app
from rl.service.auth import Doorkeeper, TokenError, doorkeeper
from rl.service.guard import BODY_BYTES, BURST

NAME = "watch.example:8400"
HERE = f"http://{NAME}"
READ, OPERATE = "read-" + "r" * 20, "operate-" + "o" * 20


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Doorkeeper:
    monkeypatch.setenv("CWM_RL_READ_TOKEN", READ)
    file = tmp_path / "tokens"
    file.touch(mode=0o600)
    file.write_text(f"# who may stop runs\noperate {OPERATE}\n")
    return doorkeeper(file)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    (tmp_path / "runs/one").mkdir(parents=True)
    yield from new_ledger(tmp_path / "runs/one")


@pytest.fixture
def client(door: Doorkeeper, ledger: Ledger, tmp_path: Path) -> TestClient:
    return TestClient(create_app(tmp_path / "runs", [NAME], door), base_url=HERE, follow_redirects=False)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_who_shows_no_token_or_a_wrong_one_sees_nothing(client: TestClient) -> None:
    for headers in ({}, bearer(""), bearer(READ[:-1]), bearer(READ + "x"), {"Authorization": f"Basic {READ}"}):
        for path in ("/api/v1/runs", "/api/v1/runs/one", "/metrics", "/api/v1/openapi.json"):
            answer = client.get(path, headers=headers)
            assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer", path
        assert client.get("/runs/one", headers=headers).headers["location"] == "/login"
    for path in ("/healthz", "/readyz", "/login", "/static/style.css"):
        assert client.get(path).status_code == 200, path


def test_a_token_in_an_address_is_worth_nothing(client: TestClient) -> None:
    for name in ("token", "access_token", "authorization"):
        assert client.get("/api/v1/runs", params={name: OPERATE}).status_code == 401


def test_a_reader_reads_and_an_operator_stops(client: TestClient, tmp_path: Path) -> None:
    assert client.get("/api/v1/runs/one", headers=bearer(READ)).json()["state"] == "running"
    refused = client.post("/api/v1/runs/one/stop", headers=bearer(READ))
    assert refused.status_code == 403 and "operate" in refused.json()["detail"]
    assert not (tmp_path / "runs/one/stop.request").exists()
    assert client.post("/api/v1/runs/one/stop", headers=bearer(OPERATE)).status_code == 202
    assert (tmp_path / "runs/one/stop.request").exists()


def test_a_browser_logs_in_and_out(client: TestClient) -> None:
    wrong = client.post("/login", data={"token": "nonsense"}, headers={"Origin": HERE})
    assert wrong.status_code == 403 and "set-cookie" not in wrong.headers
    many = client.post("/login", data={str(n): "x" for n in range(30)}, headers={"Origin": HERE})
    assert many.status_code == 403 and "no token of this service" in many.text
    right = client.post("/login", data={"token": READ}, headers={"Origin": HERE})
    cookie = right.headers["set-cookie"].lower()
    assert right.status_code == 303 and "httponly" in cookie and "samesite=strict" in cookie
    assert READ not in cookie
    page = client.get("/runs/one")
    assert page.status_code == 200 and "Stop this run" not in page.text
    assert client.post("/runs/one/stop", headers={"Origin": HERE}).status_code == 403
    assert client.post("/logout", headers={"Origin": HERE}).status_code == 303
    assert client.get("/runs/one").status_code == 303


def test_a_session_does_not_help_another_site(client: TestClient, tmp_path: Path) -> None:
    client.post("/login", data={"token": OPERATE}, headers={"Origin": HERE})
    assert "Stop this run" in client.get("/runs/one").text
    for headers in ({}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        assert client.post("/runs/one/stop", headers=headers).status_code == 403, headers
    assert not (tmp_path / "runs/one/stop.request").exists()
    assert client.post("/runs/one/stop", headers={"Origin": HERE}).status_code == 303


def test_guessing_is_slow_and_keeps_nobody_out(client: TestClient) -> None:
    told = [client.post("/login", data={"token": "x"}, headers={"Origin": HERE}).status_code for _ in range(8)]
    assert told[0] == 403 and told[-1] == 429
    assert client.post("/login", data={"token": OPERATE}, headers={"Origin": HERE}).status_code == 303


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_session_begun_over_tls_stays_there(client: TestClient, scheme: str) -> None:
    origin = HERE.replace("http:", f"{scheme}:")
    answer = client.post("/login", data={"token": OPERATE}, headers={"Origin": origin})
    assert ("Secure" in answer.headers["set-cookie"]) == (scheme == "https")


def test_a_body_beyond_the_limit_is_refused(client: TestClient) -> None:
    headers = bearer(OPERATE)
    assert client.post("/api/v1/runs", content=b"x" * (BODY_BYTES + 1), headers=headers).status_code == 413

    def endless() -> Iterator[bytes]:
        while True:
            yield b"[" * 4096

    assert client.post("/api/v1/runs", content=endless_part(endless()), headers=headers).status_code == 413
    assert client.post("/api/v1/runs", content=b"[" * 5000, headers=headers).status_code == 422


def endless_part(parts: Iterator[bytes]) -> Iterator[bytes]:
    """What a client sends of it before this one gives up."""
    return (next(parts) for _ in range(64))


@pytest.mark.slow
def test_too_many_requests_are_told_to_wait(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.service.guard.time", SimpleNamespace(monotonic=lambda: 100.0))
    told = {client.get("/healthz").status_code for _ in range(int(BURST) + 20)}
    assert told == {200, 429}


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        ("read short", 0o600, "shorter"),
        ("write " + "x" * 20, 0o600, "line 1"),
        ("", 0o600, "no token"),
        ("read " + "x" * 20, 0o644, "chmod"),
    ],
)
def test_a_file_of_tokens_that_cannot_be_used(text: str, mode: int, words: str, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(text)
    os.chmod(file, mode)
    with pytest.raises(TokenError, match=words) as caught:
        doorkeeper(file)
    assert "xxxx" not in str(caught.value)
