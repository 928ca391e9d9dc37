"""The prompt that virtual tokens are trained with, and its numbered passages."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable

from langchain_spring_rag.placement import with_virtual_tokens
from spring_rag.prompt import SLOT_MARKER, RagTemplate

PASSAGE_PROMPT = PromptTemplate.from_template("{passage}")
"""For documents from `number_passages`: `create_stuff_documents_chain(…, document_prompt=PASSAGE_PROMPT, document_separator="")`."""


def rag_prompt(template: RagTemplate | None = None) -> PromptTemplate | ChatPromptTemplate:
    r"""The ready-made prompt: variables `context` (from `format_passages`) and `question`.

    Args:
        template: the layout that the virtual tokens were trained with (`model.template()`); by default that of SPRING's
            authors, `{context}⟨slot⟩Question: {question}\nAnswer:`.

    Returns:
        A `PromptTemplate`, or a `ChatPromptTemplate` if the layout is that of a chat.
    """
    template = template or RagTemplate()
    context = _literal(template.opening) + "{context}"
    text = context + SLOT_MARKER + _literal(template.instruction) + template.question
    if not template.chat:
        return with_virtual_tokens(PromptTemplate.from_template(text))
    messages = [("human", text)]
    if template.system is not None:
        messages.insert(0, ("system", _literal(template.system)))
    return with_virtual_tokens(ChatPromptTemplate.from_messages(messages))


def format_passages(documents: Sequence[Document], template: RagTemplate | None = None) -> str:
    """The context of `rag_prompt`: the documents' texts, numbered from 1, as in `retriever | format_passages`.

    Args:
        documents: best first.
        template: as `rag_prompt` takes it.
    """
    return "".join(_passages([document.page_content for document in documents], template))


def number_passages(documents: Sequence[Document], template: RagTemplate | None = None) -> list[Document]:
    """The same documents, each with its numbered text as metadata `passage`, for chains that format them one by one.

    Args:
        documents: best first.
        template: as `rag_prompt` takes it.
    """
    passages = _passages([document.page_content for document in documents], template)
    return [
        document.model_copy(update={"metadata": {**document.metadata, "passage": passage}})
        for document, passage in zip(documents, passages, strict=True)
    ]


class NumberingRetriever(BaseRetriever):
    """Any retriever, its documents numbered by `number_passages`. For chains that take nothing but a retriever.

    As in `RetrievalQA.from_chain_type(llm, retriever=NumberingRetriever(retriever=retriever), chain_type_kwargs={"prompt":
    rag_prompt(), "document_prompt": PASSAGE_PROMPT, "document_separator": ""})`.
    """

    retriever: Runnable[str, list[Document]]
    """Finds the documents, best first."""

    template: RagTemplate | None = None
    """The layout of a passage, as `rag_prompt` takes it."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        found = self.retriever.invoke(query, config={"callbacks": run_manager.get_child()})
        return number_passages(found, self.template)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun
    ) -> list[Document]:
        found = await self.retriever.ainvoke(query, config={"callbacks": run_manager.get_child()})
        return number_passages(found, self.template)


def _passages(texts: Sequence[str], template: RagTemplate | None) -> list[str]:
    """The numbered texts; the last one ends with what ends the context."""
    template = template or RagTemplate()
    # A RagTemplate has made sure that nothing but these two names stands in braces.
    passages = [template.passage.format(number=i, passage=text) for i, text in enumerate(texts, start=1)]
    if passages:
        passages[-1] += template.context_end
    return passages


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
