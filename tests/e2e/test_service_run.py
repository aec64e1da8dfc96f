"""A real run, begun, watched and ended through the service, as a browser or a script does it."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
import pytest
from launch import ROOT, gone
from pages import chromium, look_over, tab
from playwright.sync_api import Browser, Page, expect

from rl.bench import history
from rl.driver import pulse
from rl.ledger.audit import audit

pytestmark = [pytest.mark.slow, pytest.mark.required, pytest.mark.timeout(600)]

OVERRIDES = {"run.steps": 500, "algorithm.token_budget": 2000}


class Service:
    """The command, and what is asked of it."""

    def __init__(self, port: int) -> None:
        self.port, self.address = port, f"http://127.0.0.1:{port}"

    def ask(self, method: str, path: str, wanted: Any = None) -> Any:
        """The JSON of an answer that is no refusal."""
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            headers = {"Origin": self.address, "Content-Type": "application/json"}
            connection.request(method, path, json.dumps(wanted) if wanted else None, headers)
            answer = connection.getresponse()
            text = answer.read().decode()
            assert answer.status in (200, 202), text
            return json.loads(text) if answer.headers["content-type"].startswith("application/json") else text

    def until(self, path: str, met: Any, seconds: float = 300) -> Any:
        """What is answered once `met` holds of it."""
        deadline = time.monotonic() + seconds
        while not met(found := self.ask("GET", path)):
            assert time.monotonic() < deadline, found
            time.sleep(0.2)
        return found


@pytest.fixture
def browser() -> Iterator[Browser]:
    with chromium() as one:
        yield one


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    command = [sys.executable, "-m", "rl.cli", "serve", "--runs", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            yield Service(int(child.stdout.readline().partition("/ shows")[0].rpartition(":")[2]))
        finally:
            child.send_signal(signal.SIGTERM)
            child.wait(20)
            for beat in filter(None, map(pulse.read, tmp_path.iterdir())):
                with suppress(psutil.NoSuchProcess):  # a run outlives its service, and a test that failed
                    driver = psutil.Process(beat.pid)
                    if "rl.cli" in driver.cmdline():
                        driver.terminate()
                        driver.wait(60)


def test_started_watched_and_stopped(service: Service, browser: Browser, tmp_path: Path) -> None:
    began = time.monotonic()
    service.ask("POST", "/api/v1/runs", {"config": "five-steps.toml", "run": "one", "overrides": OVERRIDES})
    # Listed before its ledger is whole, it is unreadable for a moment.
    service.until("/api/v1/runs", lambda found: any(run["state"] == "running" for run in found["runs"]), 90)
    first = time.monotonic() - began
    fleet = service.until("/api/v1/runs/one/fleet", lambda found: found["waits"], 90)
    assert fleet["state"] == "running" and fleet["pid"] and fleet["waits"][0]["until"] > time.time()
    fleet = service.until(
        "/api/v1/runs/one/fleet", lambda found: any(one["seen"] and one["slots"] for one in found["actors"])
    )
    assert {one["name"] for one in fleet["actors"]} == {"learner", "worker-0"}
    with (
        tab(browser, service.address) as early,
        closing(HTTPConnection("127.0.0.1", service.port, timeout=300)) as stream,
    ):
        early.goto("/runs/one")
        stream.request("GET", "/api/v1/runs/one/events")
        answer = stream.getresponse()
        while not answer.readline().startswith(b"event: step"):
            pass
        # A section that was not there when the page was opened.
        expect(early.get_by_role("heading", name="Last steps")).to_be_visible(timeout=30_000)
    found = service.ask("GET", "/api/v1/runs/one")
    assert found["state"] == "running" and found["step"] >= 1 and found["balanced"]
    trained = service.ask("GET", "/api/v1/runs/one/episodes?state=trained")["episodes"]
    metrics = service.ask("GET", "/metrics")
    assert 'cwm_rl_slots{run="one",actor="worker-0"}' in metrics
    driver = psutil.Process(service.ask("GET", "/api/v1/runs/one/fleet")["pid"])
    processes = [driver, *driver.children(recursive=True)]
    with tab(browser, service.address) as page:
        paths = read(page, trained[0]["domain"])
        asked = time.monotonic()
        stop(page)
        assert not gone(processes, 60)
        stopped = time.monotonic() - asked
    assert service.ask("GET", "/api/v1/runs/one")["state"] == "stopped"
    assert audit(tmp_path / "one").ok
    history.evaluate(tmp_path / "one", tasks=5)  # a run of no evaluation, and what two of them look like
    sides = "a=one:before&b=one:after"
    compared = {"compare": f"/compare?{sides}", "answers": f"/compare/answers?{sides}&task=code/task-1"}
    look_over(browser, service.address, paths | compared)
    print(f"on the page after {first:.1f} s; all gone {stopped:.1f} s after it was told to stop")


def read(page: Page, domain: str) -> dict[str, str]:
    """From page to page as a person goes, by links, forms and keys, while the run goes on. Name -> path of each.

    Episodes of `domain` have been trained on: a step need not have taken every domain.
    """
    page.goto("/")
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name="one"))
    expect(row).to_contain_text("running")
    row.get_by_role("link").click()
    expect(page).to_have_url(re.compile("/runs/one$"))
    page.wait_for_load_state()
    chart = page.locator("svg.chart").first
    chart.focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("output").first).to_contain_text("step ")
    chart.blur()
    step = page.locator('[data-part="facts"] dd').nth(1)
    expect(step).not_to_have_text(step.inner_text(), timeout=60_000)  # without being loaded again
    expect(page.locator("#live")).to_have_text("live")
    page.get_by_role("link", name="Fleet").click()
    for actor in ("learner", "worker-0"):
        expect(page.locator('[data-part="actors"] tr').filter(has_text=actor)).to_contain_text("up")
    page.go_back()
    page.get_by_role("link", name="Episodes", exact=True).click()
    page.get_by_label("state").select_option("trained")
    page.get_by_label("domain").select_option(domain)
    page.get_by_role("button", name="Show").click()
    rows = page.locator("tbody tr")
    assert rows.count() and rows.filter(has_text="trained").filter(has_text=domain).count() == rows.count()
    rows.first.get_by_role("link").click()
    episode = page.url
    tokens = page.locator(".tokens").first
    for colour in ("version", "advantage"):
        page.get_by_label(colour, exact=True).check()
        expect(tokens).to_have_class(re.compile(f"by-{colour}"))
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert json.loads(download.value.path().read_text())
    page.get_by_role("link", name="Side by side").click()
    expect(page.get_by_role("region", name="Members of the group side by side")).to_be_visible()
    group = page.url
    page.get_by_role("link", name="Compare").click()
    expect(page.get_by_text("No run here was evaluated")).to_be_visible()
    listed = {"runs": "/", "run": "/runs/one", "fleet": "/runs/one/fleet", "episodes": "/runs/one/episodes"}
    return listed | {"episode": episode, "group": group, "not-compared": "/compare"}


def stop(page: Page) -> None:
    """By the run's page, which then says so by itself."""
    page.goto("/runs/one")
    page.get_by_role("button", name="Stop this run").click()
    expect(page.locator('[data-part="facts"] .state')).to_have_text("stopped", timeout=60_000)
