"""`with_virtual_tokens`: the slot put into an existing prompt template."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
from langchain_spring_rag.served import ServedPromptTemplate
from langchain_spring_rag.syntax import Use, uses
from spring_rag.errors import PromptError
from spring_rag.model import SpringModel
from spring_rag.placement import Place, question_to_repeat, slot_offsets
from spring_rag.prompt import SLOT_MARKER

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
    num_tokens: int | None = ...,
    tokens: str | None = ...,
) -> ServedPromptTemplate: ...


def with_virtual_tokens(
    prompt: Any,
    context: str = "context",
    question: str = "question",
    *,
    repeat_question: bool = False,
    on_vllm: SpringModel | None = None,
    num_tokens: int | None = None,
    tokens: str | None = None,
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
        num_tokens: k, how many of them; None is all of the set. With `on_vllm` only: our models have a setting of that name.
        tokens: name of the set; None is the default set. With `on_vllm` only.

    Returns:
        A prompt of the same kind, with the same variables; with `on_vllm` one that renders to messages.

    Raises:
        PromptError: the prompt has no such variables, holds two markers, or is of a kind that can't hold a slot; the question can't be
            repeated, being messages or in another format; `num_tokens` or `tokens` without `on_vllm`.

    Example:
        >>> from langchain_core.prompts import PromptTemplate
        >>> prompt = PromptTemplate.from_template("Context: {context}\nQuestion: {question}\nAnswer:")
        >>> with_virtual_tokens(prompt).template
        'Context: {context}\n⟦spring-rag:slot⟧Question: {question}\nAnswer:'
    """
    slotted_prompt = _with_slot(prompt, context, question, repeat_question)
    if on_vllm is not None:
        return ServedPromptTemplate(
            prompt=slotted_prompt,
            model=on_vllm,
            num_tokens=num_tokens,
            tokens=tokens,
            input_variables=slotted_prompt.input_variables,
            optional_variables=slotted_prompt.optional_variables,
        )
    if num_tokens is not None or tokens is not None:
        msg = "num_tokens and tokens go with on_vllm; without it the model says them: ChatSpring(num_tokens=…, tokens=…)"
        raise PromptError(msg)
    return slotted_prompt


def _with_slot(prompt: PromptT, context: str, question: str, repeat_question: bool) -> PromptT:
    texts = _texts(prompt)
    marked = [text for text in texts if SLOT_MARKER in text.template]
    if len(marked) > 1:
        msg = f"a prompt can have one slot, {len(marked)} texts of this one hold its marker; leave one"
        raise PromptError(msg)
    if not marked and not _has_slot(prompt):
        place = _place(texts, context, question, repeat_question)
        if place.text.is_placeholder:
            return place.text.rebuild(QuestionPlaceholder)  # type: ignore[no-any-return]
        marked = [place.text.marked(place.position, place.repeated)]
    made: PromptT = marked[0].rebuild(marked[0].template) if marked else prompt
    return made


@dataclass(frozen=True)
class _Text:
    """One string template inside a prompt.

    Attributes:
        template: its text; of a placeholder for messages, its variable's name.
        format: of the template.
        rebuild: the whole prompt with another text (or another class of placeholder) here, and with a slot.
    """

    template: str
    format: str
    rebuild: Callable[[Any], Any]
    is_placeholder: bool = False

    def uses(self, name: str) -> list[Use]:
        """Where it uses a variable."""
        if self.is_placeholder:
            return [Use(0, 0, frozenset([name]))] if self.template == name else []
        return [use for use in uses(self.template, self.format) if name in use.names]

    def marked(self, position: int, repeated: str) -> _Text:
        """The same with the slot at a position, and what is to be repeated behind it on a line of its own."""
        slot = f"\n{SLOT_MARKER}{repeated}" if repeated else SLOT_MARKER
        text = self.template[:position] + slot + self.template[position:]
        return _Text(text, self.format, self.rebuild)


@dataclass(frozen=True)
class _Place:
    text: _Text
    position: int
    repeated: str = ""
    """The question's line, if it is to be asked again behind the slot."""


def _place(texts: list[_Text], context: str, question: str, repeat_question: bool) -> _Place:
    """Where the slot goes.

    Raises:
        PromptError: the variables aren't there, or are part of one block; the question can't be repeated.
    """
    contexts = [(i, use) for i, text in enumerate(texts) for use in text.uses(context)]
    questions = [(i, use) for i, text in enumerate(texts) for use in text.uses(question)]
    for name, found, argument in ((context, contexts, "context"), (question, questions, "question")):
        if not found:
            msg = (
                f"the prompt doesn't use a variable {name!r}, so there is no telling where virtual tokens go; it uses "
                f"{', '.join(sorted(_names(texts)))}: name the right one with {argument}=..."
            )
            raise PromptError(msg)
    last, use = contexts[-1]
    if (last, use) in questions:
        msg = (
            f"context and question are in one block of the template, {texts[last].template[use.start : use.end]!r}; put "
            "spring_rag.prompt.SLOT_MARKER into its text where virtual tokens should go"
        )
        raise PromptError(msg)
    if texts[last].is_placeholder:
        msg = f"the context is a placeholder for messages, {context!r}; virtual tokens need it as text in a message"
        raise PromptError(msg)
    where = (
        ["" if text.is_placeholder else text.template for text in texts],
        [Place(i, each.start, each.end) for i, each in contexts],
        [Place(i, each.start, each.end) for i, each in questions],
    )
    if repeat_question and (repeated := question_to_repeat(*where)) is not None:
        if texts[questions[-1][0]].format != texts[last].format:
            msg = (
                f"the question {question!r} can't be repeated after the context: it is messages, or in a template of another format; "
                "put it at the prompt's end yourself"
            )
            raise PromptError(msg)
        return _Place(texts[last], use.end, repeated)
    offsets = slot_offsets(*where, stacklevel=4)
    index, position = offsets[0]
    first = next((each for i, each in questions if i == index and each.start >= position), None)
    # A tag that trims the text before it would reach over the slot; right after a context that trims nothing it is safe.
    if index == last and first is not None and first.trims_before and not use.trims_after:
        index, position = offsets[-1]
    return _Place(texts[index], position)


def _names(texts: list[_Text]) -> set[str]:
    names: set[str] = set()
    for text in texts:
        if text.is_placeholder:
            names.add(text.template)
        else:
            names.update(*(use.names for use in uses(text.template, text.format)))
    return names


def _has_slot(prompt: Any) -> bool:
    """Whether a chat prompt holds a slot that isn't in a text."""
    if isinstance(prompt, ChatPromptTemplate):
        return any(_has_slot(message) for message in prompt.messages)
    if isinstance(prompt, BaseMessage):
        return not isinstance(prompt.content, str) and any(map(is_slot, prompt.content))
    return isinstance(prompt, QuestionPlaceholder)


def _texts(prompt: Any) -> list[_Text]:
    """The string templates of a prompt, in the order in which they are rendered.

    Raises:
        PromptError: a kind of prompt that can't hold a slot.
    """
    if isinstance(prompt, ChatPromptTemplate):
        return list(_chat_texts(prompt))
    if isinstance(prompt, PromptTemplate):
        return [_Text(prompt.template, prompt.template_format, lambda text: slotted(prompt, template=text))]
    if isinstance(prompt, FewShotPromptTemplate):
        return [
            _Text(getattr(prompt, side), prompt.template_format, _field_setter(prompt, side))
            for side in ("prefix", "suffix")
        ]
    if isinstance(prompt, FewShotPromptWithTemplates):
        return [
            _Text(inner.template, inner.template_format, _template_setter(prompt, side, inner))
            for side in ("prefix", "suffix")
            if isinstance(inner := getattr(prompt, side), PromptTemplate)
        ]
    msg = (
        f"a {type(prompt).__name__} can't hold virtual tokens; expected a PromptTemplate, a ChatPromptTemplate, a "
        "FewShotPromptTemplate or a FewShotPromptWithTemplates (examples of a chat: give the whole ChatPromptTemplate)"
    )
    raise PromptError(msg)


def _field_setter(prompt: Any, name: str) -> Callable[[str], Any]:
    return lambda text: slotted(prompt, **{name: text})


def _template_setter(prompt: Any, name: str, inner: PromptTemplate) -> Callable[[str], Any]:
    return lambda text: slotted(prompt, **{name: inner.model_copy(update={"template": text})})


def _chat_texts(prompt: ChatPromptTemplate) -> Iterator[_Text]:
    for index, message in enumerate(prompt.messages):

        def rebuild(made: Any, index: int = index) -> ChatPromptTemplate:
            return _with_message(prompt, index, made)

        if isinstance(message, MessagesPlaceholder):
            yield _Text(message.variable_name, "", _placeholder_setter(message, rebuild), is_placeholder=True)
        elif isinstance(message, ChatPromptTemplate):
            for inner in _chat_texts(message):
                yield _Text(
                    inner.template, inner.format, _chained(inner.rebuild, rebuild), inner.is_placeholder
                )
        else:
            yield from _message_texts(message, rebuild)


def _message_texts(message: Any, rebuild: Callable[[Any], Any]) -> Iterator[_Text]:
    inner = getattr(message, "prompt", None)
    if isinstance(inner, PromptTemplate):

        def set_prompt(text: str) -> Any:
            return rebuild(slotted(message, prompt=slotted(inner, template=text)))

        yield _Text(inner.template, inner.template_format, set_prompt)
    elif isinstance(inner, list):
        for index, part in enumerate(inner):
            if isinstance(part, PromptTemplate):

                def set_part(text: str, index: int = index, part: PromptTemplate = part) -> Any:
                    parts = [*inner[:index], slotted(part, template=text), *inner[index + 1 :]]
                    return rebuild(slotted(message, prompt=parts))

                yield _Text(part.template, part.template_format, set_part)


def _placeholder_setter(
    message: MessagesPlaceholder, rebuild: Callable[[Any], Any]
) -> Callable[[type[MessagesPlaceholder]], Any]:
    fields = {name: getattr(message, name) for name in MessagesPlaceholder.model_fields}
    return lambda kind: rebuild(kind(**fields))


def _chained(first: Callable[[Any], Any], then: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda change: then(first(change))


def _with_message(prompt: ChatPromptTemplate, index: int, message: Any) -> ChatPromptTemplate:
    """A chat prompt with another message at `index`, whose placeholders bring no slots of their own."""
    messages = [slotted(each) if type(each) is MessagesPlaceholder else each for each in prompt.messages]
    messages[index] = message
    return prompt.model_copy(update={"messages": messages})
