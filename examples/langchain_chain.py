"""A LangChain chain whose prompt has a slot for virtual tokens: `python examples/langchain_chain.py`.

Needs spring-rag[langchain,chroma] and langchain-chroma.
"""

from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import RunnablePassthrough

from chroma_spring_rag import HashedWords
from langchain_spring_rag import SpringLLM, with_virtual_tokens
from spring_rag.demo.default import default_backbone
from spring_rag.demo.paths import TOKENS

TEXTS = [
    "The bridge of Morven was built by Ada Quill in 1811.",
    "The ship Petrel carried salt and was lost off Cape Dunn.",
    "The market of Morven is held on Tuesdays, from eight to noon.",
]


class Words(Embeddings):
    """Any embeddings will do; these need no download."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [vector.tolist() for vector in HashedWords()(texts)]

    def embed_query(self, text: str) -> list[float]:
        return HashedWords().embed_query([text])[0].tolist()


def join(documents: list[Document]) -> str:
    return "\n".join(document.page_content for document in documents)


retriever = Chroma.from_texts(TEXTS, Words(), collection_name="example").as_retriever(search_kwargs={"k": 2})
prompt = PromptTemplate.from_template("{context}\n\nQuestion: {question}\nAnswer:")
llm = SpringLLM(model=default_backbone(), virtual_tokens=str(TOKENS), max_tokens=24)

found = {"context": retriever | join, "question": RunnablePassthrough()}
plain = found | prompt | llm
app = found | with_virtual_tokens(prompt) | llm

question = "On which day is the market of Morven?"
print("plain:              ", plain.invoke(question))
print("with virtual tokens:", app.invoke(question))
