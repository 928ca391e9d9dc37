"""`with_virtual_tokens`: the slot put into an existing prompt template."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any, TypeVar, overload

from langchain_core.messages import BaseMessage
from langchain_core.prompts import (
    BasePromptTemplate,
    ChatPromptTemplate,
    FewShotPromptTemplate,
    FewShotPromptWithTemplates,
    MessagesPlaceholder,
    PromptTemplate,
)

from langchain_spring_rag.messages import is_slot
from langchain_spring_rag.prompts import QuestionPlaceholder, slotted
from langchain_spring_rag.served import SERVED_SETTINGS, ServedPromptTemplate
from spring_rag.bridge.marks import is_marked
from spring_rag.bridge.placement import TemplateText, put_slot
from spring_rag.bridge.syntax import F_STRING, JINJA, MUSTACHE, Syntax
from spring_rag.errors import PromptError
from spring_rag.model import SpringModel
from spring_rag.prompt import SLOT_MARKER

_SYNTAXES = {"f-string": F_STRING, "mustache": MUSTACHE, "jinja2": JINJA}

PromptT = TypeVar("PromptT", bound=BasePromptTemplate[Any])


@overload
def with_virtual_tokens(
    prompt: PromptT, context: str = ..., question: str = ..., *, repeat_question: bool = ...
) -> PromptT: ...


@overload
def with_virtual_tokens(
    prompt: BasePromptTemplate[Any],
    context: str = ...,
    question: str = ...,
    *,
    repeat_question: bool = ...,
    on_vllm: SpringModel,
    **settings: Any,
) -> ServedPromptTemplate: ...


def with_virtual_tokens(
    prompt: Any,
    context: str = "context",
    question: str = "question",
    *,
    repeat_question: bool = False,
    on_vllm: SpringModel | None = None,
    **settings: Any,
) -> Any:
    r"""The same prompt template with a slot for virtual tokens.

    The slot stands right before the line that holds the question; right after the context if they share a line, or if the
    question stands before the context. A template whose text holds `SLOT_MARKER` already keeps the slot where it is.

    Args:
        prompt: a `PromptTemplate`, a `ChatPromptTemplate` or a few-shot prompt, of any format; not changed. The question
            may be a message of its own, or a `MessagesPlaceholder` whose last message it is.
        context: name of the variable that the passages go into.
        question: name of the variable that the question goes into.
        repeat_question: where the question stands before the context, ask it again behind the slot, in the words of its line. Virtual tokens
            are trained to stand in front of a question, and may do harm elsewhere. Without effect on other prompts.
        on_vllm: a model on a vLLM server (`SpringModel.from_pretrained(…, base_url=…)`) whose virtual tokens the prompt is to bring
            itself, as content parts for LangChain's own `ChatOpenAI`. It answers nothing; `ChatOpenAI` does.
        settings: with `on_vllm` only, what our models have as settings of the same names: `num_tokens` (k; None is all of the set), `tokens`
            (name of the set), `thinking` and `chat_template_kwargs`.

    Returns:
        A prompt of the same kind, with the same variables; with `on_vllm` one that renders to messages.

    Raises:
        PromptError: the prompt has no such variables, holds two markers, or is of a kind that can't hold a slot; the question can't be
            repeated, being messages or in another format; settings without `on_vllm`, or other ones.

    Example:
        >>> from langchain_core.prompts import PromptTemplate
        >>> prompt = PromptTemplate.from_template("Context: {context}\nQuestion: {question}\nAnswer:")
        >>> with_virtual_tokens(prompt).template
        'Context: {context}\n⟦spring-rag:slot⟧Question: {question}\nAnswer:'
    """
    slotted_prompt = _with_slot(prompt, context, question, repeat_question)
    if unknown := sorted(set(settings) - set(SERVED_SETTINGS)):
        msg = f"with_virtual_tokens takes no {', '.join(unknown)}; with on_vllm it takes {', '.join(SERVED_SETTINGS)}"
        raise PromptError(msg)
    if on_vllm is not None:
        return ServedPromptTemplate(
            **settings,
            prompt=slotted_prompt,
            model=on_vllm,
            input_variables=slotted_prompt.input_variables,
            optional_variables=slotted_prompt.optional_variables,
        )
    if settings:
        msg = f"{' and '.join(settings)} go with on_vllm; without it they are settings of the model, as in ChatSpring(num_tokens=…)"
        raise PromptError(msg)
    return slotted_prompt


def _with_slot(prompt: PromptT, context: str, question: str, repeat_question: bool) -> PromptT:
    sources: list[TemplateText] = []

    def look(source: TemplateText) -> str:
        sources.append(source)
        return source.template

    _visit(prompt, look)
    if _has_slot(prompt):
        return prompt
    chosen, text = put_slot(
        sources, [context], question, mark=SLOT_MARKER, repeat_question=repeat_question, stacklevel=3
    )
    numbers = count()
    made: PromptT = _visit(prompt, lambda source: text if next(numbers) == chosen else source.template)
    return made


def _visit(prompt: Any, visit: Callable[[TemplateText], str | None]) -> Any:
    """The prompt with each of its string templates as `visit` gives it back, asked in the order in which they are rendered.

    One that is given back changed becomes a template with a slot. A placeholder for messages is visited, too; None makes it a
    `QuestionPlaceholder`.

    Raises:
        PromptError: a kind of prompt that can't hold a slot.
    """
    if isinstance(prompt, ChatPromptTemplate):
        messages = [_visit_message(message, visit) for message in prompt.messages]
        same = all(new is old for new, old in zip(messages, prompt.messages, strict=True))
        return prompt if same else prompt.model_copy(update={"messages": messages})
    if isinstance(prompt, PromptTemplate):
        text = visit(TemplateText(prompt.template, _syntax(prompt.template_format)))
        return prompt if text == prompt.template and not _is_marked(text) else slotted(prompt, template=text)
    if isinstance(prompt, FewShotPromptTemplate):
        syntax = _syntax(prompt.template_format)
        texts = {side: visit(TemplateText(getattr(prompt, side), syntax)) for side in ("prefix", "suffix")}
        return slotted(prompt, **texts)
    if isinstance(prompt, FewShotPromptWithTemplates):
        sides = {
            side: _visit(inner, visit)
            for side in ("prefix", "suffix")
            if isinstance(inner := getattr(prompt, side), PromptTemplate)
        }
        return slotted(prompt, **sides)
    msg = (
        f"a {type(prompt).__name__} can't hold virtual tokens; expected a PromptTemplate, a ChatPromptTemplate, a "
        "FewShotPromptTemplate or a FewShotPromptWithTemplates (examples of a chat: give the whole ChatPromptTemplate)"
    )
    raise PromptError(msg)


def _visit_message(message: Any, visit: Callable[[TemplateText], str | None]) -> Any:
    if isinstance(message, MessagesPlaceholder):
        return message if visit(TemplateText(message.variable_name, None)) is not None else slotted(message)
    if isinstance(message, ChatPromptTemplate):
        return _visit(message, visit)
    inner = getattr(message, "prompt", None)
    if isinstance(inner, PromptTemplate):
        made = _visit(inner, visit)
        return message if made is inner else message.model_copy(update={"prompt": made})
    if isinstance(inner, list):
        parts = [_visit(part, visit) if isinstance(part, PromptTemplate) else part for part in inner]
        same = all(new is old for new, old in zip(parts, inner, strict=True))
        return message if same else message.model_copy(update={"prompt": parts})
    return message


def _syntax(template_format: str) -> Syntax:
    if template_format not in _SYNTAXES:
        msg = f"the template format is {template_format!r}; expected one of {', '.join(_SYNTAXES)}"
        raise PromptError(msg)
    return _SYNTAXES[template_format]


def _is_marked(text: str | None) -> bool:
    return text is not None and SLOT_MARKER in text


def _has_slot(prompt: Any) -> bool:
    """Whether a chat prompt holds a slot that isn't in a template."""
    if isinstance(prompt, ChatPromptTemplate):
        return any(_has_slot(message) for message in prompt.messages)
    if isinstance(prompt, BaseMessage):
        return is_marked(prompt.text) or (
            not isinstance(prompt.content, str) and any(map(is_slot, prompt.content))
        )
    return isinstance(prompt, QuestionPlaceholder)
