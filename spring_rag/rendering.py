"""Prompt → one text, with the slot's place in it and the ranges that came from users.

A chat is rendered by the tokenizer's own chat template. Templates trim contents, repeat them, move them or merge one into
another, so where a content lies is not searched for (a user could write what the template writes) but found out: the chat
is rendered again with an unguessable probe in the content's place.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from spring_rag.calls import begun_call, check_takes_tools, with_calls_written
from spring_rag.errors import PromptError
from spring_rag.prompt import Message, Part, Prompt, Slot, Text
from spring_rag.reasoning import quieting_word
from spring_rag.templates import apply_template, template_arguments
from spring_rag.values import replaced, strings_of, where_written

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Range = tuple[int, int]
"""First character and the one after the last."""


@dataclass(frozen=True)
class Rendered:
    """A text as the tokenizer gets it.

    Args:
        text: all of it, without the slot.
        untrusted: ranges of `text` that came from users, in order, without overlaps.
        slot: index of the character that the slot stands before, or None.
        messages: of a chat, as its chat template took them; empty for a text prompt.
        arguments: what the chat template was given besides.
    """

    text: str
    untrusted: tuple[Range, ...]
    slot: int | None
    messages: tuple[Message, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def chat(self) -> bool:
        """Whether a chat template wrote it, which then writes the special tokens, too."""
        return bool(self.messages)


def render(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> Rendered:
    """Lay a prompt out as one text.

    A chat that its template refuses is laid out anew: each call in an answer of its own, followed by its result, as Llama 3's and gpt-oss's
    templates want them; and folded into turns of user and assistant, as Mistral's and Gemma's want them: neighbours of one role become one
    message, and a system message the first part of the user's.

    Raises:
        PromptError: a chat for a tokenizer without chat template, or one that the template refuses, also in turns, whose slot it
            drops, or whose contents it changes beyond recognition.
    """
    if not prompt.messages:
        return _join(prompt.parts)
    if prompt.tools or any(_has_calls(message) for message in prompt.messages):
        check_takes_tools(tokenizer)
    messages = tuple(with_calls_written(message, tokenizer) for message in prompt.messages)
    word = quieting_word(prompt, tokenizer)
    if word is not None:
        messages = _with_word(messages, word)
    chat = _Chat(tokenizer, template_arguments(prompt, tokenizer), prompt.tools, word)
    rendered = _rendered(chat, messages)
    return replace(rendered, text=rendered.text + begun_call(prompt, rendered.text, tokenizer))


def _rendered(chat: _Chat, messages: tuple[Message, ...]) -> Rendered:
    """Render a chat as it is, or in the first layout that its template takes."""
    apart = _one_by_one(messages)
    refused: PromptError | None = None
    for layout in dict.fromkeys((messages, apart, _folded(messages), _folded(apart))):
        try:
            return chat.render(layout)
        except PromptError as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _join(parts: Iterable[Part]) -> Rendered:
    text, untrusted, slot = "", [], None
    for part in parts:
        if isinstance(part, Slot):
            slot = len(text)
        elif part.text:
            if not part.trusted:
                untrusted.append((len(text), len(text) + len(part.text)))
            text += part.text
    return Rendered(text, tuple(untrusted), slot)


def _with_word(messages: tuple[Message, ...], word: str) -> tuple[Message, ...]:
    """Put a word that the template looks for into the system message."""
    if messages[0].role != "system":
        return Message("system", (Text(word, trusted=True),)), *messages
    first = messages[0]
    return Message("system", (*first.parts, Text(f"\n{word}", trusted=True))), *messages[1:]


def _folded(messages: Sequence[Message]) -> tuple[Message, ...]:
    turns: list[Message] = []
    for message in messages:
        role = "user" if message.role == "system" else message.role
        if turns and turns[-1].role == role and not (_has_calls(message) or _has_calls(turns[-1])):
            turns[-1] = Message(role, (*turns[-1].parts, Text("\n\n"), *message.parts))
        else:
            turns.append(replace(message, role=role))
    return tuple(turns)


def _one_by_one(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Give each call an answer of its own, and let its result follow it."""
    laid: list[Message] = []
    rest = list(messages)
    while rest:
        message = rest.pop(0)
        if len(message.tool_calls) < 2:
            laid.append(message)
            continue
        for number, call in enumerate(message.tool_calls):
            laid.append(replace(message, parts=() if number else message.parts, tool_calls=(call,)))
            at = next((at for at, each in enumerate(rest) if each.tool_call_id == call.id), None)
            laid += [rest.pop(at)] if at is not None else []
    return tuple(laid)


def _has_calls(message: Message) -> bool:
    return bool(message.tool_calls) or message.tool_call_id is not None


@dataclass(frozen=True)
class _Chat:
    """How a chat is rendered, whatever its messages.

    Attributes:
        tokenizer: has the chat template.
        arguments: what the template is given besides.
        tools: of the prompt.
        word: that the template looks for at the end of the first message, or None.
    """

    tokenizer: PreTrainedTokenizerBase
    arguments: Mapping[str, Any]
    tools: Sequence[Mapping[str, Any]]
    word: str | None

    def render(self, messages: Sequence[Message]) -> Rendered:
        """Render messages in the form of which the template drops the fewest."""
        found: list[tuple[int, Rendered]] = []
        problems = []
        # A few templates, of models that also see images, read only contents that are lists of parts; a few read only calls whose arguments
        # are a text.
        forms = [(False, False), (True, False)]
        if any(message.tool_calls for message in messages):
            forms += [(False, True), (True, True)]
        for as_list, as_text in forms:
            try:
                dropped, rendered = self._locate(messages, as_list=as_list, as_text=as_text)
            except PromptError as error:
                problems.append(error)
                continue
            if not as_text and _has_python(rendered.text, messages):
                dropped += 1
            if not dropped:
                return rendered
            found.append((dropped, rendered))
        if not found:
            raise problems[0]
        return min(found, key=lambda each: each[0])[1]

    def _locate(self, messages: Sequence[Message], *, as_list: bool, as_text: bool) -> tuple[int, Rendered]:
        """Render a chat, find where its user text and its slot lie, and count the messages that the template dropped.

        A word that the template looks for at the end of the first message stays there, whatever is put in its place.
        """
        contents = [_join(message.parts) for message in messages]
        # The tools, and what messages hold besides their contents; each is located by itself.
        values: list[Any] = [list(self.tools), *(_calls(message) for message in messages)]

        def apply(texts: Iterable[str], values: Sequence[Any] = values) -> str:
            wrapped = ([{"type": "text", "text": text}] if as_list else text for text in texts)
            chat = [
                {
                    "role": message.role,
                    "content": content,
                    **(_with_text_arguments(calls) if as_text else calls),
                }
                for message, content, calls in zip(messages, wrapped, values[1:], strict=True)
            ]
            given = {**self.arguments, "tools": values[0]} if self.tools else self.arguments
            return apply_template(chat, self.tokenizer, given, add_generation_prompt=True)

        rendered = apply(content.text for content in contents)
        for index, message in enumerate(messages, 1):
            if len(message.tool_calls) < 2:
                continue
            probe = f"probe{secrets.token_hex(16)}"
            *others, last = message.tool_calls
            asked = _calls(replace(message, tool_calls=(*others, replace(last, arguments={probe: probe}))))
            changed = [asked if i == index else each for i, each in enumerate(values)]
            if apply((content.text for content in contents), changed) == rendered:
                msg = "the chat template drops all calls of an answer but the first"
                raise PromptError(msg)
        untrusted: list[Range] = []
        for index, value in enumerate(values):
            untrusted += where_written(
                rendered,
                strings_of(value),
                lambda names, index=index: apply(  # type: ignore[misc] # mypy can't infer it
                    (content.text for content in contents),
                    [replaced(each, names) if i == index else each for i, each in enumerate(values)],
                ),
            )
        slot, dropped = None, 0
        for index, content in enumerate(contents):
            kept = self.word if self.word and not index and content.text.endswith(self.word) else ""
            content = replace(content, text=content.text.removesuffix(kept))
            if not content.text and content.slot is None:
                continue
            # Letters and digits only, so that no template trims or splits it.
            probe = f"probe{secrets.token_hex(16)}"
            probed = apply(probe + kept if i == index else other.text for i, other in enumerate(contents))
            literals = probed.split(probe)
            if len(literals) == 1 and probed == rendered:
                if content.slot is not None:
                    msg = f"the chat template drops the {messages[index].role!r} message, which holds the slot; use another role"
                    raise PromptError(msg)
                dropped += 1
                continue
            ranges, place = _place(rendered, literals, content, messages[index].role)
            untrusted += ranges
            slot = place if content.slot is not None else slot
        return dropped, Rendered(rendered, tuple(sorted(untrusted)), slot, tuple(messages), self.arguments)


def _calls(message: Message) -> dict[str, Any]:
    """Return what a message holds besides its content, as chat templates expect it."""
    found: dict[str, Any] = {}
    if message.tool_calls:
        found["tool_calls"] = [
            {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        found["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        found["name"] = message.name
    return found


def _has_python(text: str, messages: Iterable[Message]) -> bool:
    """Tell whether a template wrote a call's arguments in Python's notation, as one does that expects a text."""
    calls = [call for message in messages for call in message.tool_calls if call.arguments]
    return any(repr(dict(call.arguments)) in text for call in calls)


def _with_text_arguments(calls: dict[str, Any]) -> dict[str, Any]:
    if "tool_calls" not in calls:
        return calls
    functions = [call["function"] for call in calls["tool_calls"]]
    texts = [json.dumps(function["arguments"], ensure_ascii=False) for function in functions]
    changed = [
        {**call, "function": {**call["function"], "arguments": text}}
        for call, text in zip(calls["tool_calls"], texts, strict=True)
    ]
    return {**calls, "tool_calls": changed}


def _place(
    rendered: str, literals: list[str], content: Rendered, role: str
) -> tuple[list[Range], int | None]:
    """Find a content's user text and slot between the literals that the template put around it."""
    text = content.text
    for shown in (text, text.strip(), text.lstrip(), text.rstrip()):
        if shown.join(literals) == rendered:
            break
    else:
        return _place_changed(rendered, literals, content, role)
    lead = text.index(shown)
    starts, end = [], 0
    for literal in literals[:-1]:
        starts.append(end + len(literal))
        end = starts[-1] + len(shown)

    def shift(start: int, position: int) -> int:
        return start + min(max(position - lead, 0), len(shown))

    ranges = [
        (shift(start, first), shift(start, last)) for start in starts for first, last in content.untrusted
    ]
    # Of a content that the template repeats, the last copy is the one beside the answer.
    return ranges, shift(starts[-1], content.slot) if content.slot is not None else None


def _place_changed(
    rendered: str, literals: list[str], content: Rendered, role: str
) -> tuple[list[Range], int | None]:
    """Do the same for a content that the template takes apart, as Qwen3's does with an assistant's `<think>…</think>`.

    Nothing of it is trusted then, the template's additions within it included.
    """
    msg = f"the chat template changes the text of the {role!r} message in a way that can't be followed; reword it"
    before, after = literals[0], literals[-1]
    end = len(rendered) - len(after)
    if (
        len(literals) != 2
        or not rendered.startswith(before)
        or not rendered.endswith(after)
        or end < len(before)
    ):
        raise PromptError(msg)
    ranges = [(len(before), end)] if content.untrusted else []
    if content.slot is None:
        return ranges, None
    shown = rendered[len(before) : end]
    head, tail = content.text[: content.slot].lstrip(), content.text[content.slot :].rstrip()
    if tail and shown.endswith(tail):
        return ranges, end - len(tail)
    if head and shown.startswith(head):
        return ranges, len(before) + len(head)
    raise PromptError(msg)
