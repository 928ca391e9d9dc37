"""How a prompt goes into a chat message as text and embeddings, and whether the server reads the right ids from it.

The server renders the message with a chat template and tokenises what comes out, with a placeholder where the embeddings are. The
same is done here with a copy of the tokenizer, and a layout counts only if it gives the ids of the plain prompt and nothing else: so
a document with a control string, a template that trims, or a tokenizer that treats text apart (as Llama-2's, which puts a space in
front) leads to another form, never to another prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from tokenizers import AddedToken, Tokenizer

from spring_rag.encoding import Encoded, encode
from spring_rag.errors import PromptError
from spring_rag.prompt import Message, Prompt, Slot, Text
from spring_rag.rendering import render
from spring_rag.templates import apply_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RAW = "spring-rag"
"""Name of a message whose text stands in the prompt as it is, on servers whose chat template knows it (`spring-rag serve`)."""

PLACEHOLDER = "<prompt_embeds>"
"""What vLLM writes where embeddings are, as a control token that it adds to its tokenizer."""

_PART: dict[str, Any] = {"type": "prompt_embeds"}


@dataclass(frozen=True, slots=True)
class Layout:
    """A prompt as messages for the server.

    Attributes:
        messages: OpenAI's; the embeddings' part has no data yet.
        embedded: the ids whose embeddings follow the virtual tokens in that part.
        before: the ids that the server must read before the part.
        after: the ids that it must read after the part.
        arguments: what the server's chat template must be given besides the messages.
    """

    messages: tuple[dict[str, Any], ...]
    embedded: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_raw(self) -> bool:
        """Whether the server must know messages that stand in the prompt as they are."""
        return self.messages[0].get("name") == RAW

    def filled(self, data: str) -> list[dict[str, Any]]:
        """The messages with the embeddings in their part."""
        return [
            {**message, "content": [part | {"data": data} if part == _PART else part for part in content]}
            if isinstance(content := message["content"], list)
            else message
            for message in self.messages
        ]

    def agrees(self, prompt_ids: list[int], virtual: int) -> bool:
        """Whether a server that read these ids read the prompt, with `virtual` virtual tokens."""
        first, last = len(self.before), len(prompt_ids) - len(self.after)
        return (
            tuple(prompt_ids[:first]) == self.before
            and tuple(prompt_ids[last:]) == self.after
            and last - first == virtual + len(self.embedded)
        )


class ServerTokenizer:
    """What a vLLM server does with text, done here.

    Args:
        tokenizer: the backbone's; only read.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        backend: Tokenizer = tokenizer.backend_tokenizer
        self._copy = Tokenizer.from_str(backend.to_str())
        self._copy.no_truncation()
        self._copy.no_padding()
        self._copy.encode_special_tokens = bool(getattr(tokenizer, "split_special_tokens", False))
        self._copy.add_special_tokens([AddedToken(PLACEHOLDER, special=True, normalized=False)])
        self._placeholder = cast(int, self._copy.token_to_id(PLACEHOLDER))
        start = backend.encode("a", add_special_tokens=True)
        lead = start.ids[: next((i for i, part in enumerate(start.sequence_ids) if part is not None), 0)]
        first = "".join(backend.id_to_token(one) or "" for one in lead)
        # A tokenizer that puts a space in front of its text alone, not behind a control token, needs one here.
        self._leads: tuple[str, ...] = (first, f"{first} ")

    def probe(self) -> Layout | None:
        """A raw layout to try a server with: a template that knows no such messages, or trims them, gives itself away."""
        prompt = Prompt(parts=(Text("[1] a \n\n", trusted=True), Slot(), Text("b", trusted=True)))
        return self.raw(prompt, encode(prompt, self._tokenizer))

    def raw(self, prompt: Prompt, encoded: Encoded) -> Layout | None:
        """The prompt in one message that the server's template writes as it is; None if the server would read other ids."""
        rendered = render(prompt, self._tokenizer)
        if rendered.slot is None:
            return None
        text = rendered.text[: rendered.slot]
        for lead in ("",) if rendered.chat else self._leads:
            if self._read(lead + text + PLACEHOLDER) == (encoded.context_ids, ()):
                message = {"role": "user", "name": RAW, "content": [*_text_parts(lead + text), dict(_PART)]}
                if not rendered.chat and lead != self._leads[0]:  # tried first from now on
                    self._leads = tuple(sorted(self._leads, key=lambda each: each != lead))
                return Layout((message,), encoded.suffix_ids, encoded.context_ids, ())
        return None

    def templated(self, prompt: Prompt, encoded: Encoded) -> Layout | None:
        """A chat in messages that the server lays out with the tokenizer's own template; None if it would read other ids."""
        if not prompt.messages or not prompt.has_slot:
            return None
        rendered = render(prompt, self._tokenizer)
        messages = [_message(message) for message in rendered.messages]
        try:
            text = apply_template(
                [
                    {**message, "content": [_shown(part) for part in message["content"]]}
                    for message in messages
                ],
                self._tokenizer,
                rendered.arguments,
                add_generation_prompt=True,
            )
        except PromptError:
            return None
        read = self._read(text)
        if read is None:
            return None
        before, after = read
        embedded = len(encoded.suffix_ids) - len(after)
        if before != encoded.context_ids or embedded < 0 or encoded.suffix_ids[embedded:] != after:
            return None
        return Layout(tuple(messages), encoded.suffix_ids[:embedded], before, after, rendered.arguments)

    def _read(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """The ids before and after the placeholder; None where user text has written another."""
        ids = self._copy.encode(text, add_special_tokens=False).ids
        if ids.count(self._placeholder) != 1:
            return None
        place = ids.index(self._placeholder)
        return tuple(ids[:place]), tuple(ids[place + 1 :])


def _message(message: Message) -> dict[str, Any]:
    """The message with the embeddings' part in the slot's place; the text behind the slot goes into the embeddings."""
    before = ""
    for part in message.parts:
        if isinstance(part, Slot):
            return {"role": message.role, "content": [*_text_parts(before), dict(_PART)]}
        before += part.text
    return {"role": message.role, "content": [{"type": "text", "text": before}]}


def _text_parts(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text}] if text else []


def _shown(part: dict[str, Any]) -> dict[str, Any]:
    return {"type": "text", "text": PLACEHOLDER} if part == _PART else part
