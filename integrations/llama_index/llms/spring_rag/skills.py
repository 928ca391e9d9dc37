"""A query engine whose answers say where they stand, and whether the documents hold them."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import Response
from llama_index.core.callbacks import CallbackManager
from llama_index.core.prompts.mixin import PromptMixinType
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

from llama_index.llms.spring_rag.llm import SpringLLM
from spring_rag.bridge.skills import ask_skills, said_of_layout
from spring_rag.bridge.threads import in_thread


class SkillQueryEngine(BaseQueryEngine):
    """Answers from what a retriever finds, in one batch over one context with the model's skills.

    The response's `metadata` holds `answerable` (a probability, None without that skill), `citations` (numbers of source nodes from 1,
    likeliest first), `cited_nodes` (their ids) and `withheld`. Skills are attached with `llm.model.add_skill(…)`; on a running vLLM as well.

    Args:
        retriever: finds the nodes, best first.
        llm: its settings hold for the answer; the prompt is laid out as its virtual tokens were trained.
        min_answerable: withhold the answer where the probability that the nodes hold it is below; needs the skill `answerable`.
        withheld_text: stands in place of an answer that is withheld.

    Example:
        ```python
        llm.model.add_skill("path or Hub id of tokens trained with --task cite")
        engine = SkillQueryEngine(index.as_retriever(similarity_top_k=5), llm)
        response = engine.query("Who built the bridge?")
        response.metadata["citations"], response.source_nodes
        ```
    """

    def __init__(
        self,
        retriever: BaseRetriever,
        llm: SpringLLM,
        *,
        min_answerable: float | None = None,
        withheld_text: str = "The documents don't say.",
        callback_manager: CallbackManager | None = None,
    ) -> None:
        super().__init__(callback_manager)
        self._retriever, self._llm = retriever, llm
        self._least, self._withheld_text = min_answerable, withheld_text

    def _get_prompt_modules(self) -> PromptMixinType:
        return {}

    def retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """What the retriever finds."""
        return self._retriever.retrieve(query_bundle)

    def _query(self, query_bundle: QueryBundle) -> Response:
        return self._answer(query_bundle, self.retrieve(query_bundle))

    async def _aquery(self, query_bundle: QueryBundle) -> Response:
        nodes = await self._retriever.aretrieve(query_bundle)
        return await in_thread(self._answer, query_bundle, nodes)

    def _answer(self, query: QueryBundle, nodes: list[NodeWithScore]) -> Response:
        texts = [node.get_content(metadata_mode=MetadataMode.LLM) for node in nodes]
        told = ask_skills(
            self._llm.model,
            query.query_str,
            texts,
            self._least,
            said_of_layout(self._llm),
            self._llm._arguments(),
        )
        metadata: dict[str, Any] = {
            "answerable": told.answerable,
            "citations": told.citations,
            "cited_nodes": [nodes[number - 1].node_id for number in told.citations],
            "withheld": told.withheld,
            "logprob": told.logprob,
            "finish_reason": told.finish_reason,
        }
        text = self._withheld_text if told.withheld else told.text
        return Response(response=text, source_nodes=nodes, metadata=metadata)
