"""Our weight transport for one host, behind vLLM's weight-transfer interface. Runs inside vLLM's engine process.

`register` is called by vLLM in every process of its own (entry-point group `vllm.general_plugins`). Beside making the
transport known it ties the engine process to its parent: a worker that is killed leaves no engine behind.
"""

import multiprocessing
import os
import threading
import time
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file
from vllm.config import WeightTransferConfig
from vllm.distributed.weight_transfer import WeightTransferEngineFactory, WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.base import (
    ModuleSource,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.utils.network_utils import get_ip, get_open_port

BACKEND = "cwm_rl_file"


@dataclass
class FileInitInfo(WeightTransferInitInfo):
    """Nothing to agree on beforehand."""


@dataclass
class FileUpdateInfo(WeightTransferUpdateInfo):
    """Path of a safetensors file with every parameter under its Hugging Face name."""

    path: str


class FileWeightTransferEngine(WeightTransferEngine[FileInitInfo, FileUpdateInfo]):
    """Loads a file, usually in shared memory. Layer by layer, because CPU linear layers are kept pre-packed."""

    init_info_cls = FileInitInfo
    update_info_cls = FileUpdateInfo

    def init_transfer_engine(self, init_info: FileInitInfo) -> None:
        """Nothing to connect."""

    def start_weight_update(self) -> None:
        """Make the layers take checkpoint-shaped tensors again."""
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: FileUpdateInfo) -> None:
        """Raises OSError or SafetensorError for a file that cannot be read."""
        weights = load_file(update_info.path, device=str(self.device))
        if self.model_config.hf_config.tie_word_embeddings:
            # A CPU head keeps a packed copy of its own, so a tied one has to be loaded by name as well.
            weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
        self.model.load_weights(weights.items())

    def update_weights(self, update_info: dict[str, object]) -> None:
        """As the base class, less the accelerator's synchronisation where there is no accelerator."""
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def finish_weight_update(self) -> None:
        """Pack the layers again."""
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Nothing to release."""


def transfer_config(transport: str) -> WeightTransferConfig:
    """vLLM's configuration for a transport of ours, all of which end in a file, or for one of its own: `nccl`."""
    return WeightTransferConfig(backend=BACKEND if transport in ("file", "ray") else transport)


def nccl_sender(model: torch.nn.Module, client: Any, engine_ranks: int) -> Any:
    """vLLM's NCCL sender, joined with the engines behind `client`; `send_weights()` broadcasts all parameters.

    `client` has the methods of vLLM's `VLLMWeightSyncClient`; `engine_ranks` GPUs listen. Not yet run on a GPU.
    """
    info = NCCLTrainerInitInfo(
        master_address=get_ip(), master_port=get_open_port(), world_size=1 + engine_ranks, rank=0
    )
    return WeightTransferTrainerFactory.trainer_init(info, client=client, source=ModuleSource(model))


def register() -> None:
    """Called by vLLM, perhaps more than once in a process."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, FileWeightTransferEngine)
    if (parent := multiprocessing.parent_process()) is not None and parent.pid is not None:
        threading.Thread(target=_die_with, args=(parent.pid,), name="die-with-parent", daemon=True).start()


def _die_with(parent: int) -> None:
    # PR_SET_PDEATHSIG would follow the parent's *thread*, and an actor's threads come and go.
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
