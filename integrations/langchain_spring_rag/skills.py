"""Answers with what skills say about them, as the end of a chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableLambda

from langchain_spring_rag.chat_models import REASONING, ChatSpring
from langchain_spring_rag.llms import SpringLLM
from langchain_spring_rag.parameters import usage_metadata
from spring_rag.bridge.skills import ask_skills, said_of_layout


def with_skills(
    llm: ChatSpring | SpringLLM,
    *,
    min_answerable: float | None = None,
    context: str = "context",
    question: str = "question",
) -> Runnable[Mapping[str, Any], dict[str, Any]]:
    """Answer from documents, and tell whether they hold the answer and which of them, in one batch over one context.

    In place of prompt, model and parser, as in `{"context": retriever, "question": RunnablePassthrough()} | with_skills(llm)`. The
    prompt is laid out as the virtual tokens were trained. Skills are attached with `llm.spring_model.add_skill(…)`; on a running vLLM
    as well.

    Args:
        llm: its settings hold for the answer.
        min_answerable: withhold the answer where the probability that the documents hold it is below; needs the skill `answerable`.
        context: the input that holds the documents, best first, or texts.
        question: the input that holds the question.

    Returns:
        A Runnable that gives a dict: `answer` (empty where it is withheld), `answerable` (None without that skill), `citations`
        (numbers of documents from 1, likeliest first), `sources` (the cited documents), `withheld`, `logprob` (the higher, the surer is
        the model of its answer), and `message`, an `AIMessage` that has all of this but the documents in its `response_metadata`. It
        raises what `SpringModel.ask` raises.
    """

    def answer(given: Mapping[str, Any]) -> dict[str, Any]:
        found: Sequence[Document | str] = given[context]
        texts = [one.page_content if isinstance(one, Document) else one for one in found]
        told = ask_skills(
            llm.spring_model, given[question], texts, min_answerable, said_of_layout(llm), llm._arguments()
        )
        facts = {
            "answerable": told.answerable,
            "citations": told.citations,
            "withheld": told.withheld,
            "logprob": told.logprob,
        }
        message = AIMessage(
            content=told.text,
            additional_kwargs={} if told.reasoning is None else {REASONING: told.reasoning},
            usage_metadata=usage_metadata(told),
            response_metadata={
                "finish_reason": told.finish_reason,
                "model_name": llm.model_name,
                **facts,
            },
        )
        sources = [found[number - 1] for number in told.citations]
        return {"answer": told.text, **facts, "sources": sources, "message": message}

    return RunnableLambda(answer, name="with_skills")
