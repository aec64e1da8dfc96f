"""Weights that vLLM's own transports carry, and what we add to every process of vLLM's.

`register` is called by vLLM in each of them (entry-point group `vllm.general_plugins`). It ties the engine process to
its parent: a worker that is killed leaves no engine behind.
"""

import multiprocessing
import os
import threading
import time
from typing import Any

import torch
from vllm.config import WeightTransferConfig
from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.base import ModuleSource
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
from vllm.utils.network_utils import get_ip, get_open_port


def transfer_config(transport: str) -> WeightTransferConfig | None:
    """vLLM's configuration for a transport of its own, `nccl`; none for ours, all of which end in a file."""
    return WeightTransferConfig(backend=transport) if transport == "nccl" else None


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
    if (parent := multiprocessing.parent_process()) is not None and parent.pid is not None:
        threading.Thread(target=_die_with, args=(parent.pid,), name="die-with-parent", daemon=True).start()


def _die_with(parent: int) -> None:
    # PR_SET_PDEATHSIG would follow the parent's *thread*, and an actor's threads come and go.
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
