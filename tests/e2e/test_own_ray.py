"""Two runs of one process, each with a Ray of its own: `cwm-rl controls` takes them one after the other."""

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.required, pytest.mark.timeout(200)]
PROGRAM = """
import sys
from pathlib import Path
from rl.cluster import connected
from rl.config import ClusterConfig

for name in ("first", "second"):
    run = Path(sys.argv[1]) / name
    run.mkdir()
    with connected(ClusterConfig(), run, 1, 0):
        import ray
        print(ray.get(ray.remote(lambda: name).remote()), flush=True)
"""


def test_one_ray_after_another(tmp_path: object) -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=False)
    assert run.stdout.split() == ["first", "second"], run.stderr
