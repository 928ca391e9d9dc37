"""spring-rag on Chroma: index files, retrieve passages, answer with virtual tokens."""

from spring_rag.extras import extra

with extra("chroma"):
    from chroma_spring_rag.embedders import embedding_function, recorded_embedding
    from chroma_spring_rag.embedding import HashedWords, embedding_named
    from chroma_spring_rag.errors import CollectionError, DocumentError
    from chroma_spring_rag.indexing import IndexReport, index_documents, index_files
    from chroma_spring_rag.qa import Answer, AnswerStream, ChromaQA
    from chroma_spring_rag.reading import FilesRead, read_files
    from chroma_spring_rag.retrieval import Passage, read_sources, read_texts, search
    from chroma_spring_rag.store import (
        connect_folder,
        connect_server,
        delete_collection,
        find_collection,
        list_collections,
        open_collection,
        open_or_create_collection,
    )

__all__ = [
    "Answer",
    "AnswerStream",
    "ChromaQA",
    "CollectionError",
    "DocumentError",
    "FilesRead",
    "HashedWords",
    "IndexReport",
    "Passage",
    "connect_folder",
    "connect_server",
    "delete_collection",
    "embedding_function",
    "embedding_named",
    "find_collection",
    "index_documents",
    "index_files",
    "list_collections",
    "open_collection",
    "open_or_create_collection",
    "read_files",
    "read_sources",
    "read_texts",
    "recorded_embedding",
    "search",
]
