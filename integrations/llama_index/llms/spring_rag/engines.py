"""Existing query and chat engines, upgraded in place to prompts that have a slot for virtual tokens."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from llama_index.core.chat_engine.types import BaseChatEngine
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.prompts.mixin import PromptMixin

from llama_index.llms.spring_rag.templates import (
    CONTEXT_VARIABLES,
    QUESTION_VARIABLE,
    has_context,
    has_slot,
    with_virtual_tokens,
)
from spring_rag.errors import PromptError

# Chat engines have no get_prompts; these are the attributes that hold their templates.
_CHAT_TEMPLATES = (
    "_context_template",
    "_context_prompt_template",
    "_context_refine_template",
    "_context_refine_prompt_template",
    "_condense_prompt_template",
    "_condense_question_prompt",
)
_ANSWERING = ("text_qa", "content_qa", "summary", "context")


@dataclass(frozen=True)
class Upgrade:
    """What `upgrade_engine` did; prints as a list.

    Attributes:
        changed: names of the templates that have a slot now.
        left: name of each other template → why it stayed as it was.
    """

    changed: tuple[str, ...]
    left: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"virtual tokens: {name}" for name in self.changed]
        lines += [f"left as it was: {name} ({why})" for name, why in self.left.items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Found:
    name: str
    template: BasePromptTemplate
    put_back: Callable[[BasePromptTemplate], None] = field(repr=False)


def upgrade_engine(
    engine: PromptMixin | BaseChatEngine,
    context: str | Sequence[str] = CONTEXT_VARIABLES,
    question: str = QUESTION_VARIABLE,
    *,
    repeat_question: bool = False,
) -> Upgrade:
    """Put a slot into every template of an engine that answers a question from a context.

    These are its text_qa, summary and context templates, also those of the engines and synthesizers inside. All others keep
    answering as the plain backbone. The engine is changed in place; templates that it shares with other engines aren't.

    Args:
        engine: a query engine, a chat engine, a response synthesizer, or anything else with `get_prompts`.
        context: as `with_virtual_tokens` takes it.
        question: as `with_virtual_tokens` takes it.
        repeat_question: as `with_virtual_tokens` takes it.

    Raises:
        PromptError: no template of the engine can have a slot; the text says why for each.

    Example:
        ```python
        engine = index.as_query_engine()
        print(upgrade_engine(engine))
        ```
    """
    contexts = (context,) if isinstance(context, str) else tuple(context)
    changed: list[str] = []
    left: dict[str, str] = {}
    slots = 0
    for found in _templates(engine):
        if has_slot(found.template):
            slots += 1
            left[found.name] = "it has its slot already"
        elif reason := _reason_to_leave(found, contexts):
            left[found.name] = reason
        else:
            try:
                slotted = with_virtual_tokens(
                    found.template, contexts, question, repeat_question=repeat_question
                )
                found.put_back(slotted)
            except PromptError as error:
                left[found.name] = str(error)
            else:
                changed.append(found.name)
    if not changed and not slots:
        why = "; ".join(f"{name}: {reason}" for name, reason in left.items()) or "it has no templates"
        msg = f"this {type(engine).__name__} has no template that virtual tokens could go into ({why})"
        raise PromptError(msg)
    return Upgrade(tuple(changed), left)


def _reason_to_leave(found: _Found, contexts: Sequence[str]) -> str | None:
    key = found.name.rpartition(":")[2]
    if "refine" in key:
        return (
            "it refines an earlier answer, which virtual tokens weren't trained to do, and has the question or that answer "
            "before the new context"
        )
    if "condense" in key:
        return "it rephrases the question and has no context"
    if not any(word in key for word in _ANSWERING):
        return "it isn't one that answers a question from a context (text_qa, summary, context)"
    if not has_context(found.template, contexts):
        return f"it has no context ({' or '.join(f'{{{name}}}' for name in contexts)})"
    return None


def _templates(owner: object, prefix: str = "") -> Iterator[_Found]:
    """Every template of an engine with its name, `module:key` as `get_prompts` has it.

    `update_prompts` itself refuses keys of more than one module, as engines within engines have them.
    """
    if isinstance(owner, PromptMixin):
        for key, template in owner.get_prompts().items():
            if ":" not in key:
                yield _Found(prefix + key, template, partial(_update, owner, key))
        for name, module in owner._get_prompt_modules().items():
            yield from _templates(module, f"{prefix}{name}:")
        return
    for attribute in _CHAT_TEMPLATES:
        held = getattr(owner, attribute, None)
        if isinstance(held, BasePromptTemplate):
            yield _Found(prefix + attribute.lstrip("_"), held, partial(setattr, owner, attribute))
    if inner := getattr(owner, "_query_engine", None):
        yield from _templates(inner, f"{prefix}query_engine:")


def _update(owner: PromptMixin, key: str, template: BasePromptTemplate) -> None:
    owner.update_prompts({key: template})
