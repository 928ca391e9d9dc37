"""spring-rag on Chroma: index files, retrieve passages, answer with virtual tokens."""

from spring_rag.extras import extra

with extra("chroma"):
    from chroma_spring_rag.embedding import HashedWords, embedding_named
    from chroma_spring_rag.errors import CollectionError, DocumentError
    from chroma_spring_rag.indexing import IndexReport, index_files, read_files
    from chroma_spring_rag.qa import Answer, AnswerStream, ChromaQA
    from chroma_spring_rag.retrieval import Passage, read_texts, search
    from chroma_spring_rag.store import (
        connect_folder,
        connect_server,
        open_collection,
        open_or_create_collection,
    )

__all__ = [
    "Answer",
    "AnswerStream",
    "ChromaQA",
    "CollectionError",
    "DocumentError",
    "HashedWords",
    "IndexReport",
    "Passage",
    "connect_folder",
    "connect_server",
    "embedding_named",
    "index_files",
    "open_collection",
    "open_or_create_collection",
    "read_files",
    "read_texts",
    "search",
]
