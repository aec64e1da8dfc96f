"""The one door to Ray: starting or joining a cluster, actors that are called like objects, and jobs.

What lives where. The *driver* is the process of `cwm-rl train`: it alone writes the ledger, decides what is sampled
and trained, and owns every actor. `learner` and `worker-N` are named actors in a namespace of the run's name, so that
other processes can look at them; none is detached. When the driver dies, however it dies, Ray ends its actors, and a
local Ray ends with it. What survives is outside Ray: the run directory with its ledger and checkpoints, from which
`cwm-rl resume` goes on.
"""

import asyncio
import logging
import math
import os
import re
import secrets
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from safetensors import SafetensorError

from rl.config import ClusterConfig
from rl.jobs import Job
from rl.watchdog import watched
from rollout_workers.scratch import scratch
from verifiers.errors import UserError

# What a job does not take along, as .gitignore writes it. Ray itself leaves out .git, .venv and what .gitignore names.
_STAYS = ("/.*_cache", "/.hypothesis", "/runs", "/evals", "/models", "/tests", ".env*", "**/prometheus/token")
_NO_AGENT = "No available agent"
_AGENT_SECONDS = 30.0
_ASK_SECONDS = 1.0
_STOP_SECONDS = 30.0
_GOING_ON = ("PENDING", "RUNNING")
_OF_THE_MACHINE = (OSError, MemoryError, RuntimeError, SafetensorError)
"""The last but one is also torch's, for memory."""
_HOST_AND_PORT = re.compile(r"[^:/]+:\d+")
_LAST_WORDS = (
    "cwm-rl: the process in charge of {0} ended without a word: it was killed, or Ray's raylet below it was. What its "
    "actors printed is in {0}/logs"
)
_REFUSED = (
    "Ray at {} was asked without a valid token: set RAY_AUTH_TOKEN, or put its token into ~/.ray/auth_token; for a "
    "cluster without any, set RAY_AUTH_MODE=disabled"
)
_PORTS = {"http": 80, "https": 443, "ray": 10001}
_KNOCK_SECONDS = 2.0


class ClusterError(UserError):
    """No cluster, or none that takes our token."""


class ActorLost(UserError):
    """An actor died, or cannot be reached."""

    exit_code = 1


class ActorFailed(UserError):
    """A machine's failure in an actor: a full disk, no memory left."""

    exit_code = 1


class Actor:
    """A handle that hides Ray: `await actor.call("method", ...)` raises what the method raised, or ActorLost.

    ActorFailed takes the place of errors of the machine that have no sentence of their own.
    """

    def __init__(self, name: str, handle: Any) -> None:
        self.name = name
        self._handle = handle

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call and wait for the result. A cancelled wait cancels the call."""
        from ray.exceptions import RayError, RayTaskError

        reference = self.start(method, *arguments)
        try:
            return await reference
        except RayTaskError as error:
            # Ray wraps; the caller wants what the method raised.
            cause = error.cause if isinstance(error.cause, Exception) else error
            if isinstance(cause, _OF_THE_MACHINE) and not isinstance(cause, UserError):
                told = f"{type(cause).__name__}: {_first_line(cause)}"
                raise ActorFailed(f"{self.name} failed in '{method}': {told}") from cause
            raise cause from None
        except RayError as error:  # not only RayActorError: out of memory, say, is none
            # The text of a constructor's error is a traceback, which ends with what was raised.
            told = _last_line(error) if getattr(error, "actor_init_failed", False) else _first_line(error)
            raise ActorLost(f"{self.name} died: {told}") from error
        except asyncio.CancelledError:
            import ray

            ray.cancel(reference)
            raise

    def start(self, method: str, *arguments: Any) -> Any:
        """Call without waiting; returns Ray's reference to the result."""
        return getattr(self._handle, method).remote(*arguments)

    def tell(self, method: str, *arguments: Any) -> None:
        """Call without waiting for the result."""
        self.start(method, *arguments)

    def kill(self) -> None:
        """End the actor's process at once."""
        import ray

        ray.kill(self._handle)


def joined(address: str | None) -> str | None:
    """The cluster that `address` names, or `RAY_ADDRESS` where it names none; None where a local Ray is to start."""
    named = address or os.environ.get("RAY_ADDRESS")
    return None if named in ("", "local") else named


def endpoint(address: str) -> tuple[str, int] | None:
    """Host and port of HOST:PORT or a URL; None of anything else."""
    url = urlsplit(address if "//" in address else f"//{address}")
    try:
        host, port = url.hostname, url.port or _PORTS.get(url.scheme)
    except ValueError:  # a port that is no number
        return None
    return (host, port) if host and port else None


def check(config: ClusterConfig) -> None:
    """Ask the cluster at HOST:PORT, if the run is to join one, whether it is there and takes our token.

    `ray.init` would try for minutes and not tell the two apart. Raises ClusterError.
    """
    address = joined(config.address)
    if address is None or not _HOST_AND_PORT.fullmatch(address):
        return
    _environment()
    import grpc
    from ray._private.gcs_utils import create_gcs_channel
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
    from ray.exceptions import AuthenticationError

    stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(create_gcs_channel(address))
    try:
        stub.CheckAlive(gcs_service_pb2.CheckAliveRequest(), timeout=config.connect_seconds)
    except AuthenticationError as error:
        raise _without_token(address) from error
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            raise ClusterError(_REFUSED.format(address)) from error
        raise ClusterError(f"no Ray cluster answers at {address}: {error.details()}") from error


def _without_token(address: str) -> ClusterError:
    """Ray complains of a missing token before it asks anybody: there may be nobody."""
    try:
        if place := endpoint(address):
            socket.create_connection(place, timeout=_KNOCK_SECONDS).close()
    except OSError as error:
        return ClusterError(f"no Ray cluster answers at {address}: {error.strerror or error}")
    return ClusterError(_REFUSED.format(address))


class PushClient:
    """vLLM's `VLLMWeightSyncClient` over rollout workers, for transports that push: every call goes to all of them."""

    def __init__(self, workers: Sequence[Actor], seconds: float) -> None:
        self._workers = list(workers)
        self._seconds = seconds
        self.version = -1
        """Of the weights that are sent next; whoever sends sets it first."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Connect all engines to the sender. Raises what a worker raises, or ray's GetTimeoutError."""
        self._all("init_weight_transfer_engine", init_info)

    def start_weight_update(self) -> None:
        """Pause sampling in all engines."""
        self._all("start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """All engines receive the tensors; runs beside the broadcast that sends them."""
        self._all("update_weights", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Resume sampling under `self.version`; the sender passes no version of ours."""
        self._all("finish_weight_update", self.version)

    def _all(self, method: str, *arguments: Any) -> None:
        import ray

        ray.get([worker.start(method, *arguments) for worker in self._workers], timeout=self._seconds)


def put(value: Any) -> Any:
    """Leave `value` in Ray's object store; its reference, which stands for it as an argument of a call."""
    import ray

    return ray.put(value)


@contextmanager
def connected(config: ClusterConfig, run: Path, cpus: float, gpus: float, advice: str = "") -> Iterator[str]:
    """Join the cluster at `config.address` or `RAY_ADDRESS`, or start one on loopback with a token of its own.

    Yields which, in words. `cpus` and `gpus` are what a local one offers at least; what its actors print is kept in
    `run`/logs, and the run's name is the namespace. `advice` ends what is said where this process ends in the block.
    Raises ClusterError.
    """
    _environment()
    address = joined(config.address)
    options: dict[str, Any] = {"namespace": run.name, "log_to_driver": False, "logging_level": "error"}
    if address is None:
        os.environ["RAY_AUTH_TOKEN"] = _own_token()
        # Ray replaces a loopback address of ours by one that the network reaches, and then listens everywhere. This is
        # its way of not doing so, made for desktop firewalls; with it every port is on loopback.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        where = "a Ray of its own on loopback"
        options |= {
            "address": "local",
            "include_dashboard": False,
            "object_store_memory": 256 << 20,
        } | offered(cpus, gpus)
    else:
        options["address"] = address
        where = f"Ray at {address}"
    with ExitStack() as stack:
        if address is None:
            temporary = stack.enter_context(scratch("cwm-rl-ray", Path(tempfile.gettempdir())))
            options["_temp_dir"] = str(temporary)
            stack.enter_context(watched(temporary, run / "logs", f"{_LAST_WORDS.format(run)}; {advice}".rstrip("; ")))
        _init(options)
        stack.callback(_shutdown)
        yield where


def offered(cpus: float, gpus: float) -> dict[str, int]:
    """For `ray.init` of a local cluster: this machine's CPUs at least; GPUs if asked for, else Ray counts them."""
    processors = {"num_cpus": max(os.cpu_count() or 1, math.ceil(cpus))}
    return processors | {"num_gpus": math.ceil(gpus)} if gpus else processors


@cache
def _own_token() -> str:
    """One for all clusters of this process, where Ray keeps the first that it has seen."""
    return secrets.token_hex(32)


def _environment() -> None:
    """What Ray reads when it is imported: nothing is reported to anybody, and no cluster is open to everybody."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # else a call after the end would start another Ray
    logging.getLogger("ray").setLevel(logging.ERROR)


def _shutdown() -> None:
    import ray

    ray.shutdown()


def _init(options: Mapping[str, Any]) -> None:
    import ray

    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
    except (ConnectionError, TimeoutError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        raise ClusterError(f"no Ray cluster at {options['address']}: {_first_line(error)}") from error
    finally:
        signal.signal(signal.SIGTERM, handler)  # Ray puts its own there; ending in good order is our business


def start_actor(
    cls: type,
    *arguments: Any,
    name: str,
    cpus: float,
    gpus: float,
    concurrency: int | None = None,
    env: Mapping[str, str],
) -> Actor:
    """Make an actor of a plain class; `concurrency` calls run at once in one whose methods are coroutines."""
    import ray

    options: dict[str, Any] = {
        "name": name,
        "num_cpus": cpus,
        "num_gpus": gpus,
        "max_restarts": 0,  # its state is in the ledger's hands: the driver decides what starts again
        "runtime_env": {"env_vars": dict(env)},
    }
    if concurrency is not None:
        options["max_concurrency"] = concurrency
    return Actor(name, ray.remote(cls).options(**options).remote(*arguments))


class Jobs:
    """The jobs of a cluster. Every method raises ClusterError. Made by `jobs`."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def submit(self, job: Job, say: Callable[[str], None]) -> str:
        """Hand a job over; a second one of the same name is the same job. Returns its state."""
        if job.name in {known.submission_id for known in self._client.list_jobs()}:
            say(f"job {job.name} is known to the cluster already")
        else:
            environment = {"working_dir": str(job.working_dir), "excludes": list(_STAYS)}
            _handed_over(
                lambda: self._client.submit_job(
                    entrypoint=job.entrypoint, submission_id=job.name, runtime_env=environment
                )
            )
        return self.state(job.name)

    def state(self, name: str) -> str:
        """`PENDING`, `RUNNING`, `STOPPED`, `SUCCEEDED` or `FAILED`."""
        self._known(name)
        return str(self._client.get_job_status(name))

    def logs(self, name: str) -> str:
        """All that its driver has printed."""
        self._known(name)
        return str(self._client.get_job_logs(name))

    def stop(self, name: str) -> str:
        """Ask it to end, and wait until it has. Returns its state."""
        self._known(name)
        self._client.stop_job(name)
        return self.wait(name, time.monotonic() + _STOP_SECONDS)

    def wait(self, name: str, deadline: float = math.inf) -> str:
        """Until it has ended, or till `deadline` (monotonic seconds); its state."""
        while (state := self.state(name)) in _GOING_ON and time.monotonic() < deadline:
            time.sleep(_ASK_SECONDS)
        return state

    def _known(self, name: str) -> None:
        if name not in {known.submission_id for known in self._client.list_jobs()}:
            raise ClusterError(f"the cluster knows no job '{name}': see `ray job list`")


@contextmanager
def jobs(address: str | None) -> Iterator[Jobs]:
    """Of the cluster at `address` or `RAY_ADDRESS`. Raises ClusterError."""
    _environment()
    import requests
    from ray.exceptions import AuthenticationError, RayError
    from ray.job_submission import JobSubmissionClient

    for name in ("ray", "ray.dashboard.modules.dashboard_sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)  # importing them has set another
    address = joined(address)
    if address is None:
        raise ClusterError("no cluster to ask: give --address, or set RAY_ADDRESS")
    os.environ.pop("RAY_API_SERVER_ADDRESS", None)
    os.environ["RAY_ADDRESS"] = address  # both win over what the client is told
    try:
        yield Jobs(JobSubmissionClient(address))
    except AuthenticationError as error:
        raise _without_token(address) from error
    except (ConnectionError, TimeoutError, requests.ConnectionError, requests.Timeout) as error:
        raise ClusterError(f"no Ray cluster answers at {address}: {_first_line(error)}") from error
    except (RuntimeError, ValueError, RayError, requests.RequestException) as error:
        raise ClusterError(f"what was asked of Ray at {address} failed: {_first_and_last_line(error)}") from error


def _handed_over(submit: Callable[[], object]) -> None:
    """A cluster that has just started answers before it can take a job: ask again for a while."""
    deadline = time.monotonic() + _AGENT_SECONDS
    while True:
        try:
            submit()
        except RuntimeError as error:
            if _NO_AGENT not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _first_and_last_line(error: Exception) -> str:
    """An answer of Ray's dashboard may be a status with a traceback, which ends with what was raised."""
    first, last = _first_line(error), _last_line(error)
    return first if first == last else f"{first} ... {last}"


def _last_line(error: Exception) -> str:
    return next(reversed(str(error).strip().splitlines()), type(error).__name__)
