"""Prompt templates of LlamaIndex with a slot for virtual tokens."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TypeVar, cast

from banks.env import env  # type: ignore[import-untyped]
from llama_index.core.base.llms.types import ChatMessage, TextBlock
from llama_index.core.prompts import (
    BasePromptTemplate,
    ChatPromptTemplate,
    PromptTemplate,
    RichPromptTemplate,
    SelectorPromptTemplate,
)

from spring_rag.bridge.marks import MARK, is_marked
from spring_rag.bridge.placement import TemplateText, put_slot
from spring_rag.bridge.syntax import BRACES, jinja
from spring_rag.errors import PromptError

CONTEXT_VARIABLES = ("context_str", "context_messages")
"""What LlamaIndex calls the context in its templates that answer a question."""

QUESTION_VARIABLE = "query_str"

# LlamaIndex renders its jinja templates with banks, whose environment has its own rules for the white space around tags.
_BANKS = jinja(env)

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
    engines' system message, the slot comes right before the message that asks it, whatever stands between. A template that says itself where, with `spring_rag.prompt.SLOT_MARKER`,
    gets it there. One that has its slot stays as it is.

    The slot's mark is a secret of this process and of those that it starts. Hand a template that was pickled in any other process to this
    function again, or give both one `SPRING_RAG_SLOT_SECRET` in their environment.

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
    return cast(Template, _with_slot(prompt, contexts, question, repeat_question))


def _with_slot(
    prompt: BasePromptTemplate, contexts: Sequence[str], question: str, repeat_question: bool
) -> BasePromptTemplate:
    if isinstance(prompt, SelectorPromptTemplate):
        # Some models get their documents apart from the prompt (Cohere's): such a template has no context.
        some = has_context(prompt, contexts)

        def change(each: BasePromptTemplate) -> BasePromptTemplate:
            leave = some and not has_context(each, contexts)
            return each if leave else _with_slot(each, contexts, question, repeat_question)

        conditionals = prompt.conditionals
        return _copy(
            prompt,
            default_template=change(prompt.default_template),
            conditionals=conditionals and [(condition, change(each)) for condition, each in conditionals],
        )
    if has_slot(prompt):
        return prompt
    mappings = prompt.template_var_mappings or {}
    put = partial(
        put_slot,
        contexts=[mappings.get(name, name) for name in contexts],
        question=mappings.get(question, question),
        mark=MARK,
        repeat_question=repeat_question,
        question_may_follow=True,
        stacklevel=3,
    )
    if isinstance(prompt, RichPromptTemplate):
        return _copy(prompt, template_str=put([TemplateText(prompt.template_str, _BANKS)])[1])
    if isinstance(prompt, PromptTemplate):
        return _copy(prompt, template=put([TemplateText(prompt.template, BRACES)])[1])
    if isinstance(prompt, ChatPromptTemplate):
        messages = [message.model_copy(deep=True) for message in prompt.message_templates]
        blocks = _texts(messages)
        number, text = put([TemplateText(block.text, BRACES) for block in blocks])
        assert text is not None
        blocks[number].text = text
        return _copy(prompt, message_templates=messages)
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
        return is_marked(prompt.template_str)
    if isinstance(prompt, PromptTemplate):
        return is_marked(prompt.template)
    if isinstance(prompt, ChatPromptTemplate):
        return any(is_marked(block.text) for block in _texts(prompt.message_templates))
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


def _texts(messages: Iterable[ChatMessage]) -> list[TextBlock]:
    return [block for message in messages for block in message.blocks if isinstance(block, TextBlock)]


def _copy(prompt: Template, **changes: object) -> Template:
    own = {"kwargs": dict(prompt.kwargs), "metadata": dict(prompt.metadata)}
    return prompt.model_copy(update=own | changes)
