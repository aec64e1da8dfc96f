"""Messages to tokens and back. What the policy sampled is never decoded and encoded again.

A chat template is rendered once with a placeholder for every content; what lies between placeholders is the template's
own text and is encoded with special tokens, the contents are encoded without them. No content can forge a role.
What demonstrations let the policy say may hold the special tokens that it can sample, but for the template's own.
"""

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from verifiers.errors import UserError
from verifiers.reply import THINK_END, asks_to_reason
from verifiers.task import Message

THINK = "<think>"
_FRAMES = 1024
"""Templates rendered for a sequence of roles that are remembered: some MB with many turns."""

# Private-use characters: no template of anybody's writes or strips them.
_SLOT = "\ue000{}\ue001"
_SLOTS = re.compile("\ue000(\\d+)\ue001")


class RendererError(UserError):
    """A tokenizer or template that cannot be used."""


class Renderer:
    """Renders for one tokenizer.

    With `reasoning`, replies open inside `<think>` where the system message asks for it (`verifiers.reply`).
    """

    def __init__(self, tokenizer: Any, *, vocab_size: int, reasoning: bool = True) -> None:
        if not tokenizer.chat_template:
            raise RendererError(f"the tokenizer of {tokenizer.name_or_path} has no chat template")
        if len(tokenizer) > vocab_size:
            raise RendererError(
                f"the tokenizer of {tokenizer.name_or_path} has {len(tokenizer)} tokens, its model only {vocab_size}; "
                "take the tokenizer that was saved with the model"
            )
        self._tokenizer = tokenizer
        self.vocab_size = vocab_size
        """Of the model; its tokenizer may have fewer tokens."""
        self._reasoning = reasoning
        self._frames: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._encoded: dict[str, list[int]] = {}
        self._tool_role = self._find_tool_role()
        self.stop_ids = _stop_ids(tokenizer)
        if not self.stop_ids:
            raise RendererError(f"the tokenizer of {tokenizer.name_or_path} names no end-of-turn token")

    @classmethod
    def load(cls, model: str, *, reasoning: bool = True) -> "Renderer":
        """The renderer of a model directory or hub name. Raises RendererError, with what is wrong with it."""
        from transformers import AutoConfig, AutoTokenizer

        if model.startswith(("/", ".")) and not (Path(model) / "config.json").is_file():
            raise RendererError(f"there is no model at {model}: it has no config.json")
        try:
            tokenizer = AutoTokenizer.from_pretrained(model)
            config = AutoConfig.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise RendererError(f"no model with a tokenizer at {model}: {str(error).splitlines()[0]}") from error
        return cls(tokenizer, vocab_size=config.vocab_size, reasoning=reasoning)

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Tokens of a conversation that waits for the policy's reply."""
        return self._encode(self._frame(messages), messages)

    def bridge(self, messages: Sequence[Message], new: Sequence[Message], *, ended: bool) -> tuple[int, ...]:
        """Tokens between the policy's last reply (the last of `messages`) and its next one, `new` messages between.

        `ended` says that the reply's own end token was sampled; if not, it is added here, as context.
        """
        frame = self._frame([*messages, *new])[len(messages) :]
        if ended:
            for token in self.stop_ids:
                frame[0] = frame[0].removeprefix(self._tokenizer.convert_ids_to_tokens(token))
        return self._encode(frame, new)

    def demonstration(self, messages: Sequence[Message]) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """Tokens of a conversation as an episode would have them, and True on those that the policy writes.

        That is its replies, each with an end token; what follows the last one is left out. The special tokens that a
        policy may write are encoded as such in its replies, see `_writable`.
        """
        tokens: list[int] = []
        mask: list[bool] = []
        begin = 0
        for at in (at for at, message in enumerate(messages) if message.role == "assistant"):
            before = messages[begin:at]
            context = self.bridge(messages[:begin], before, ended=True) if begin else self.prompt(before)
            reply = list(self._reply(messages[at].content, opened=self._opens(messages)))
            tokens += [*context, *reply]
            mask += [False] * len(context) + [True] * len(reply)
            begin = at + 1
        return tuple(tokens), tuple(mask)

    def decode(self, tokens: Sequence[int]) -> str:
        """A reply's text, special tokens kept, its end token left out."""
        if tokens and tokens[-1] in self.stop_ids:
            tokens = tokens[:-1]
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def content(self, text: str) -> list[int]:
        """Tokens of text that somebody else wrote; special tokens in it are plain characters."""
        text = text.encode("utf-8", "replace").decode()  # JSON may hold halves of surrogate pairs
        if self._plain is not None:
            return list(self._plain.encode(text, add_special_tokens=False).ids)
        return list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    @cached_property
    def _marks_of_the_template(self) -> set[str]:
        """Tokens that were added, and not as special ones, and that the template's source has: `<tool_call>`, say."""
        added = self._tokenizer.added_tokens_decoder.values()
        source = str(self._tokenizer.chat_template)  # which is indented: runs of blanks are no marks
        return {one.content for one in added if not one.special and not one.content.isspace() and one.content in source}

    @cached_property
    def _plain(self) -> Any:
        """A tokenizer to which those are characters, too. None where there are none, or the tokenizer is a slow one."""
        if not self._marks_of_the_template or not self._tokenizer.is_fast:
            return None
        from tokenizers import Tokenizer

        whole = json.loads(self._tokenizer.backend_tokenizer.to_str())
        for token in whole["added_tokens"]:
            token["special"] |= token["content"] in self._marks_of_the_template
        plain = Tokenizer.from_str(json.dumps(whole))
        plain.encode_special_tokens = True
        plain.no_truncation()
        plain.no_padding()
        return plain

    def cut(self, text: str, limit: int) -> str:
        """`text`, or its beginning and end round a mark if it has more than `limit` tokens."""
        tokens = self.content(text)
        if len(tokens) <= limit:
            return text
        mark = f"\n[... {len(tokens)} tokens, cut ...]\n"
        half = (limit - len(self.content(mark))) // 2
        while half > 0:
            head, tail = self._tokenizer.decode(tokens[:half]), self._tokenizer.decode(tokens[-half:])
            # A cut inside a character makes a longer one of its halves, so look again.
            if len(self.content(cut := f"{head}{mark}{tail}")) <= limit:
                return cut
            half -= 1
        return str(self._tokenizer.decode(tokens[:limit])).rstrip("\ufffd")  # what is left of a character cut in two

    def _opens(self, messages: Sequence[Message]) -> bool:
        """Whether replies open inside `<think>`."""
        return self._reasoning and asks_to_reason(messages)

    def _reply(self, text: str, *, opened: bool) -> Iterator[int]:
        """Tokens that a policy samples to say `text`, its end token included."""
        if opened and text.startswith(THINK):
            text = text.removeprefix(THINK).removeprefix("\n")
        for piece in self._marks.split(text):
            if piece in self._writable:
                yield self._writable[piece]
            elif piece:
                yield from self.content(piece)
        yield self.stop_ids[0]

    @cached_property
    def _writable(self) -> dict[str, int]:
        """Tokens with a meaning that may stand in a reply: none that the template writes, or that ends a text."""
        talk = [Message("user", ""), Message("assistant", ""), Message("tool: x", "")]
        own = {self._tokenizer.bos_token_id, self._tokenizer.pad_token_id, *self.stop_ids}
        for messages in (talk, [Message("system", ""), *talk]):
            try:
                own.update(token for text in self._frame(messages) for token in self._template(text))
            except RendererError:  # a template without system messages
                continue
        added = self._tokenizer.added_tokens_decoder.items()
        return {
            token.content: number
            for number, token in added
            if (token.special or token.content in self._marks_of_the_template)
            and (number not in own or token.content in (THINK, THINK_END))
        }

    @cached_property
    def _marks(self) -> re.Pattern[str]:
        """Cuts a text at the tokens of `_writable`, which become pieces of their own."""
        longest_first = sorted(self._writable, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first))})" if longest_first else "(?!)")

    def _frame(self, messages: Sequence[Message]) -> list[str]:
        """The template's own text before, between and after the contents of n messages: n + 1 strings."""
        roles = tuple(self._tool_role or m.role if m.role.startswith("tool: ") else m.role for m in messages)
        if roles not in self._frames:
            if len(self._frames) >= _FRAMES:
                self._frames.clear()  # an episode of many turns has a frame for every one of them
            self._frames[roles] = self._rendered(roles)
        *texts, last = self._frames[roles]
        return [*texts, f"{last}{THINK}\n" if self._opens(messages) else last]

    def _rendered(self, roles: Sequence[str]) -> tuple[str, ...]:
        slots = [{"role": role, "content": _SLOT.format(i)} for i, role in enumerate(roles)]
        try:
            text = self._tokenizer.apply_chat_template(slots, tokenize=False, add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise RendererError(f"the chat template of {self._tokenizer.name_or_path} fails: {error}") from error
        parts = _SLOTS.split(text)
        if parts[1::2] != [str(i) for i in range(len(roles))]:
            raise RendererError(f"the chat template of {self._tokenizer.name_or_path} drops, repeats or moves messages")
        return tuple(parts[::2])

    def _find_tool_role(self) -> str | None:
        """None where the template knows `tool: NAME` as it stands, else what it calls a tool, `user` at the worst."""
        talk = [Message("user", ""), Message("assistant", ""), Message("tool: x", "")]
        for role in (None, "tool", "user"):
            self._tool_role = role
            try:
                self._frame(talk)
            except RendererError as error:
                last = error
            else:
                return role
        raise RendererError(f"{last}: it cannot carry a conversation with a tool's output") from last

    def _encode(self, frame: Sequence[str], contents: Sequence[Message]) -> tuple[int, ...]:
        tokens = self._template(frame[0])
        for text, message in zip(frame[1:], contents, strict=True):
            tokens += self.content(message.content) + self._template(text)
        return tuple(tokens)

    def _template(self, text: str) -> list[int]:
        """Tokens of the template's own text. There are few such texts, so each is encoded once."""
        if text not in self._encoded:
            encoded = self._tokenizer(text, add_special_tokens=False, split_special_tokens=False)
            self._encoded[text] = list(encoded["input_ids"])
        return [*self._encoded[text]]


def _stop_ids(tokenizer: Any) -> tuple[int, ...]:
    """The end-of-turn token; a template may end turns with another token than the one that ends texts."""
    return () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
