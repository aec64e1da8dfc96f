"""Weights from a file, staged beside those in use and then taken. Runs inside vLLM's engine process."""

import copy
import logging
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event
from typing import Any, Final, Protocol

import torch
from torch import nn
from torch.nn.functional import linear
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.model_executor.model_loader.reload.meta import materialize_meta_tensor, to_meta_tensor
from vllm.model_executor.model_loader.reload.sanitize import restore_layer_refs, sanitize_layer_refs
from vllm.platforms import current_platform

from rollout_workers.mapped import joined, mapped

_log = logging.getLogger(__name__)
_AT_ONCE_SECONDS: Final = 0.02
"""So long may sampling wait for weights to be loaded: it would wait for a step of its own before it could ask."""
_PACKED: Final = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)


class StagedWeights:
    """Methods for vLLM's workers (`worker_extension_cls`): prepare new weights while sampling goes on, then take them.

    vLLM's weight-transfer interface loads in the pause. Here the pause holds what cannot be done beforehand.
    """

    vllm_config: VllmConfig
    model_runner: Any

    def stage_weights(self, path: str) -> str | None:
        """Begin to load a safetensors file that has every parameter under its Hugging Face name; `staged_weights`."""
        if not hasattr(self, "_staging"):
            model, config = self.model_runner.get_model(), self.vllm_config
            self._thread = ThreadPoolExecutor(1, "stage-weights")
            self._staging: Staging = Twin(model) if _is_plain(model, config) else Reload(model, config)
            self._names = frozenset[str]()
        self._staging.hurry.set()
        self._loading = self._thread.submit(self._load, Path(path))
        wait([self._loading], _AT_ONCE_SECONDS)
        return self.staged_weights()

    def _load(self, path: Path) -> None:
        self._staging.hurry.clear()
        try:
            weights = mapped(path)
            names = frozenset(weights)
            if lacking := self._names - names:
                raise ValueError(f"it lacks {', '.join(sorted(lacking))}, which weights before it had")
            self._staging.load(weights)
        except BaseException:
            self._settle()  # those in use stay, and settling them was broken off for these
            raise
        self._names = names

    def staged_weights(self) -> str | None:
        """None while they load; what went wrong, if anything, and then those in use are as they were."""
        if not self._loading.done():
            return None
        return repr(wrong) if (wrong := self._loading.exception()) else ""

    def take_staged_weights(self) -> None:
        """Sample from them; between two steps, while the scheduler is paused."""
        self._staging.take()
        self._settle()

    def _settle(self) -> None:
        self._thread.submit(self._staging.settle).add_done_callback(_complain)


def _complain(settled: Future[None]) -> None:
    if wrong := settled.exception():
        _log.error("weights could not be packed, and sampling goes on without that, slower: %r", wrong)


class Staging(Protocol):
    """Where new weights wait."""

    hurry: Event
    """Set when `settle` is to end, as newer weights wait."""

    def load(self, weights: dict[str, torch.Tensor]) -> None:
        """In any thread. Raises what the model says of weights that do not fit it."""
        ...

    def take(self) -> None:
        """Make the loaded weights those that are sampled from."""
        ...

    def settle(self) -> None:
        """Do what makes sampling faster and need not precede it, in any thread, while sampling goes on."""
        ...


class Twin:
    """A second set of weights beside a model's own on a CPU; taking it is a swap.

    Of each layer there is a shallow copy, whose parameters are its own; nothing runs through it. The first weights go
    through vLLM's loader. If that put every parameter together from whole tensors of the file, later files of the same
    names and shapes are used as they lie, and only what is no neighbour there is copied together. Packed for the CPU's
    kernels they are once they are in use.
    """

    def __init__(self, model: nn.Module) -> None:
        self.hurry = Event()
        self._layers: list[tuple[Any, Any]] = []
        self._parameters: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
        """By the identity of a live one, so that those which are tied stay so."""
        self._model: Any = self._copy(model)
        self._sources: dict[int, tuple[str, ...]] | None = None
        """What of a file each parameter is; empty where it is not so simple, none before the first file."""
        self._known: dict[str, tuple[torch.Size, torch.dtype]] = {}
        self._before: list[torch.Tensor] = []
        self._unpacked: list[tuple[Any, Any]] = []

    def _copy(self, layer: nn.Module) -> nn.Module:
        twin = copy.copy(layer)
        twin._modules = {name: child and self._copy(child) for name, child in layer._modules.items()}
        twin._parameters = {
            name: None if live is None else self._fresh(layer, twin, name, live)
            for name, live in layer._parameters.items()
        }
        self._layers.append((layer, twin))
        return twin

    def _fresh(self, layer: nn.Module, twin: nn.Module, name: str, live: nn.Parameter) -> nn.Parameter:
        if id(live) not in self._parameters:
            # A packed layer gave its weight away; vLLM remembers how it was before, and its loader.
            before = get_layerwise_info(layer).restore_metadata[0].get(name)
            shape = sanitize_layer_refs(to_meta_tensor(live), layer) if before is None else before
            fresh = restore_layer_refs(materialize_meta_tensor(shape), twin)
            self._parameters[id(live)] = live, fresh
        return self._parameters[id(live)][1]

    @torch.inference_mode()
    def load(self, weights: dict[str, torch.Tensor]) -> None:
        """See `Staging`."""
        known = {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()}
        if self._sources and known == self._known:
            for key, names in self._sources.items():
                self._parameters[key][1].data = joined([weights[name] for name in names])
            return
        for _, fresh in self._parameters.values():
            fresh.data = torch.empty(fresh.shape, dtype=fresh.dtype)  # the memory before it is being sampled from
        loaded = self._model.load_weights(weights.items())
        if lacking := dict(self._model.named_parameters()).keys() - loaded:
            raise ValueError(f"nothing in it is for {', '.join(sorted(lacking))}")
        if self._sources is None:
            self._sources, self._known = self._found(weights), known

    def _found(self, weights: dict[str, torch.Tensor]) -> dict[int, tuple[str, ...]]:
        """What of these weights each parameter was just loaded from, or nothing if any holds something else."""
        fused: dict[str, list[str]] = getattr(self._model, "packed_modules_mapping", {})
        keys = {id(fresh): key for key, (_, fresh) in self._parameters.items()}
        found = {}
        for name, fresh in self._model.named_parameters():
            *above, module, leaf = name.split(".")
            names = tuple(".".join((*above, part, leaf)) for part in fused.get(module, [module]))
            parts = [weights[one] for one in names if one in weights]
            if len(parts) < len(names) or not _is(fresh, parts):
                return {}
            found[keys[id(fresh)]] = names
        return found if len(found) == len(self._parameters) else {}

    def take(self) -> None:
        """See `Staging`."""
        self._before = [live.data for live, _ in self._parameters.values()]  # giving memory back takes time
        for live, fresh in self._parameters.values():
            live.data = fresh.data
        self._unpacked = [(layer, twin) for layer, twin in self._layers if _method(layer)]
        for layer, _ in self._unpacked:
            layer.cpu_linear = _multiply

    @torch.inference_mode()
    def settle(self) -> None:
        """See `Staging`: pack them layer by layer, for the kernels that the CPU has for such weights."""
        self._before = []
        while self._unpacked and not self.hurry.is_set():
            layer, twin = self._unpacked[-1]
            layer.cpu_linear = _packed(layer, twin)  # one assignment: a step may be running through it
            self._unpacked.pop()


def _multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """By weights that are not packed; with those that are, a kernel of vLLM's wants biases in float32."""
    return linear(x, weight, None if bias is None else bias.to(x.dtype))


def _method(layer: Any) -> QuantizeMethodBase | None:
    """What packs this layer's weight, if anything does."""
    method = getattr(layer, "quant_method", None)
    return method if isinstance(method, _PACKED) else None


def _packed(layer: Any, twin: Any) -> Any:
    """The function that multiplies with a layer's weights, packed; they themselves stay as they are."""
    own = dict(twin._parameters)
    for name, parameter in own.items():
        if parameter is not None:
            parameter.data = layer._parameters[name].data  # the twin's may be newer ones by now, or half of them
    twin.quant_method.process_weights_after_loading(twin)
    multiply, bias = twin.cpu_linear, twin._parameters.get("bias")
    converted = bias.data if bias is not None and bias.dtype != layer.bias.dtype else None
    twin._parameters.update(own)
    if converted is None:
        return multiply
    return lambda x, weight, bias: multiply(x, weight, None if bias is None else converted)


def _is(fresh: torch.Tensor, parts: list[torch.Tensor]) -> bool:
    """Whether a parameter is these parts below each other, bit for bit."""
    if len({part.shape[1:] for part in parts}) > 1:
        return False
    whole = joined(parts)
    return whole.shape == fresh.shape and whole.dtype == fresh.dtype and torch.equal(whole, fresh)


class Reload:
    """vLLM's way for any model, layer by layer and in place: only a look at the file comes before the pause."""

    def __init__(self, model: Any, config: VllmConfig) -> None:
        self.hurry = Event()
        self._model, self._config = model, config
        self._weights: dict[str, torch.Tensor] = {}

    def load(self, weights: dict[str, torch.Tensor]) -> None:
        """See `Staging`."""
        self._weights = weights
        if self._config.model_config.hf_config.tie_word_embeddings:
            # A packed head may have a copy of its own, so a tied one has to be loaded by name as well.
            self._weights.setdefault("lm_head.weight", self._weights["model.embed_tokens.weight"])

    def take(self) -> None:
        """See `Staging`."""
        with set_current_vllm_config(self._config):
            initialize_layerwise_reload(self._model)
            self._model.load_weights(self._weights.items())
            finalize_layerwise_reload(self._model, self._config.model_config)
        self._weights = {}
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def settle(self) -> None:
        """See `Staging`: all was done."""


def _is_plain(model: nn.Module, config: VllmConfig) -> bool:
    """Whether it runs on a CPU, as it is written, and packing only ever replaces how a layer multiplies."""
    layers = [one for one in model.modules() if isinstance(getattr(one, "quant_method", None), QuantizeMethodBase)]
    # What is skipped belongs to an attention that derives more from its weight once that is loaded.
    return (
        current_platform.is_cpu()
        and config.model_config.enforce_eager
        and all(
            _method(one) and "cpu_linear" in vars(one) and not hasattr(one, "_cpu_skip_gemm_dispatch") for one in layers
        )
    )
