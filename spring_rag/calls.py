"""Calls of tools in what a backbone wrote: whether its chat template has tools, how it is made to call one, and reading its calls."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from spring_rag.call_forms import CallForm
from spring_rag.call_templates import form_of, shows_tools
from spring_rag.errors import ToolsError
from spring_rag.prompt import ANY_TOOL, Message, Prompt, Text, ToolCall
from spring_rag.reasoning import markers, opens_thoughts
from spring_rag.stream import Stream, Thought

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from spring_rag.backends.base import Generation, Request

_ID_CHARACTERS = string.ascii_letters + string.digits
_ID_LENGTH = 9
"""What Mistral's chat templates insist on; no other has a rule."""


def takes_tools(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether the tokenizer's chat template shows tools to a backbone, and writes calls in a form that can be read."""
    return shows_tools(tokenizer) and form_of(tokenizer) is not None


def check_takes_tools(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make sure that the tokenizer's chat template has tools.

    Raises:
        ToolsError: it has none, or writes their calls in a way that can't be read.
    """
    if not shows_tools(tokenizer):
        msg = (
            "the backbone can't be given tools: its chat template has no place for them; set tokenizer.chat_template to one that has, or use "
            "a backbone that was trained to call tools"
        )
        raise ToolsError(msg)
    if form_of(tokenizer) is None:
        msg = (
            "the backbone can't be given tools: its chat template writes calls in a way that can't be read; set the tokenizer's "
            "response_template, or use another backbone"
        )
        raise ToolsError(msg)


def with_calls_written(message: Message, tokenizer: PreTrainedTokenizerBase) -> Message:
    """Write a message's calls into its text, where the tokenizer's chat template has no other place for them."""
    form = form_of(tokenizer) if message.tool_calls else None
    if form is None or not form.in_content:
        return message
    between = (Text("\n", trusted=True),) if message.text else ()
    return Message(message.role, (*message.parts, *between, *form.write(message.tool_calls)))


def begun_call(prompt: Prompt, rendered: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Write the beginning of a call behind a prompt whose answer must be one; nothing behind other prompts.

    Args:
        prompt: with a `tool_choice`, or without.
        rendered: what the chat template wrote.
        tokenizer: the backbone's.
    """
    if prompt.tool_choice is None:
        return ""
    form, known = form_of(tokenizer), markers(tokenizer)
    assert form is not None
    thought = known.closing if known is not None and opens_thoughts(rendered, tokenizer) else ""
    return thought + _beginning(prompt, form)


def with_calls(generation: Generation, request: Request, tokenizer: PreTrainedTokenizerBase) -> Generation:
    """Part the calls of tools from an answer.

    Args:
        generation: without its thoughts.
        request: that it answers.
        tokenizer: the backbone's.
    """
    prompt = request.prompt
    if prompt is None or not prompt.tools:
        return replace(generation, text=_plain(generation.text, tokenizer))
    form = form_of(tokenizer)
    assert form is not None
    begun = _beginning(prompt, form) if prompt.tool_choice is not None else ""
    text, calls = form.read(begun + generation.text, prompt.tools)
    if not calls:
        return generation
    earlier = sum(len(message.tool_calls) for message in prompt.messages)
    made = tuple(
        ToolCall(
            name,
            arguments,
            form.id_format.format(name=name, number=earlier + number)
            or _call_id(request, number, name, arguments),
        )
        for number, (name, arguments) in enumerate(calls)
    )
    return replace(generation, text=text, tool_calls=made)


def part_calls(stream: Stream, request: Request, tokenizer: PreTrainedTokenizerBase) -> Stream:
    """Part calls from an answer that is being written: its text ends where a call begins, and the calls come with the whole answer."""
    if request.prompt is None or not request.prompt.tools:
        return Stream(_plain_pieces(stream, tokenizer)) if call_tokens(tokenizer) else stream
    return Stream(_parted(stream, request, tokenizer))


def call_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Find the special tokens of which calls consist, and which decoding must keep: id → content."""
    form = form_of(tokenizer) if shows_tools(tokenizer) else None
    if form is None:
        return {}
    return {
        index: token.content
        for index, token in tokenizer.added_tokens_decoder.items()
        if token.special and token.content in form.literals
    }


def _parted(
    stream: Stream, request: Request, tokenizer: PreTrainedTokenizerBase
) -> Generator[str | Generation, None, None]:
    form = form_of(tokenizer)
    assert form is not None
    forced = request.prompt is not None and request.prompt.tool_choice is not None
    text = shown = ""
    try:
        for piece in stream.with_thoughts():
            if isinstance(piece, Thought):
                yield piece
                continue
            text += piece
            settled = "" if forced else _before_calls(text, form.markers)
            if len(settled) > len(shown):
                yield settled[len(shown) :]
                shown = settled
        generation = with_calls(stream.generation, request, tokenizer)
        if len(generation.text) > len(shown) and generation.text.startswith(shown):
            yield generation.text[len(shown) :]
        yield generation
    finally:
        stream.close()


def _plain(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Leave out the special tokens of calls, which mean nothing where there are no tools."""
    for token in call_tokens(tokenizer).values():
        text = text.replace(token, "")
    return text


def _plain_pieces(
    stream: Stream, tokenizer: PreTrainedTokenizerBase
) -> Generator[str | Generation, None, None]:
    try:
        for piece in stream.with_thoughts():
            if plain := piece if isinstance(piece, Thought) else _plain(piece, tokenizer):
                yield plain
        yield replace(stream.generation, text=_plain(stream.generation.text, tokenizer))
    finally:
        stream.close()


def _before_calls(text: str, markers: Sequence[str]) -> str:
    """Take the beginning of an unfinished text that is certainly no call, nor white space before one."""
    if not markers:
        return "" if text.lstrip()[:1] in ("", "{", "[", "<") else text
    places = [place for marker in markers if (place := text.find(marker)) >= 0]
    if not places:
        # The longest end of the text that begins a marker.
        begun = (n for n in range(len(text), 0, -1) if any(each.startswith(text[-n:]) for each in markers))
        places = [len(text) - next(begun, 0)]
    return text[: min(places)].rstrip()


def _beginning(prompt: Prompt, form: CallForm) -> str:
    """Begin a call, as far as the choice of a tool determines it."""
    names = [tool["function"]["name"] for tool in prompt.tools]
    if prompt.tool_choice != ANY_TOOL:
        return form.beginning(prompt.tool_choice)
    return form.beginning(names[0] if len(names) == 1 else None)


def _call_id(request: Request, number: int, name: str, arguments: Mapping[str, Any]) -> str:
    """Make an id that is the same for the same call in the same prompt: some templates write it into the next prompt."""
    digest = hashlib.sha256(repr((request.encoded.ids, number, name, arguments)).encode()).digest()
    return "".join(_ID_CHARACTERS[byte % len(_ID_CHARACTERS)] for byte in digest[:_ID_LENGTH])
