"""The OpenAPI document, held against the service: every operation is tried with what fits it and with what does not."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from fakes import closed_group
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from starlette.testclient import TestClient

from rl.ledger import Ledger
from rl.service import guard
from rl.service.app import create_app

OPERATIONS = [
    "GET /api/v1/runs",
    "POST /api/v1/runs",
    "GET /api/v1/configurations",
    "GET /api/v1/launches",
    "GET /api/v1/compare",
    "GET /api/v1/compare/answers",
    "GET /api/v1/runs/{run}",
    "POST /api/v1/runs/{run}/stop",
    "GET /api/v1/runs/{run}/metrics",
    "GET /api/v1/runs/{run}/fleet",
    "GET /api/v1/runs/{run}/checkpoints",
    "GET /api/v1/runs/{run}/groups/{group}",
    "GET /api/v1/runs/{run}/episodes",
    "GET /api/v1/runs/{run}/episodes/{group}/{index}/{attempt}",
    "GET /api/v1/runs/{run}/episodes/{group}/{index}/{attempt}/tokens",
    "GET /api/v1/runs/{run}/episodes/{group}/{index}/{attempt}/download",
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",
]
ENDLESS = "GET /api/v1/runs/{run}/events"
"""Tested elsewhere."""
KNOWN = {"run": "one", "group": 1, "index": 0, "attempt": 0}
"""What is there, which no schema tells."""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    root = tmp_path_factory.mktemp("contract")
    (root / "one").mkdir()
    (root / "configurations").mkdir()  # none: nothing can be started
    with Ledger.create(root / "one", "one", {}) as ledger, pytest.MonkeyPatch.context() as patch:
        patch.setattr(guard, "BURST", 1e9)
        ledger.publish(0)
        group = closed_group(ledger, 1.0, -1.0)
        stats = {"reward": {"math": 0.25}, "grad_norm": float("nan"), "entropy": 1.0}
        ledger.commit(1, [member.episode.key for member in group.members], stats)
        ledger.fault("worker-0", "kind", "detail")
        ledger.dispatch("t", "code", 2, 4e9)
        app = create_app(root, ["here:1", "testserver"], configs=root / "configurations")
        yield TestClient(app, base_url="http://here:1", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def document(client: TestClient) -> Any:
    return client.get("/api/v1/openapi.json").json()


@pytest.fixture(scope="module")
def described(client: TestClient) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_asgi("/api/v1/openapi.json", client.app)


def test_the_list_of_operations_is_whole(document: Any) -> None:
    found = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    assert found == {*OPERATIONS, ENDLESS}


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much])
@given(data=st.data())
def test_every_answer_is_as_described(operation: str, described: Any, data: st.DataObject) -> None:
    method, path = operation.split()
    one = described[path][method]
    modes = list(GenerationMode) if one.path_parameters or one.query or one.body else [GenerationMode.POSITIVE]
    case = data.draw(st.one_of(one.as_strategy(generation_mode=mode) for mode in modes))
    for name in case.path_parameters:
        if data.draw(st.booleans(), label=f"a known {name}"):
            case.path_parameters[name] = KNOWN[name]
    # What fits the document may still be refused with 422: a configuration that is not there, say.
    case.call_and_validate(excluded_checks=[schemathesis.checks.positive_data_acceptance])


def test_a_range_is_answered_as_a_whole(client: TestClient) -> None:
    bomb = "bytes=" + ",".join(f"{start}-" for start in range(1000))
    answer = client.get("/static/style.css", headers={"Range": bomb})
    assert answer.status_code == 200 and "content-range" not in answer.headers


def test_the_document_has_examples(document: Any) -> None:
    assert document["components"]["schemas"]["Start"]["examples"][0]["config"]
    for route in ("/api/v1/runs/{run}", "/api/v1/runs/{run}/episodes/{group}/{index}/{attempt}"):
        for one in document["paths"][route]["get"]["parameters"]:
            assert one["schema"]["examples"], one["name"]
