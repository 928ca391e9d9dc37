"""Prompt templates of LlamaIndex with a slot for virtual tokens."""

import re
from collections.abc import Iterable, Sequence
from typing import TypeVar, cast

from llama_index.core.base.llms.types import ChatMessage, TextBlock
from llama_index.core.prompts import (
    BasePromptTemplate,
    ChatPromptTemplate,
    PromptTemplate,
    RichPromptTemplate,
    SelectorPromptTemplate,
)

from llama_index.llms.spring_rag import jinja
from llama_index.llms.spring_rag.slots import MARK, adopt
from spring_rag.errors import PromptError
from spring_rag.placement import Place, question_to_repeat, slot_offsets

CONTEXT_VARIABLES = ("context_str", "context_messages")
"""What LlamaIndex calls the context in its templates that answer a question."""

QUESTION_VARIABLE = "query_str"

Template = TypeVar("Template", bound=BasePromptTemplate)


def with_virtual_tokens(
    prompt: Template,
    context: str | Sequence[str] = CONTEXT_VARIABLES,
    question: str = QUESTION_VARIABLE,
    *,
    repeat_question: bool = False,
) -> Template:
    r"""A template like this one that has a slot for virtual tokens.

    The slot comes right before the line that holds the question; right after the context if they share a line, or if the
    question comes before the context, which a warning points out. Where the question isn't in the template, as in the chat
    engines' system message, the slot is the end of the text that holds the context: instructions that follow a context (condense_plus_context asks
    for details there) belong before the slot, too. A template that says itself where, with `spring_rag.prompt.SLOT_MARKER`,
    gets it there. One that has its slot stays as it is.

    The slot's mark is a secret of this process. Hand a template that was pickled in another process to this function again.

    Args:
        prompt: a `PromptTemplate`, `ChatPromptTemplate`, `RichPromptTemplate` or `SelectorPromptTemplate`, which is left as it is.
            Each template of a selector that has a context gets a slot.
        context: the variable that holds the context, or several names that it may have. Where the template maps
            variables (`template_var_mappings`), the name that LlamaIndex uses.
        question: the variable that holds the question.
        repeat_question: where the question comes before the context, ask it again behind the slot, in the words of its line. Virtual tokens
            are trained to stand in front of a question, and may do harm elsewhere. Without effect on other templates.

    Raises:
        PromptError: no context in the template, two slots, another kind of template.

    Example:
        >>> from llama_index.core import PromptTemplate
        >>> template = with_virtual_tokens(PromptTemplate("{context_str}\n\nQuestion: {query_str}\nAnswer:"))
    """
    contexts = (context,) if isinstance(context, str) else tuple(context)
    if isinstance(prompt, SelectorPromptTemplate):
        return cast(Template, _in_selector(prompt, contexts, question, repeat_question))
    if has_slot(prompt):
        return prompt
    mappings = prompt.template_var_mappings or {}
    contexts = tuple(mappings.get(name, name) for name in contexts)
    question = mappings.get(question, question)
    if isinstance(prompt, RichPromptTemplate):
        return _copy(prompt, template_str=_in_jinja(prompt.template_str, contexts, question, repeat_question))
    if isinstance(prompt, PromptTemplate):
        return _copy(
            prompt,
            template=_in_texts([prompt.template], contexts, question, repeat_question, stacklevel=3)[0],
        )
    if isinstance(prompt, ChatPromptTemplate):
        return _copy(
            prompt,
            message_templates=_in_messages(prompt.message_templates, contexts, question, repeat_question),
        )
    msg = (
        f"can't put a slot into a {type(prompt).__name__}; expected a PromptTemplate, ChatPromptTemplate, RichPromptTemplate "
        "or SelectorPromptTemplate"
    )
    raise PromptError(msg)


def has_slot(prompt: BasePromptTemplate) -> bool:
    """Whether virtual tokens have a place in it; in a selector, in any of its templates."""
    if isinstance(prompt, SelectorPromptTemplate):
        return any(has_slot(each) for each in _choices(prompt))
    if isinstance(prompt, RichPromptTemplate):
        return MARK in prompt.template_str
    if isinstance(prompt, PromptTemplate):
        return MARK in prompt.template
    if isinstance(prompt, ChatPromptTemplate):
        return any(MARK in block.text for block in _text_blocks(prompt.message_templates))
    return False


def has_context(prompt: BasePromptTemplate, contexts: Sequence[str]) -> bool:
    """Whether one of these variables stands in it; in a selector, in any of its templates."""
    choices = _choices(prompt) if isinstance(prompt, SelectorPromptTemplate) else [prompt]
    return any(
        (each.template_var_mappings or {}).get(name, name) in each.template_vars
        for each in choices
        for name in contexts
    )


def _choices(prompt: SelectorPromptTemplate) -> list[BasePromptTemplate]:
    return [prompt.default_template, *(each for _, each in prompt.conditionals or ())]


def _in_selector(
    prompt: SelectorPromptTemplate, contexts: Sequence[str], question: str, repeat_question: bool
) -> SelectorPromptTemplate:
    # Some models get their documents apart from the prompt (Cohere's): such a template has no context.
    if not has_context(prompt, contexts):
        raise _no_context(contexts)

    def slotted(each: BasePromptTemplate) -> BasePromptTemplate:
        if not has_context(each, contexts):
            return each
        return with_virtual_tokens(each, contexts, question, repeat_question=repeat_question)

    conditionals = prompt.conditionals
    return _copy(
        prompt,
        default_template=slotted(prompt.default_template),
        conditionals=conditionals and [(condition, slotted(each)) for condition, each in conditionals],
    )


def _in_messages(
    messages: Sequence[ChatMessage], contexts: Sequence[str], question: str, repeat_question: bool
) -> list[ChatMessage]:
    copies = [message.model_copy(deep=True) for message in messages]
    blocks = _text_blocks(copies)
    texts = _in_texts([block.text for block in blocks], contexts, question, repeat_question, stacklevel=4)
    for block, text in zip(blocks, texts, strict=True):
        block.text = text
    return copies


def _text_blocks(messages: Iterable[ChatMessage]) -> list[TextBlock]:
    return [block for message in messages for block in message.blocks if isinstance(block, TextBlock)]


def _in_texts(
    texts: Sequence[str], contexts: Sequence[str], question: str, repeat_question: bool, stacklevel: int
) -> list[str]:
    """The texts of a template in `{variable}` syntax, one of them with the mark."""
    adopted = [adopt(text) for text in texts]
    if _marked(adopted):
        return adopted
    if not (found := _find(texts, contexts)):
        raise _no_context(contexts)
    asked = _find(texts, [question])
    if repeat_question and (repeated := question_to_repeat(texts, found, asked)) is not None:
        text, offset, mark = max(found).text, max(found).end, f"\n{MARK}{repeated}"
    else:
        text, offset = slot_offsets(texts, found, asked, stacklevel=stacklevel)[0]
        mark = MARK
    adopted[text] = texts[text][:offset] + mark + texts[text][offset:]
    return adopted


def _in_jinja(source: str, contexts: Sequence[str], question: str, repeat_question: bool) -> str:
    source = re.sub(r"\r\n?", "\n", source)
    adopted = adopt(source)
    if _marked([adopted]):
        return adopted
    ranges = jinja.messages(source)

    def find(names: Sequence[str]) -> list[Place]:
        return [
            Place(i, start - first, end - first)
            for name in names
            for start, end in jinja.occurrences(source, name)
            for i, (first, last) in enumerate(ranges)
            if first <= start and end <= last
        ]

    texts = [source[first:last] for first, last in ranges]
    if not (found := find(contexts)):
        raise _no_context(contexts)
    asked = find([question])
    if repeat_question and (repeated := question_to_repeat(texts, found, asked)) is not None:
        after = ranges[max(found).text][0] + max(found).end
        return jinja.insert(source, MARK, [after]).replace(MARK, f"\n{MARK}{repeated}")
    offsets = slot_offsets(texts, found, asked, stacklevel=3)
    return jinja.insert(source, MARK, [ranges[text][0] + offset for text, offset in offsets])


def _find(texts: Sequence[str], names: Sequence[str]) -> list[Place]:
    pattern = re.compile("|".join(rf"\{{{re.escape(name)}\}}" for name in names))
    return [Place(i, *match.span()) for i, text in enumerate(texts) for match in pattern.finditer(text)]


def _marked(texts: Sequence[str]) -> bool:
    """Whether the author has put the slot in.

    Raises:
        PromptError: more than once.
    """
    count = sum(text.count(MARK) for text in texts)
    if count > 1:
        msg = f"a template can have one slot, this one has {count}; put SLOT_MARKER in one place only"
        raise PromptError(msg)
    return count == 1


def _no_context(names: Sequence[str]) -> PromptError:
    expected = " or ".join(f"{{{name}}}" for name in names)
    msg = f"the template has no {expected}; name the variable that holds its context: with_virtual_tokens(…, context=…)"
    return PromptError(msg)


def _copy(prompt: Template, **changes: object) -> Template:
    own = {"kwargs": dict(prompt.kwargs), "metadata": dict(prompt.metadata)}
    return prompt.model_copy(update=own | changes)
