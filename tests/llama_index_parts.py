"""Real parts for the LlamaIndex tests: a tiny model that writes down its prompts, an index on Chroma, offline embeddings."""

import copy
import uuid
import warnings
from collections.abc import Generator, Sequence
from typing import Any

import chromadb
import torch
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_selector import BaseSelector, SelectorResult, SingleSelection
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.question_gen.types import BaseQuestionGenerator, SubQuestion
from llama_index.core.schema import TextNode
from llama_index.core.tools import QueryEngineTool
from llama_index.vector_stores.chroma import ChromaVectorStore
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from chroma_spring_rag import HashedWords
from spring_rag import Prompt, Slot, SpringModel, VirtualTokens
from spring_rag.backends.base import Generation
from spring_rag.prompt import Part

FACTS = (
    "The bridge of Morven was built by Ada Quill in 1811.",
    "The ship Petrel carried salt and was lost off Cape Dunn.",
    "The Harbour Act forbids anchoring after dusk.",
)
QUESTION = "Who built the bridge of Morven?"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}]\n{{ message['content'] }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
SLOT = "⟨slot⟩"


class RecordingModel(SpringModel):
    """A SpringModel that keeps what it is asked, and its streams, which nothing closes then but who is meant to."""

    def _set_up(self, *args: Any) -> None:
        super()._set_up(*args)
        self.prompts: list[Prompt] = []
        self.streams: list[Generator[str, None, Generation]] = []

    def generate(self, prompts: Sequence[Prompt], **settings: Any) -> Any:
        self.prompts += prompts
        return super().generate(prompts, **settings)

    def stream(self, prompt: Prompt, **settings: Any) -> Any:
        self.prompts.append(prompt)
        self.streams.append(super().stream(prompt, **settings))
        return self.streams[-1]


def spring_model(
    tokenizer: PreTrainedTokenizerFast, tokens: VirtualTokens | None, *, chat: bool, positions: int = 4096
) -> RecordingModel:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = CHAT_TEMPLATE if chat else None
    config = LlamaConfig(
        vocab_size=352,
        bos_token_id=1,
        eos_token_id=2,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=positions,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = LlamaForCausalLM(config).eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="these virtual tokens don't record their backbone")
        return RecordingModel(backbone, tokenizer, tokens=tokens)


def shown(parts: Sequence[Part]) -> str:
    """The text of parts, with `⟨slot⟩` where the slot is."""
    return "".join(SLOT if isinstance(part, Slot) else part.text for part in parts)


def shown_prompt(prompt: Prompt) -> str:
    if prompt.messages:
        return "\n".join(f"[{message.role}] {shown(message.parts)}" for message in prompt.messages)
    return shown(prompt.parts)


class OfflineEmbedding(BaseEmbedding):
    """HashedWords, as LlamaIndex wants an embedding."""

    def _get_text_embedding(self, text: str) -> list[float]:
        return [float(value) for value in HashedWords()([text])[0]]

    def _get_query_embedding(self, query: str) -> list[float]:
        return [float(value) for value in HashedWords().embed_query([query])[0]]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


def chroma_index(texts: Sequence[str] = FACTS) -> VectorStoreIndex:
    collection = chromadb.EphemeralClient().create_collection(f"facts-{uuid.uuid4().hex}")
    store = ChromaVectorStore(chroma_collection=collection)
    return VectorStoreIndex(
        [TextNode(text=text) for text in texts],
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=OfflineEmbedding(),
    )


class First(BaseSelector):
    """Selects the first choice."""

    def _select(self, choices: Any, query: Any) -> SelectorResult:
        return SelectorResult(selections=[SingleSelection(index=0, reason="it is the first")])

    async def _aselect(self, choices: Any, query: Any) -> SelectorResult:
        return self._select(choices, query)

    def _get_prompts(self) -> dict[str, Any]:
        return {}

    def _update_prompts(self, prompts: Any) -> None:
        pass


def tools(*engines: BaseQueryEngine) -> list[QueryEngineTool]:
    return [
        QueryEngineTool.from_defaults(engine, name=f"tool{i}", description="facts")
        for i, engine in enumerate(engines)
    ]


class OneQuestion(BaseQuestionGenerator):
    """Asks the question itself of the first tool."""

    def generate(self, tools: Any, query: Any) -> list[SubQuestion]:
        return [SubQuestion(sub_question=query.query_str, tool_name=tools[0].name)]

    async def agenerate(self, tools: Any, query: Any) -> list[SubQuestion]:
        return self.generate(tools, query)

    def _get_prompts(self) -> dict[str, Any]:
        return {}

    def _update_prompts(self, prompts: Any) -> None:
        pass
