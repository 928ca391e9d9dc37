"""Retrieve passages by retrievers of LangChain and LlamaIndex; neither has to be installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from chroma_spring_rag.retrieval import Passage, source_of


@runtime_checkable
class LangChainRetriever(Protocol):
    """The method used of `langchain_core.retrievers.BaseRetriever`, and of chains that end in one."""

    def invoke(self, input: str) -> Sequence[Any]:  # noqa: A002 - LangChain's name
        """Return the documents for a question, best first."""


@runtime_checkable
class LlamaIndexRetriever(Protocol):
    """The method used of `llama_index.core.retrievers.BaseRetriever`."""

    def retrieve(self, str_or_query_bundle: str) -> Sequence[Any]:
        """Return the nodes for a question, best first."""


AnyRetriever = LangChainRetriever | LlamaIndexRetriever


def retrieve(retriever: AnyRetriever, question: str) -> list[Passage]:
    """Return the passages that a retriever finds for a question, in the retriever's order.

    Args:
        retriever: a retriever of LangChain or LlamaIndex. LangChain's give no scores.
        question: the question's text.

    Raises:
        TypeError: it is no retriever of LangChain or LlamaIndex.
    """
    if isinstance(retriever, LlamaIndexRetriever):
        return [
            _passage(each.node.get_content(), each.node.metadata, each.node.node_id, each.score)
            for each in retriever.retrieve(question)
        ]
    if isinstance(retriever, LangChainRetriever):
        return [
            _passage(each.page_content, each.metadata, each.id or "", None)
            for each in retriever.invoke(question)
        ]
    msg = f"a {type(retriever).__name__} is no retriever of LangChain or LlamaIndex"
    raise TypeError(msg)


def _passage(text: str, metadata: Mapping[str, Any], id_: str, score: float | None) -> Passage:
    return Passage(text, source_of(id_, metadata), None if score is None else float(score))
