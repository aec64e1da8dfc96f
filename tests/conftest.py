"""What every test stands on: no network, no telemetry, one thread, and in CI no required part left out."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# Set before anything that reads them is imported, and inherited by every process that a test starts.
os.environ |= {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # Ray's 15 would starve the actors of one test while another works beside it
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_NO_USAGE_STATS": "1",
}
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")  # a busy machine is no failure
os.environ.pop("RAY_ADDRESS", None)  # tests never join a cluster that somebody works on


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """On a laptop a `required` part may be absent; in CI its skip is a failure, with the skip's reason."""
    report = yield
    required = item.get_closest_marker("required") is not None
    if os.environ.get("CI") == "true" and required and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"required, and left out: {reason}"
    return report
