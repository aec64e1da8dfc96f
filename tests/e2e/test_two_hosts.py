"""A cluster of two hosts, which are network namespaces here: the learner on one, the rollout worker on the other."""

import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from launch import assert_whole, cwm_rl, gone, train

from rl.ledger import Reader
from rl.ledger.records import Fault
from rl.ledger.states import State

pytestmark = [pytest.mark.slow, pytest.mark.required, pytest.mark.timeout(600)]

NAMES = f"cwm-rl-{os.getpid()}-1", f"cwm-rl-{os.getpid()}-2"
CABLE = "cable"
STEPS = 8
"""More after the cut than the batches that may lie ready before it: without the second host there is no end."""
ADDRESSES = "10.213.7.1", "10.213.7.2"
PORT = 6379
RAY = str(Path(sys.executable).parent / "ray")


class Hosts:
    """Two of them, with a cable between them and nothing else; the first is the cluster's head."""

    def __init__(self) -> None:
        self.env = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_health_check_period_ms": "1000",  # a host is given up after seconds, not half a minute
            "RAY_health_check_timeout_ms": "2000",
            "RAY_health_check_failure_threshold": "3",
        }
        self.home = Path(tempfile.mkdtemp(prefix="cwm-two-"))  # short, for Ray's sockets lie below it
        self.nodes: list[subprocess.Popen[bytes]] = []

    def lay(self) -> None:
        """Make them. Raises CalledProcessError where that is not allowed."""
        for name in NAMES:
            _ip("netns", "add", name)
        _ip("link", "add", CABLE, "netns", NAMES[0], "type", "veth", "peer", CABLE, "netns", NAMES[1])
        for name, address in zip(NAMES, ADDRESSES, strict=True):
            _ip("-n", name, "address", "add", f"{address}/30", "dev", CABLE)
            _ip("-n", name, "link", "set", "lo", "up")
            self.cable(name, "up")

    def cable(self, name: str, state: str) -> None:
        """Plug it in there, or out."""
        _ip("-n", name, "link", "set", CABLE, state)

    def node(self, index: int, *arguments: str) -> None:
        """Start Ray there."""
        words = [RAY, "start", "--block", f"--node-ip-address={ADDRESSES[index]}", "--object-store-memory=100000000"]
        log = (self.home / f"node-{len(self.nodes)}").open("wb")
        with log:
            self.nodes.append(
                subprocess.Popen(
                    [*_inside(index), *words, *arguments], env=os.environ | self.env, stdout=log, stderr=log
                )
            )

    def second(self) -> None:
        """Start Ray on the second one, the only one where a worker finds room."""
        self.node(1, f"--address={ADDRESSES[0]}:{PORT}", "--num-cpus=2")

    def close(self) -> None:
        """End all."""
        left = [child for node in self.nodes for child in _tree(node.pid)]
        for node in self.nodes:
            node.terminate()
        for one in gone(left, 20):
            one.kill()
        for node in self.nodes:
            node.wait(10)
        for name in NAMES:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
        shutil.rmtree(self.home, ignore_errors=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _inside(index: int) -> list[str]:
    return ["ip", "netns", "exec", NAMES[index]]


def _tree(pid: int) -> list[psutil.Process]:
    if not psutil.pid_exists(pid):
        return []
    own = psutil.Process(pid)
    return [own, *own.children(recursive=True)]


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and ip: apt-get install iproute2")
    one = Hosts()
    try:
        one.lay()
        one.node(0, "--head", f"--port={PORT}", "--num-cpus=1", "--include-dashboard=false", f"--temp-dir={one.home}")
        one.second()
        yield one
    finally:
        one.close()


def _actors(index: int) -> set[str]:
    """Which run there: other tests have actors of the same titles at the same time."""
    place, found = os.stat(f"/run/netns/{NAMES[index]}").st_ino, set()
    for process in psutil.process_iter(["cmdline"]):
        title = re.match(r"ray::(\w+)", " ".join(process.info["cmdline"] or ()))
        with suppress(OSError):  # it has just ended
            if title and os.stat(f"/proc/{process.pid}/ns/net").st_ino == place:
                found.add(title[1])
    return found & {"Learner", "RolloutWorker"}


def test_a_host_that_is_cut_off_and_comes_back(hosts: Hosts, tmp_path: Path) -> None:
    settings = (
        f"cluster.address={ADDRESSES[0]}:{PORT}",
        "cluster.connect_seconds=60",
        "rollout.engine.transport=ray",
        "rollout.engine.cores=[]",
        "learner.cores=[]",
        "rollout.cpus=2",
        f"run.steps={STEPS}",
    )
    words = train(tmp_path, *(word for setting in settings for word in ("--set", setting)))
    with cwm_rl(tmp_path / "log", *words, env=hosts.env, before=_inside(0)) as command:
        command.wait_for(f"step 2/{STEPS}")
        assert (_actors(0), _actors(1)) == ({"Learner"}, {"RolloutWorker"})
        hosts.cable(NAMES[1], "down")
        deadline = time.monotonic() + 120
        while not _faults(tmp_path / "run"):
            assert time.monotonic() < deadline, f"nobody missed the host:\n{command.output}"
            assert command.process.poll() is None, command.output
            time.sleep(0.5)
        hosts.cable(NAMES[1], "up")
        hosts.second()  # as whoever runs a host would: its Ray ended when the cluster had given it up
        assert command.finish() == 0, command.output
    assert_whole(tmp_path / "run", STEPS)
    (cut, *_) = _faults(tmp_path / "run")
    assert cut.actor == "worker-0"
    with Reader(tmp_path / "run") as reader:
        trained = list(reader.episodes(state=State.TRAINED, payloads=False))
    assert any(one.sampled_at > cut.at for one in trained if one.sampled_at), "the host is back, and samples"


def _faults(run: Path) -> list[Fault]:
    with Reader(run) as reader:
        return reader.faults()
