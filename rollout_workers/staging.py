"""Weights from a file, staged beside those in use and then taken. Runs inside vLLM's engine process."""

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol

import torch
from safetensors.torch import load_file
from torch import nn
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.model_executor.model_loader.reload.meta import materialize_meta_tensor, to_meta_tensor
from vllm.model_executor.model_loader.reload.sanitize import restore_layer_refs, sanitize_layer_refs
from vllm.platforms import current_platform

_PACKED: Final = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)


class StagedWeights:
    """Methods for vLLM's workers (`worker_extension_cls`): prepare new weights while sampling goes on, then take them.

    vLLM's weight-transfer interface loads in the pause. Here the pause holds what cannot be done beforehand.
    """

    vllm_config: VllmConfig
    model_runner: Any

    def stage_weights(self, path: str) -> None:
        """Begin to load a safetensors file that has every parameter under its Hugging Face name."""
        if not hasattr(self, "_staging"):
            model, config = self.model_runner.get_model(), self.vllm_config
            self._thread = ThreadPoolExecutor(1, "stage-weights")
            self._staging: Staging = Twin(model) if _is_plain(model, config) else Reload(model, config)
            self._names = frozenset[str]()
        self._loading = self._thread.submit(self._load, path)

    def _load(self, path: str) -> None:
        weights = load_file(path)
        names = frozenset(weights)
        if lacking := self._names - names:
            raise ValueError(f"it lacks {', '.join(sorted(lacking))}, which weights before it had")
        self._staging.load(weights)
        self._names = names

    def staged_weights(self) -> str | None:
        """None while they load; what went wrong, if anything, and then those in use are as they were."""
        if not self._loading.done():
            return None
        return repr(wrong) if (wrong := self._loading.exception()) else ""

    def take_staged_weights(self) -> None:
        """Sample from them; between two steps, while the scheduler is paused."""
        self._staging.take()


class Staging(Protocol):
    """Where new weights wait."""

    def load(self, weights: dict[str, torch.Tensor]) -> None:
        """In any thread. Raises what the model says of weights that do not fit it."""
        ...

    def take(self) -> None:
        """Put them to use."""
        ...


class Twin:
    """A second set of weights beside a model's own on a CPU, loaded and packed for its kernels; taking it is a swap.

    Of each layer there is a shallow copy, whose parameters are its own. It only loads: nothing runs through it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers: list[tuple[nn.Module, nn.Module]] = []
        self._parameters: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
        """By the identity of a live one, so that those which are tied stay so."""
        self._model: Any = self._copy(model)

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
        loaded = self._model.load_weights(weights.items())
        if lacking := dict(self._model.named_parameters()).keys() - loaded:
            raise ValueError(f"nothing in it is for {', '.join(sorted(lacking))}")
        for _, twin in self._layers:
            if isinstance(method := getattr(twin, "quant_method", None), _PACKED):
                weight = twin._parameters["weight"]
                method.process_weights_after_loading(twin)
                twin._parameters["weight"] = weight  # which packing took away; the next weights go there

    def take(self) -> None:
        """See `Staging`. What was in use is where the next weights are loaded to."""
        for live, fresh in self._parameters.values():
            if live.shape == fresh.shape:
                live.data, fresh.data = fresh.data, live.data
        for layer, twin in self._layers:
            if "cpu_linear" in vars(twin):
                layer.cpu_linear = twin.cpu_linear


class Reload:
    """vLLM's way for any model, layer by layer and in place: only reading the file comes before the pause."""

    def __init__(self, model: Any, config: VllmConfig) -> None:
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


def _is_plain(model: nn.Module, config: VllmConfig) -> bool:
    """Whether it runs on a CPU, as it is written, and all that is packed can be packed apart from it."""
    methods = (getattr(layer, "quant_method", None) for layer in model.modules())
    return (
        current_platform.is_cpu()
        and config.model_config.enforce_eager
        and all(isinstance(method, _PACKED) for method in methods if isinstance(method, QuantizeMethodBase))
    )
