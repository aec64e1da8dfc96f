"""A model from nothing: CWM's architecture in miniature, with a tokenizer, as an ordinary Hugging Face directory."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from verifiers.errors import UserError


class InitModelError(UserError):
    """The model cannot be made."""


TRACE_TOKENS = (
    "<|trace_context_start|>",
    "<|frame_sep|>",
    "<|call_sep|>",
    "<|line_sep|>",
    "<|return_sep|>",
    "<|exception_sep|>",
    "<|action_sep|>",
    "<|arg_sep|>",
)
"""CWM's world-model trace tokens (arXiv 2510.02387: a trace is the source, then frames of event, locals and line)."""

SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|pad|>",
    "<think>",
    "</think>",
    *TRACE_TOKENS,
)

_PHRASE = re.compile(r"[^\d\n]*\n+|[^\d\n]+")

_NAMED_TOKENS = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|pad|>"}

# Roles stand verbatim in the header, so `tool: bash` needs no token of its own.
CHAT_TEMPLATE = (
    "<|begin_of_text|>"
    "{% for message in messages %}"
    "<|start_header_id|>{{ message.role }}<|end_header_id|>\n{{ message.content }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n{% endif %}"
)


class InitModel(BaseModel):
    """Shape of a model that is made from nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hidden_size: int = Field(128, ge=16, description="Width of the residual stream.")
    layers: int = Field(4, ge=1, description="Decoder layers; every fourth is global, the others slide a window.")
    heads: int = Field(4, ge=1, description="Attention heads.")
    kv_heads: int = Field(2, ge=1, description="Key and value heads (grouped-query attention).")
    intermediate_size: int = Field(384, ge=16, description="Width of the SwiGLU feed-forward part.")
    sliding_window: int = Field(64, ge=8, description="Tokens a sliding layer looks back.")
    context: int = Field(4096, ge=64, description="Longest sequence, in tokens.")
    vocab_size: int = Field(512, ge=256 + len(SPECIAL_TOKENS), description="Bytes, special tokens and learnt merges.")
    initializer_range: float = Field(0.05, gt=0, description="Standard deviation of the initial weights.")
    phrases: int = Field(0, ge=0, description="Of the vocabulary: whole phrases, those that save the most tokens.")
    corpus: tuple[str, ...] = Field((), description="Text files to learn merges from; none gives plain bytes.")
    seed: int = Field(0, description="Seed of the weights. Same seed, same files.")

    @model_validator(mode="after")
    def _divides(self) -> "InitModel":
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of twice the {self.heads} heads")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} must be a multiple of the {self.kv_heads} kv_heads")
        if self.vocab_size - self.phrases < 256 + len(SPECIAL_TOKENS):
            raise ValueError(f"vocab_size {self.vocab_size} leaves no room for {self.phrases} phrases beside the bytes")
        return self


def build_tokenizer(corpus: Sequence[Path], vocab_size: int, texts: Iterable[str] = (), phrases: int = 0) -> Any:
    """A byte-level BPE with single digits, chat roles and trace tokens, learnt from files and from `texts`.

    Merges end at words; `phrases` of the vocabulary are longer, see `_phrases`. Raises OSError for a file it cannot
    read.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    # A merge never crosses a word, a digit or a line: what a task changes stays visible in the tokens.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}|\n+| ?[^\s\p{L}\p{N}]+|\s+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - phrases,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    everything = list(chain(_lines(corpus), texts))
    whole = _phrases(everything, phrases, lambda text: len(tokenizer.pre_tokenizer.pre_tokenize_str(text)))
    rest = re.compile("|".join(map(re.escape, sorted(whole, key=len, reverse=True))) or r"\Z")
    tokenizer.train_from_iterator((piece for text in everything for piece in rest.split(text)), trainer)
    tokenizer.add_tokens([AddedToken(phrase, normalized=False, special=False) for phrase in whole])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **_NAMED_TOKENS,
        additional_special_tokens=[token for token in SPECIAL_TOKENS if token not in _NAMED_TOKENS.values()],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def init_model(shape: InitModel, target: Path, texts: Iterable[str] = ()) -> int:
    """Write the directory and return the number of parameters. The tokenizer is learnt from `texts` as well.

    Raises InitModelError where `target` exists or cannot be made, or a corpus cannot be read.
    """
    import torch
    from transformers import CwmConfig, CwmForCausalLM, GenerationConfig
    from transformers.utils import logging as transformers_logging

    if target.exists():
        raise InitModelError(f"{target} exists: choose another path, or remove it")
    try:
        tokenizer = build_tokenizer([Path(path) for path in shape.corpus], shape.vocab_size, texts, shape.phrases)
        target.mkdir(parents=True)
    except OSError as error:
        raise InitModelError(f"{error.filename}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InitModelError(f"the corpus ({', '.join(shape.corpus)}) is not UTF-8: {error}") from error
    config = CwmConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.hidden_size // shape.heads,
        max_position_embeddings=shape.context,
        sliding_window=shape.sliding_window,
        initializer_range=shape.initializer_range,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(shape.seed)
        model = CwmForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    transformers_logging.disable_progress_bar()
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return sum(parameter.numel() for parameter in model.parameters())


def digest(directory: Path) -> str:
    """SHA-256 over names and contents of a model directory's files, to tell two models apart."""
    total = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        total.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def pieces(text: str) -> Iterator[str]:
    """What stands between special tokens, on whose spelling no merge should be spent."""
    return filter(None, re.split("|".join(map(re.escape, SPECIAL_TOKENS)), text))


def _phrases(texts: Iterable[str], count: int, words: Callable[[str], int]) -> list[str]:
    """What stands between two digits, or on a line, and saves the most if it is one token instead of its words.

    What repeats as often as that is markup and boilerplate: all that a task changes is left to the merges.
    """
    seen = Counter(piece for text in texts for piece in _PHRASE.findall(text)) if count else Counter[str]()
    saved = {piece: times * (words(piece) - 1) for piece, times in seen.items()}
    return sorted(filter(saved.__getitem__, saved), key=lambda piece: (-saved[piece], piece))[:count]


def _lines(corpus: Sequence[Path]) -> Iterator[str]:
    for path in corpus:
        with path.open(encoding="utf-8") as lines:
            yield from lines
