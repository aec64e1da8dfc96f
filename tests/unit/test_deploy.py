"""What lies in deploy/ for others' tools: whole, of one piece, and true to what the service offers."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from docker.utils.build import exclude_paths
from fakes import new_ledger
from prometheus_client.parser import text_string_to_metric_families

from rl.service import prometheus
from rl.service.live import Hub
from rl.service.server import ServiceError

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERAY = sorted((DEPLOY / "kuberay").glob("*.yaml"))


def documents(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("path", sorted([*DEPLOY.rglob("*.yaml"), *DEPLOY.rglob("*.yml")]), ids=lambda path: path.name)
def test_every_yaml_file_is_read(path: Path) -> None:
    assert all(isinstance(one, dict) for one in documents(path))


def test_the_dashboard_asks_for_what_the_service_tells(tmp_path: Path) -> None:
    dashboard = json.loads((DEPLOY / "grafana/dashboards/cwm-rl.json").read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"cwm_rl_\w+", target["expr"])
    }
    assert len(dashboard["panels"]) == len({panel["id"] for panel in dashboard["panels"]}) > 10
    assert asked <= set(prometheus._FAMILIES)


def test_what_prometheus_scrapes_is_its_format(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    (tmp_path / "two/ledger.sqlite").write_text("no database")
    for ledger in new_ledger(tmp_path / "one"):
        ledger.fault('a"\\\n', "kind", "")
        families = {one.name: one for one in text_string_to_metric_families(prometheus.text(tmp_path, Hub()))}
    states = {tuple(one.labels.values()): one.value for one in families["cwm_rl_run_state"].samples if one.value}
    assert states == {("one", "running"): 1, ("two", "unreadable"): 1}
    assert [one.value for one in families["cwm_rl_faults"].samples] == [1]
    assert {one.labels["reason"] for one in families["cwm_rl_live_dropped"].samples} == {"slow", "behind"}


def test_compose_publishes_on_loopback_and_has_no_secret() -> None:
    (compose,) = documents(DEPLOY / "compose.yaml")
    assert set(compose["services"]) == {"head", "worker", "service", "prometheus", "grafana"}
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        for name, value in service.get("environment", {}).items():
            if re.search("TOKEN|PASSWORD", name):
                assert value.startswith("${") and ":?" in value, name
        for volume in service["volumes"]:
            if (source := volume.split(":")[0]).startswith("./") and not source.endswith("/token"):
                assert (DEPLOY / source).exists(), source


SECRETS = (
    ".env",
    ".env.local",
    "deploy/.env",
    "deploy/grafana/.env.prod",
    "deploy/prometheus/token",
    "runs/one/ledger",
)


def test_no_token_gets_into_an_image(tmp_path: Path) -> None:
    for name in (*SECRETS, "deploy/compose.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    kept_out = (DEPLOY.parent / ".dockerignore").read_text().splitlines()
    sent = exclude_paths(str(tmp_path), kept_out)
    assert "deploy/compose.yaml" in sent
    assert sent.isdisjoint(SECRETS)


@pytest.mark.skipif(shutil.which("git") is None, reason="no git on the PATH")
def test_no_token_gets_into_git(tmp_path: Path) -> None:
    shutil.copy(DEPLOY.parent / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    command = ["git", "check-ignore", *SECRETS, "deploy/compose.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == list(SECRETS)


def test_no_base_image_is_made_of_packages_that_nobody_signed(tmp_path: Path) -> None:
    tools = {"docker": "[ $1 != image ]", "id": "echo 0", "debootstrap": 'echo "$@"; exit 1'}
    for name, words in tools.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{words}\n")
        (tmp_path / name).chmod(0o755)
    keyring = tmp_path / "keyring.gpg"
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "DEBIAN_KEYRING": str(keyring)}
    command = [str(DEPLOY / "images/make-base.sh"), "--method", "debootstrap"]

    without = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert without.returncode == 1 and f"there is no keyring {keyring}" in without.stderr
    keyring.write_text("keys")
    asked = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60).stderr
    assert f"--force-check-gpg --keyring={keyring}" in asked


@pytest.mark.parametrize("before", [None, "", '{"debug": true}', '{"runtimes": {"runsc": {"path": "mine"}}}'])
def test_docker_learns_of_gvisor_beside_what_it_knows(tmp_path: Path, before: str | None) -> None:
    settings = tmp_path / "daemon.json"
    if before is not None:
        settings.write_text(before)
    assert add_runsc(settings) == ""
    known = json.loads(settings.read_text())
    assert known.pop("runtimes")["runsc"]["path"] == ("mine" if "mine" in (before or "") else "/usr/bin/runsc")
    assert known == ({"debug": True} if "debug" in (before or "") else {})
    assert list(tmp_path.iterdir()) == [settings]


@pytest.mark.parametrize("before", ["{", "[]", '{"runtimes": 3}'])
def test_dockers_settings_that_are_none_stay_and_are_named(tmp_path: Path, before: str) -> None:
    settings = tmp_path / "daemon.json"
    settings.write_text(before)
    said = add_runsc(settings)
    assert said.startswith(f"install-docker: {settings} is no JSON") and len(said.splitlines()) == 1
    assert settings.read_text() == before


def add_runsc(settings: Path) -> str:
    """Runs what install-docker.sh changes settings by; what it complains of."""
    (program,) = re.findall(r"<<'PYTHON'\n(.*?)^PYTHON$", (DEPLOY / "install-docker.sh").read_text(), re.DOTALL | re.M)
    command = [sys.executable, "-I", "-S", "-c", program, str(settings), "/usr/bin/runsc"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stderr


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_kuberay_takes_the_version_that_is_installed(path: Path) -> None:
    (one,) = documents(path)
    spec = one["spec"]["rayClusterSpec"] if one["kind"] == "RayJob" else one["spec"]
    lock = (DEPLOY / "requirements/cpu.txt").read_text()
    assert f"ray[default]=={spec['rayVersion']}" in lock or f"ray=={spec['rayVersion']}" in lock
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        (container,) = group["template"]["spec"]["containers"]
        volumes = {volume["name"] for volume in group["template"]["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        assert not [one for one in container["env"] if "TOKEN" in one["name"]]
    assert spec["authOptions"] == {"mode": "token", "secretName": "cwm-rl-ray"}, "the submitter needs it, too"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on the PATH")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    unit = (DEPLOY / "systemd/cwm-rl.service").read_text()
    program = "/opt/cwm-rl/.venv/bin/cwm-rl"
    assert program in unit
    assert f"RestartPreventExitStatus={ServiceError.exit_code}\n" in unit, "a wrong configuration stays one"
    (tmp_path / "cwm-rl.service").write_text(unit.replace(program, "/bin/true").replace("User=cwm", "User=root"))
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "cwm-rl.service")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "cwm-rl.service" not in done.stderr, done.stderr
