"""A LlamaIndex query engine, upgraded to virtual tokens: `python examples/llama_index_engine.py`.

Needs spring-rag[llama-index,chroma].
"""

from llama_index.core import Document, Settings, VectorStoreIndex
from llama_index.core.embeddings import BaseEmbedding

from chroma_spring_rag import HashedWords
from llama_index.llms.spring_rag import SpringLLM, upgrade_engine
from spring_rag.demo.default import default_backbone
from spring_rag.demo.paths import TOKENS

TEXTS = [
    "The bridge of Morven was built by Ada Quill in 1811.",
    "The ship Petrel carried salt and was lost off Cape Dunn.",
    "The market of Morven is held on Tuesdays, from eight to noon.",
]


class Words(BaseEmbedding):
    """Any embeddings will do; these need no download."""

    def _get_text_embedding(self, text: str) -> list[float]:
        return HashedWords()([text])[0].tolist()

    def _get_query_embedding(self, query: str) -> list[float]:
        return HashedWords().embed_query([query])[0].tolist()

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


Settings.embed_model = Words()
Settings.llm = SpringLLM.from_pretrained(default_backbone(), tokens=TOKENS, max_tokens=24)
Settings.tokenizer = Settings.llm.model.tokenizer.encode  # counts what fits into the context

index = VectorStoreIndex.from_documents([Document(text=text) for text in TEXTS])
engine = index.as_query_engine(similarity_top_k=2)
question = "On which day is the market of Morven?"

print("plain:              ", engine.query(question))
print(upgrade_engine(engine))
print("with virtual tokens:", engine.query(question))
