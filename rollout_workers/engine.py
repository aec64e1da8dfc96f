"""The one door to vLLM: token ids in, token ids with log-probabilities and versions out, and new weights in between."""

import asyncio
import itertools
import math
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rollout_workers.cores import allowed
from rollout_workers.trajectory import Completion
from rollout_workers.weights import WeightsError, WeightsRef, check
from verifiers.errors import UserError

_POLL_SECONDS: Final = 0.002


class EngineConfig(BaseModel):
    """How a worker's vLLM engine runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    context: int = Field(4096, ge=64, description="Longest sequence, in tokens.")
    kv_cache_gib: float | None = Field(None, gt=0, description="Size of the KV cache; none lets vLLM decide (GPU).")
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="Share of a GPU's memory vLLM may take.")
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs one engine spans.")
    cores: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), description="CPUs of an engine without a GPU, counted among those it may use; none leaves it free."
    )
    eager: bool = Field(True, description="No compiled graphs: starts in seconds. False on GPUs.")
    kv: Literal["keep", "recompute"] = Field(
        "keep", description="At a swap, keep the KV cache of running requests (fast) or compute it anew (exact)."
    )
    transport: Literal["auto", "file", "ray", "nccl"] = Field(
        "auto",
        description="How weights get here: shared memory of one host, Ray's object store, or NCCL; auto takes the "
        "first where every actor sees it, else the second.",
    )
    start_seconds: float = Field(600, gt=0, description="Deadline for the engine's start.")
    swap_seconds: float = Field(120, gt=0, description="Deadline for one weight update.")

    @model_validator(mode="after")
    def _pins_one_process(self) -> "EngineConfig":
        if self.cores and self.tensor_parallel_size > 1:
            raise ValueError(
                "cores pin an engine of one process, and tensor_parallel_size asks for more: set one of them"
            )
        return self


class EngineError(UserError):
    """The engine died or does not answer. A failure of ours."""

    exit_code = 1


class SampleError(Exception):
    """A reply that is of no use, from an engine that lives. A failure of ours, of one episode."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """One reply: its tokens, cut where the weights changed, and whether it sampled an end token.

    The first cut may stand before the first token: then the prompt may have been read under the older weights.
    """

    completions: tuple[Completion, ...]
    ended: bool


class Engine:
    """A vLLM `AsyncLLM` whose weights change under running requests. Made by `Engine.start`."""

    def __init__(self, llm: Any, config: EngineConfig, temperature: float, stop: Sequence[int]) -> None:
        self._llm = llm  # vLLM's AsyncLLM; importing it here would make every reader of this module wait for it
        self._config = config
        self._temperature = temperature
        self._stop = list(stop)
        self._ids = itertools.count()
        self._open = asyncio.Event()
        self._failure: EngineError | None = None
        self._failed = asyncio.get_running_loop().create_future()
        """Done with the failure: an engine that stays paused never answers what runs in it."""
        self.version = -1
        """Version being sampled; -1 until the first weights came."""

    @classmethod
    @asynccontextmanager
    async def start(
        cls,
        model: str,
        config: EngineConfig,
        *,
        dtype: str,
        slots: int,
        temperature: float,
        stop: Sequence[int],
        seed: int,
    ) -> AsyncIterator["Engine"]:
        """Start the engine process and, on leaving, end it. Raises EngineError.

        `stop` are the ids that end a reply; `slots` bounds the requests that run at once, so that none of ours waits.
        """
        _quiet(config)
        from vllm import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        from rollout_workers.transfer import transfer_config

        one_process = current_platform.is_cpu() and config.tensor_parallel_size == 1
        if one_process:
            _bind(config)
        args = AsyncEngineArgs(
            model=model,
            dtype=dtype,
            seed=seed,
            max_model_len=config.context,
            max_num_seqs=slots,
            kv_cache_memory_bytes=int(config.kv_cache_gib * 2**30) if config.kv_cache_gib else None,
            gpu_memory_utilization=config.gpu_memory_utilization,
            tensor_parallel_size=config.tensor_parallel_size,
            distributed_executor_backend="uni" if one_process else None,
            enforce_eager=config.eager,
            hf_overrides=_native,
            # One block table a layer type saves memory on long contexts and costs a small model a tenth of its speed.
            disable_hybrid_kv_cache_manager=current_platform.is_cpu(),
            # Log-probabilities of the distribution that is sampled from, temperature included: the π of the objective.
            logprobs_mode="processed_logprobs",
            skip_tokenizer_init=True,
            disable_log_stats=True,
            weight_transfer_config=transfer_config(config.transport),
            worker_extension_cls="rollout_workers.staging.StagedWeights",
        )
        try:
            # from_engine_args blocks for the whole start.
            llm = await asyncio.wait_for(asyncio.to_thread(AsyncLLM.from_engine_args, args), config.start_seconds)
        except (TimeoutError, RuntimeError, ValueError, OSError) as error:
            raise EngineError(f"vLLM did not start on {model}: {error}") from error
        engine = cls(llm, config, temperature, stop)
        try:
            yield engine
        finally:
            if llm.output_handler is not None:
                llm.output_handler.cancel()  # it would log the engine's end as a failure
            await asyncio.to_thread(llm.shutdown)
            llm.shutdown = lambda *_, **__: None  # its destructor does it again, and fails where Python is ending

    async def serve(self) -> None:
        """Sample from the weights that it was started with, as version 0. Raises EngineError."""
        async with self._updating("serve the weights it was started with"):
            await self._llm.update_weight_version("0")
        self.version = 0
        self._open.set()

    async def sample(self, prompt: Sequence[int], max_tokens: int, *, greedy: bool = False) -> Sampled:
        """Sample one reply of at most `max_tokens` tokens to `prompt`, end token included.

        Raises EngineError, and SampleError for a log-probability that is not finite. `greedy` takes the likeliest token
        each time; its log-probabilities are those of that policy, all 0.
        """
        await self._open.wait()
        self.check()
        version = self.version
        sampled = await self._sample(prompt, max_tokens, 0.0 if greedy else self._temperature, salt=version)
        if self._config.kv == "keep" and sampled.completions and sampled.completions[0].version != version:
            # The weights changed before its first token: the cached keys of its prompt may be of the older ones, and
            # only a reply of one version promises that they are not.
            return Sampled((Completion((), (), version), *sampled.completions), sampled.ended)
        return sampled

    def check(self) -> None:
        """Raises EngineError where an update failed half way: it samples no more."""
        if self._failure is not None:
            raise self._failure

    async def _sample(self, prompt: Sequence[int], max_tokens: int, temperature: float, salt: int) -> Sampled:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        params = SamplingParams(
            temperature=temperature,
            max_tokens=max_tokens,
            logprobs=0,
            flat_logprobs=True,  # plain lists, not an object a token
            detokenize=False,
            stop_token_ids=self._stop,
            ignore_eos=True,  # what ends a reply is `stop` alone
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        request = {"prompt_token_ids": list(prompt), "cache_salt": f"v{salt}"}
        try:
            outputs = await self._unless_failed(self._llm.generate(request, params, request_id=str(next(self._ids))))
        except EngineDeadError as error:
            raise EngineError(f"vLLM's engine process died: {error}") from error
        if not outputs:
            raise EngineError("vLLM ended a request without an output")
        reply = outputs[-1].outputs[0]
        if reply.finish_reason not in ("stop", "length"):
            raise EngineError(f"vLLM ended a request with '{reply.finish_reason}'")
        if reply.logprobs.token_ids != list(reply.token_ids):
            raise EngineError("vLLM's log-probabilities are of other tokens than it sampled")
        logprobs = reply.logprobs.logprobs
        if odd := [logprob for logprob in logprobs if not math.isfinite(logprob)]:
            raise SampleError(f"vLLM gave {len(odd)} of {len(logprobs)} tokens a log-probability of {odd[0]}")
        completions = tuple(
            Completion(
                tuple(reply.token_ids[span.start : span.end]), tuple(logprobs[span.start : span.end]), int(span.version)
            )
            for span in reply.weight_versions or ()
        )
        return Sampled(completions, ended=reply.finish_reason == "stop")

    async def _unless_failed(self, outputs: AsyncIterator[Any]) -> list[Any]:
        async def read() -> list[Any]:
            return [output async for output in outputs]

        reading = asyncio.create_task(read())
        try:
            await asyncio.wait({reading, self._failed}, return_when=asyncio.FIRST_COMPLETED)
            self.check()
            return reading.result()
        finally:
            if not reading.done():
                reading.cancel()
                with suppress(asyncio.CancelledError):
                    await reading

    async def swap(self, ref: WeightsRef) -> float:
        """Put new weights under the running requests: check, stage, pause, take, go on. Returns the seconds of pause.

        Raises WeightsError where the file is not whole or does not fit (the old version goes on) and EngineError where
        the engine failed half way (its weights are then of no version: the worker must start anew).
        """
        await asyncio.to_thread(check, ref)
        await self._stage(ref)
        began = time.monotonic()
        await self._pause("take weights")
        async with self._updating("take weights"):
            await self._llm.collective_rpc("take_staged_weights")
        await self._go_on(ref.version)
        return time.monotonic() - began

    async def _stage(self, ref: WeightsRef) -> None:
        """Have them loaded beside those in use."""
        seconds = self._config.swap_seconds
        staged = await self._staged("stage_weights", ref.path)
        try:
            async with asyncio.timeout(seconds):
                while None in staged:
                    await asyncio.sleep(_POLL_SECONDS)
                    staged = await self._staged("staged_weights")
        except TimeoutError:  # nothing in use was touched
            raise WeightsError(
                f"weights of version {ref.version} at {ref.path} were not loaded within {seconds:g} s "
                "(rollout.engine.swap_seconds)"
            ) from None
        if wrong := next(filter(None, staged), None):
            raise WeightsError(f"weights of version {ref.version} at {ref.path} cannot be loaded: {wrong}")

    async def _staged(self, method: str, *arguments: str) -> list[str | None]:
        """What each of vLLM's workers has to say of them, see `StagedWeights`. Raises EngineError."""
        async with self._updating("stage weights"):
            return await self._llm.collective_rpc(method, args=arguments)  # type: ignore[no-any-return]

    async def connect(self, info: dict[str, Any]) -> None:
        """Meet the learner, where the transport needs that. Raises EngineError."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        async with self._updating("connect to the learner"):
            await self._llm.init_weight_transfer_engine(WeightTransferInitRequest(info))

    async def begin_update(self) -> None:
        """For transports that push: pause; running requests are kept, new ones wait. Raises EngineError."""
        await self._pause("begin an update")
        async with self._updating("begin an update"):
            await self._llm.start_weight_update()

    async def receive(self, info: dict[str, Any]) -> None:
        """Take weights in, as the transport has them. Raises EngineError."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        async with self._updating("receive weights"):
            await self._llm.update_weights(WeightTransferUpdateRequest(info))

    async def end_update(self, version: int) -> None:
        """Go on under the new version. Raises EngineError."""
        async with self._updating("end an update"):
            await self._llm.finish_weight_update()
        await self._go_on(version)

    async def _pause(self, why: str) -> None:
        self._open.clear()
        async with self._updating(why):
            # What `pause_generation` does, without its 20 ms of sleep for callers who look at outputs meanwhile.
            clear = self._config.kv == "recompute"
            await self._llm.engine_core.pause_scheduler_async(mode="keep", clear_cache=clear)

    async def _go_on(self, version: int) -> None:
        async with self._updating(f"go on with version {version}"):
            # The engine takes them in this order; to wait between them would only lengthen the pause.
            await asyncio.gather(self._llm.update_weight_version(str(version)), self._llm.resume_generation())
        self.version = version
        self._open.set()

    @asynccontextmanager
    async def _updating(self, what: str) -> AsyncIterator[None]:
        """A part of an update, with its deadline. After a failure every request raises it, those that wait too."""
        try:
            async with asyncio.timeout(self._config.swap_seconds):
                yield
        except Exception as error:
            self._failure = EngineError(f"the engine could not {what}: {error!r}")
            self._open.set()
            if not self._failed.done():
                self._failed.set_result(None)
            raise self._failure from error


class Greedy:
    """An engine that takes the likeliest token each time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def sample(self, prompt: Sequence[int], max_tokens: int) -> Sampled:
        """See `Engine.sample`."""
        return await self._engine.sample(prompt, max_tokens, greedy=True)


def _native(config: Any) -> Any:
    """Serve CWM by vLLM's Llama, which it is but for its sliding layers, and those vLLM's Llama knows by `layer_types`.

    vLLM itself would take its generic Transformers back end: the same numbers, at two thirds of the speed.
    """
    if config.architectures == ["CwmForCausalLM"]:
        config.architectures = ["LlamaForCausalLM"]
    return config


def _quiet(config: EngineConfig) -> None:
    """What vLLM reads from the environment of its process, set before it is imported."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    if config.eager:
        os.environ["TORCH_COMPILE_DISABLE"] = "1"  # a few helpers of vLLM would compile all the same, with g++


def _bind(config: EngineConfig) -> None:
    """Let the engine's process do the model's work as well, on the CPUs it was given.

    vLLM gives a CPU's model a process of its own to bind its threads: a third of an engine's start, and two processes
    that wait for each other in a loop. What it would bind them with does so for a child that inherits it, too; this
    process has read its own by now.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # else "uni" is overruled; an AsyncLLM has its process anyway
    if cpus := allowed(config.cores):
        places = f"{{{','.join(map(str, cpus))}}}"
        os.environ |= {"OMP_NUM_THREADS": str(len(cpus)), "OMP_PLACES": places, "OMP_PROC_BIND": "true"}


__all__ = ["Engine", "EngineConfig", "EngineError", "Greedy", "SampleError", "Sampled", "WeightsError"]
