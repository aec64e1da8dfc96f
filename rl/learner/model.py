"""The policy as the learner holds it: loading, log-probabilities of packed rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from rl.learner import attention
from rl.learner.memory import keep_freed
from rl.learner.packing import MicroBatch
from rollout_workers.clock import Clock

transformers_logging.disable_progress_bar()

HEAD_ELEMENTS = {"cpu": 1 << 24, "cuda": 1 << 28}
"""Logits held at a time: 64 MiB and 1 GiB in float32, of which a few copies are needed; a GPU wants large products."""

_FUSED = "RMSNorm", "MLP"
"""Ends of the names of modules that are many small operations on large tensors."""


@dataclass(frozen=True, slots=True)
class Forward:
    """Of every token that the policy sampled, given what precedes it in its row, else 0; all (T,), float32."""

    logp: Tensor
    entropy: Tensor
    """Of the distribution the token was drawn from, in nats; carries no gradient."""
    no_gradient: Tensor
    """1 where the loss has no gradient: clipped, masked, or without an advantage. 0 where there is no loss."""


def load(path: str, *, dtype: str, device: str, recompute: bool = False, fuse: bool = False) -> Any:
    """The model in training mode; with `recompute` it keeps a layer's input only, and computes the rest again.

    With `fuse` torch compiles what lies between the large matrix products, at the first pass. Raises OSError or
    ValueError for what is no model, or none that can be trained here.
    """
    keep_freed()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype), attn_implementation=attention.NAME)
    model = model.to(device).eval()
    _check_head(path, model)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # the engine, which sampled, drops nothing out
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if fuse:
        for module in model.modules():
            if type(module).__name__.endswith(_FUSED):
                module.compile(dynamic=True)
    return model.train()


def forward(model: Any, batch: MicroBatch, temperature: float) -> Forward:
    """log π(token_t | row before t) at `temperature` of the tokens whose mask is True, over packed rows."""
    hidden, places, chosen = _hidden(model, batch)
    head = model.get_output_embeddings()
    found = [_score(head, hidden[piece], chosen[piece], temperature) for piece in _pieces(head, hidden, None)]
    return _scatter(batch, places, [(*one, torch.zeros_like(one[0])) for one in found])


def backward(
    model: Any,
    batch: MicroBatch,
    temperature: float,
    loss: Callable[[Tensor, Tensor], Tensor],
    clock: Clock,
    *,
    first: Callable[[Tensor], None] | None = None,
    entropy: bool = True,
    head_elements: int | None = None,
) -> tuple[float, Forward]:
    """Add the loss's gradient to the parameters'. Returns the loss, and what `forward` does, without a graph.

    `loss` takes log-probabilities of some tokens and their places in the batch, (n,) both, to the sum of their losses.
    The head works on a piece of the tokens at a time, back as well as forth, and never holds more than `head_elements`
    logits (none: what suits the device); with a large vocabulary, a batch's would take more memory than all the rest.
    `first` sees all log-probabilities, (T,), before any loss is asked for, which costs the head once more. Without
    `entropy` that comes out as 0.
    """
    with clock.time("forward"):
        hidden, places, chosen = _hidden(model, batch)
    if first is not None:
        with clock.time("head"), torch.no_grad():
            head = model.get_output_embeddings()
            pieces = _pieces(head, hidden, head_elements)
            scored = [_score(head, hidden[piece], chosen[piece], temperature, entropy=False) for piece in pieces]
            first(_scatter(batch, places, [(logp, nothing, nothing) for logp, nothing in scored]).logp)
    head, gradient = model.get_output_embeddings(), torch.empty_like(hidden)
    total, found = hidden.new_zeros((), dtype=torch.float32), []
    with clock.time("head"):
        for piece in _pieces(head, hidden, head_elements):
            leaf = hidden[piece].detach().requires_grad_()
            logp, entropies = _score(head, leaf, chosen[piece], temperature, entropy=entropy)
            logp.retain_grad()
            part = loss(logp, places[piece])
            part.backward()  # type: ignore[no-untyped-call]
            gradient[piece] = cast(Tensor, leaf.grad)
            total += part.detach()
            found.append((logp.detach(), entropies, (cast(Tensor, logp.grad) == 0).float()))
    with clock.time("backward"):
        if found:
            hidden.backward(gradient)  # type: ignore[no-untyped-call]
    return total.item(), _scatter(batch, places, found)


def _hidden(model: Any, batch: MicroBatch) -> tuple[Tensor, Tensor, Tensor]:
    """What the head predicts the n tokens whose mask is True from, (n, D), their places, (n,), and they themselves."""
    device = next(model.parameters()).device
    tokens, positions, mask = (
        torch.from_numpy(one).to(device, non_blocking=True) for one in (batch.tokens, batch.positions, batch.mask)
    )
    places = (mask & (positions > 0)).nonzero().squeeze(-1)
    out = model.base_model(
        input_ids=tokens[None],
        position_ids=positions[None],
        use_cache=False,
        row_lengths=batch.row_lengths,
    )
    return out.last_hidden_state[0, places - 1], places, tokens[places]


def _pieces(head: Any, hidden: Tensor, elements: int | None) -> list[slice]:
    """Parts of the n hidden states whose logits are at most so many, or those of one."""
    size = max(1, (elements or HEAD_ELEMENTS[hidden.device.type]) // head.weight.shape[0])
    return [slice(start, start + size) for start in range(0, len(hidden), size)]


def _score(
    head: Any, hidden: Tensor, chosen: Tensor, temperature: float, *, entropy: bool = True
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the chosen tokens, and entropies; (n,) float32 both."""
    logits = head(hidden).float()
    if temperature != 1:
        logits = logits / temperature
    if not entropy:
        return -cross_entropy(logits, chosen, reduction="none"), logits.new_zeros(len(chosen))
    scores = torch.log_softmax(logits, dim=-1)
    with torch.no_grad():
        entropies = -(scores.exp() * scores).sum(-1)
    return scores.gather(-1, chosen[:, None]).squeeze(-1), entropies


def _scatter(batch: MicroBatch, places: Tensor, found: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Forward:
    """Piece by piece to (T,)."""
    nothing = torch.zeros(len(batch.tokens), device=places.device)
    if not found:
        return Forward(nothing, nothing, nothing)
    return Forward(*(nothing.scatter(0, places, torch.cat(part)) for part in zip(*found, strict=True)))


@torch.no_grad()
def _check_head(path: str, model: Any) -> None:
    """Refuse a model whose logits are more than a matrix times its last hidden states: we would compute others."""
    at = torch.arange(4, device=model.device)
    tokens = at[None] + 1  # an embedding of 0 would be padding's, which is 0 with any head
    options = {"position_ids": at[None], "row_lengths": (4,), "use_cache": False}
    head = model.get_output_embeddings()
    if head is None or not torch.equal(
        head(model.base_model(input_ids=tokens, **options).last_hidden_state),
        model(input_ids=tokens, **options).logits,
    ):
        raise ValueError(
            f"the model at {path} does more to its logits than multiply a matrix with the last hidden states "
            "(a cap or a scale, say): such a model cannot be trained here"
        )
