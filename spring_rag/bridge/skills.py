"""A question to a framework's model and its skills, laid out as its virtual tokens were trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from spring_rag.asking import RagAnswer
from spring_rag.bridge.parameters import ChatParameters
from spring_rag.model import SpringModel
from spring_rag.prompt import RagPrompt


def said_of_layout(llm: Any) -> dict[str, Any]:
    """Take what the user of a framework's model said of thinking and of the chat template; its defaults don't count."""
    return {name: getattr(llm, name) for name in ChatParameters.LAYOUT if name in llm.model_fields_set}


def ask_skills(
    model: SpringModel,
    question: str,
    texts: Sequence[str],
    min_answerable: float | None,
    said: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> RagAnswer:
    """Answer a question, with what the attached skills say about it. Raises what `SpringModel.ask` raises.

    Args:
        model: backbone, virtual tokens and skills.
        question: of the user.
        texts: the passages, best first.
        min_answerable: as `SpringModel.ask` takes it.
        said: from `said_of_layout`; wins over what the virtual tokens were trained with.
        settings: how to answer, as `SpringModel.ask` takes them.
    """
    layout = model.template(settings["tokens"])
    extra = {**layout.chat_template_kwargs, **said.get("chat_template_kwargs", {})}
    layout = replace(layout, **{**said, "chat_template_kwargs": extra})
    (told,) = model.ask_many([RagPrompt(question, texts, layout)], min_answerable, **settings)
    return told
