"""Every reading route of the OpenAPI document, asked with whatever its parameters allow and with what they do not."""

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from fakes import closed_group
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from starlette.testclient import TestClient

from rl.ledger import Ledger
from rl.service import guard
from rl.service.app import create_app

ROUTES = [
    "/api/v1/runs",
    "/api/v1/configurations",
    "/api/v1/launches",
    "/api/v1/compare",
    "/api/v1/compare/answers",
    "/api/v1/runs/{run}",
    "/api/v1/runs/{run}/metrics",
    "/api/v1/runs/{run}/fleet",
    "/api/v1/runs/{run}/checkpoints",
    "/api/v1/runs/{run}/groups/{group}",
    "/api/v1/runs/{run}/episodes",
    "/api/v1/runs/{run}/episodes/{group}/{index}/{attempt}",
    "/api/v1/runs/{run}/episodes/{group}/{index}/{attempt}/tokens",
    "/api/v1/runs/{run}/episodes/{group}/{index}/{attempt}/download",
    "/healthz",
    "/readyz",
]
ENDLESS = {"/api/v1/runs/{run}/events", "/metrics"}
"""Tested elsewhere: one does not end, the other is no JSON."""

ANYTHING = st.one_of(
    st.sampled_from(["", "1", "one", "math", "scored", "true", "one:after", "1/0/0", "0.5", "-1", "%", "' OR 1=1"]),
    st.integers().map(str),
    st.floats().map(str),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    root = tmp_path_factory.mktemp("contract")
    (root / "one").mkdir()
    with Ledger.create(root / "one", "one", {}) as ledger, pytest.MonkeyPatch.context() as patch:
        patch.setattr(guard, "BURST", 1e9)
        ledger.publish(0)
        group = closed_group(ledger, 1.0, -1.0)
        stats = {"reward": {"math": 0.25}, "grad_norm": float("nan"), "entropy": 1.0}
        ledger.commit(1, [member.episode.key for member in group.members], stats)
        ledger.fault("worker-0", "kind", "detail")
        ledger.dispatch("t", "code", 2, 4e9)
        app = create_app(root, ["here:1"])
        yield TestClient(app, base_url="http://here:1", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def document(client: TestClient) -> Any:
    return client.get("/api/v1/openapi.json").json()


def test_the_list_of_routes_is_whole(document: Any) -> None:
    assert {path for path, methods in document["paths"].items() if "get" in methods} == {*ROUTES, *ENDLESS}


@pytest.mark.parametrize("route", ROUTES)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_answer_is_documented(route: str, client: TestClient, document: Any, data: st.DataObject) -> None:
    known = {"run": "one", "group": "1", "index": "0", "attempt": "0"}

    def filled(found: re.Match[str]) -> str:
        name = found[1]
        value = data.draw(st.one_of(st.just(known[name]), ANYTHING), label=name)
        return quote(value, safe="")

    described = document["paths"][route]["get"]
    names = [one["name"] for one in described.get("parameters", ()) if one["in"] == "query"]
    asked = data.draw(st.dictionaries(st.sampled_from(names), ANYTHING, max_size=3)) if names else {}
    answer = client.get(re.sub(r"\{(\w+)\}", filled, route), params=asked)
    assert answer.status_code in (200, 404, 409, 422), answer.text
    if answer.headers["content-type"] != "application/json":  # a path that is none of ours any more
        assert answer.status_code == 404 or route in ("/healthz", "/readyz")
        return
    if answer.status_code == 200 and (schema := described["responses"]["200"]["content"]["application/json"]["schema"]):
        Draft202012Validator({**schema, "components": document["components"]}).validate(answer.json())
    elif answer.status_code != 200:
        assert set(answer.json()) == {"detail"} and isinstance(answer.json()["detail"], str)


def test_a_range_is_answered_as_a_whole(client: TestClient) -> None:
    bomb = "bytes=" + ",".join(f"{start}-" for start in range(1000))
    answer = client.get("/static/style.css", headers={"Range": bomb})
    assert answer.status_code == 200 and "content-range" not in answer.headers


def test_the_document_has_examples(document: Any) -> None:
    assert document["components"]["schemas"]["Start"]["examples"][0]["config"]
    for route in ("/api/v1/runs/{run}", "/api/v1/runs/{run}/episodes/{group}/{index}/{attempt}"):
        for one in document["paths"][route]["get"]["parameters"]:
            assert one["schema"]["examples"], one["name"]
