"""A node postprocessor that numbers passages, as the virtual tokens saw them in training."""

from llama_index.core.bridge.pydantic import Field
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle


class NumberedPassages(BaseNodePostprocessor):
    """Puts each passage's rank in front of it, `[1] …`, `[2] …`, as in the layout of SPRING's authors.

    It works on copies, so that the index keeps its nodes as they are. Put it last: what reorders or drops nodes comes before.
    Passages without text (images) keep their place and get no number.

    Example:
        ```python
        engine = index.as_query_engine(node_postprocessors=[NumberedPassages()])
        ```
    """

    passage: str = Field(
        default="[{number}] {passage}",
        description="One passage, with `{passage}` and its rank, `{number}`, from 1; a literal brace is doubled.",
    )

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex serialises this component."""
        return "NumberedPassages"

    def _postprocess_nodes(
        self,
        nodes: list[NodeWithScore],
        query_bundle: QueryBundle | None = None,  # noqa: ARG002 - LlamaIndex passes it by this name
    ) -> list[NodeWithScore]:
        numbered, number = [], 0
        for each in nodes:
            content = each.node.get_content(metadata_mode=MetadataMode.LLM)
            if content:
                number += 1
                node = each.node.model_copy(deep=True)
                node.set_content(self.passage.format(number=number, passage=content))
                # The content shows them now, behind the number.
                node.excluded_llm_metadata_keys = list(node.metadata)
                each = NodeWithScore(node=node, score=each.score)
            numbered.append(each)
        return numbered
