"""The policy as the learner holds it: loading, log-probabilities of packed rows, weights to and from files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from rl.learner import attention
from rl.learner.memory import keep_freed
from rl.learner.packing import MicroBatch
from rollout_workers.weights import replacing

transformers_logging.disable_progress_bar()


@dataclass(frozen=True, slots=True)
class Forward:
    """Of every token that the policy sampled, given what precedes it in its row, else 0; both (T,), float32."""

    logp: Tensor
    entropy: Tensor
    """Of the distribution the token was drawn from, in nats; carries no gradient."""


def load(path: str, *, dtype: str, device: str) -> Any:
    """The model in training mode. Raises OSError or ValueError for what is no model."""
    keep_freed()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype), attn_implementation=attention.NAME)
    return model.to(device).train()


def forward(model: Any, batch: MicroBatch, temperature: float) -> Forward:
    """log π(token_t | row before t) at `temperature` of the tokens whose mask is True, over packed rows."""
    logits, targets, chosen = _policy_logits(model, batch)
    scores = torch.log_softmax(logits.float() / temperature, dim=-1)
    logp = scores.gather(-1, chosen[:, None]).squeeze(-1)
    with torch.no_grad():
        entropy = -(scores.exp() * scores).sum(-1)
    nothing = logp.new_zeros(len(batch.tokens))
    return Forward(nothing.scatter(0, targets, logp), nothing.scatter(0, targets, entropy))


def policy_logp(model: Any, batch: MicroBatch) -> Tensor:
    """log π(token_t | row before t) at temperature 1 of the n tokens whose mask is True; (n,) float32."""
    logits, _, chosen = _policy_logits(model, batch)
    return -cross_entropy(logits.float(), chosen, reduction="none")


def _policy_logits(model: Any, batch: MicroBatch) -> tuple[Tensor, Tensor, Tensor]:
    """What predicts the n tokens whose mask is True, (n, V), their places, (n,), and they themselves, (n,).

    The head runs for those n alone: with a large vocabulary it is most of the work.
    """
    tokens, positions = _inputs(model, batch)
    mask = torch.from_numpy(batch.mask).to(tokens.device)
    targets = (mask & (positions > 0)).nonzero().squeeze(-1)
    logits = _logits(model, batch, tokens, positions, logits_to_keep=targets - 1)
    return logits, targets, tokens[targets]


def _inputs(model: Any, batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """Tokens and positions, both (T,), where the model is."""
    device = next(model.parameters()).device
    return torch.from_numpy(batch.tokens).to(device), torch.from_numpy(batch.positions).to(device)


def _logits(model: Any, batch: MicroBatch, tokens: Tensor, positions: Tensor, **options: Any) -> Tensor:
    """(T, V), or (n, V) at the n positions of `logits_to_keep`."""
    out = model(
        input_ids=tokens[None],
        position_ids=positions[None],
        use_cache=False,
        positions=positions,
        row_lengths=batch.row_lengths,
        **options,
    )
    logits: Tensor = out.logits[0]
    return logits


def write_weights(model: Any, path: Path) -> None:
    """All parameters under their Hugging Face names, whole or not at all. A head tied to the embedding is left out."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    with replacing(path) as temporary:
        save_file(state, temporary)


def read_weights(model: Any, path: Path) -> None:
    """The other way. Raises OSError, or RuntimeError where names or shapes differ."""
    state = load_file(path)
    if model.config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
