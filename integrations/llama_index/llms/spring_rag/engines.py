"""Existing query and chat engines, upgraded in place to prompts that have a slot for virtual tokens."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from llama_index.core import Settings
from llama_index.core.chat_engine.types import BaseChatEngine
from llama_index.core.indices.prompt_helper import PromptHelper
from llama_index.core.objects import ObjectRetriever
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.prompts.mixin import PromptMixin
from llama_index.core.tools import QueryEngineTool
from llama_index.core.utilities.token_counting import TokenCounter

from llama_index.llms.spring_rag.counting import counts_with
from llama_index.llms.spring_rag.llm import SpringLLM
from llama_index.llms.spring_rag.placement import (
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
        counts: whether LlamaIndex's `Settings.tokenizer` is the backbone's from now on, and wasn't before.
    """

    changed: tuple[str, ...]
    left: Mapping[str, str]
    counts: bool = False

    def __str__(self) -> str:
        lines = [f"virtual tokens: {name}" for name in self.changed]
        lines += [f"left as it was: {name} ({why})" for name, why in self.left.items()]
        if self.counts:
            lines.append("Settings.tokenizer: the backbone's own, which counts what fits into its context")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Found:
    """A template and how to replace it; without one, something that makes its engines only while it answers."""

    name: str
    template: BasePromptTemplate | None = None
    put_back: Callable[[BasePromptTemplate], None] = lambda _: None


def upgrade_engine(
    engine: PromptMixin | BaseChatEngine,
    context: str | Sequence[str] = CONTEXT_VARIABLES,
    question: str = QUESTION_VARIABLE,
    *,
    repeat_question: bool = False,
) -> Upgrade:
    """Put a slot into every template of an engine that answers a question from a context.

    These are its text_qa, summary and context templates, also those of the engines, tools and synthesizers inside. All others keep
    answering as the plain backbone; the report names them, and what could not be reached. The engine is changed in place; templates that it shares with other engines aren't.

    Where the engine answers by a `SpringLLM`, LlamaIndex counts with the backbone's tokenizer from now on, in this engine and by
    `Settings.tokenizer`: by default it counts as GPT-3.5 does, and makes prompts that are too long.

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
        if found.template is None:
            left[found.name] = (
                "it makes its engines only while it answers, out of reach from here: upgrade those it makes"
            )
        elif has_slot(found.template):
            slots += 1
            left[found.name] = "it has its slot already"
        elif reason := _reason_to_leave(found.name, found.template, contexts):
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
    return Upgrade(tuple(changed), left, _count_by_backbone(engine))


def _count_by_backbone(engine: object) -> bool:
    """Let LlamaIndex count with the tokenizer of the engine's `SpringLLM`; returns whether that changed its settings."""
    owners = [vars(owner) for _, owner in _owners(engine) if owner is not None]
    llm = next((held for each in owners for held in each.values() if isinstance(held, SpringLLM)), None)
    if llm is None:
        return False
    tokenizer = llm.model.tokenizer
    for each in owners:
        helper = each.get("_prompt_helper")
        if isinstance(helper, PromptHelper):
            # A copy: engines may share it.
            each["_prompt_helper"] = counting = helper.model_copy()
            counting._token_counter = TokenCounter(tokenizer.encode)
    changed = not counts_with(tokenizer)
    Settings.tokenizer = tokenizer.encode
    return changed


def _reason_to_leave(name: str, template: BasePromptTemplate, contexts: Sequence[str]) -> str | None:
    key = name.rpartition(":")[2]
    if "refine" in key:
        return (
            "it refines an earlier answer, which virtual tokens weren't trained to do, and has the question or that answer "
            "before the new context"
        )
    if "condense" in key:
        return "it rephrases the question and has no context"
    if not any(word in key for word in _ANSWERING):
        return "it isn't one that answers a question from a context (text_qa, summary, context)"
    if not has_context(template, contexts):
        return f"it has no context ({' or '.join(f'{{{name}}}' for name in contexts)})"
    return None


def _templates(engine: object) -> Iterator[_Found]:
    """Every template of an engine with its name, `module:key` as `get_prompts` has it, those of engines and tools inside included.

    `update_prompts` itself refuses keys of more than one module, as engines within engines have them.
    """
    for prefix, owner in _owners(engine):
        if owner is None:
            yield _Found(prefix)
        elif isinstance(owner, PromptMixin):
            for key, template in owner.get_prompts().items():
                if ":" not in key:
                    yield _Found(prefix + key, template, partial(_update, owner, key))
        else:
            for attribute in _CHAT_TEMPLATES:
                held = getattr(owner, attribute, None)
                if isinstance(held, BasePromptTemplate):
                    yield _Found(prefix + attribute.lstrip("_"), held, partial(setattr, owner, attribute))


def _owners(owner: object, prefix: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, object]]:
    """An engine and all within it that holds templates, with the prefix of their names; None where something is out of reach."""
    seen = {id(owner)} if seen is None else seen
    yield prefix, owner
    for name, inner in _inside(owner):
        if id(inner) in seen:
            continue
        seen.add(id(inner))
        if isinstance(inner, (PromptMixin, BaseChatEngine)):
            yield from _owners(inner, f"{prefix}{name}:", seen)
        elif isinstance(inner, ObjectRetriever) or (callable(inner) and name.endswith("query_engine_fn")):
            yield prefix + name, None


def _inside(owner: object) -> Iterator[tuple[str, object]]:
    """What an engine is made of, with its name. Prompt modules of LlamaIndex leave out tools and most engines inside."""
    if isinstance(owner, PromptMixin):
        yield from owner._get_prompt_modules().items()
    for attribute, held in vars(owner).items():
        name = attribute.lstrip("_")
        several: Iterable[tuple[object, object]] = ()
        if isinstance(held, Mapping):
            several = held.items()
        elif isinstance(held, (list, tuple)):
            several = enumerate(held)
        named = [(f"{name}[{key}]", each) for key, each in several] or [(name, held)]
        for full_name, each in named:
            yield full_name, each.query_engine if isinstance(each, QueryEngineTool) else each


def _update(owner: PromptMixin, key: str, template: BasePromptTemplate) -> None:
    owner.update_prompts({key: template})
