"""Index files and LangChain's documents in a Chroma collection; indexing again updates only what changed."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Collection as Container
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from chromadb import Collection
from langchain_core.documents import Document
from langchain_text_splitters import Language, RecursiveCharacterTextSplitter

from chroma_spring_rag.embedders import chosen_function, embedded
from chroma_spring_rag.errors import DocumentError, chroma_errors
from chroma_spring_rag.reading import FilesRead, is_markdown, read_files
from spring_rag.callbacks import OnProgress

DEFAULT_CHUNK_SIZE = 1000
DEFAULT_CHUNK_OVERLAP = 100

# 256 vectors of 4,096 numbers are some 20 MB of JSON, half of what a Chroma server takes in one request.
_BATCH = 256
_PAGE = 5000

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What indexing did.

    Attributes:
        files: number of files (or sources of documents) read.
        added: number of chunks written.
        unchanged: number of chunks of these files that were in the collection already.
        removed: number of chunks removed: of earlier versions of these files, and of files that are gone from the given folders.
        total: number of chunks in the collection now.
        gone: number of chunks that are still in the collection although their files no longer exist.
        bad: files that couldn't be read, and why. Their earlier chunks stay.
        skipped: files of the given folders that weren't tried, and why.
    """

    files: int
    added: int
    unchanged: int
    removed: int
    total: int
    gone: int = 0
    bad: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Chunk:
    id: str
    text: str
    path: str
    metadata: Mapping[str, Any]


def index_files(
    collection: Collection,
    paths: Iterable[Path],
    *,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    chunk_overlap: int = DEFAULT_CHUNK_OVERLAP,
    read: FilesRead | None = None,
    prune: bool = False,
    progress: OnProgress | None = None,
) -> IndexReport:
    """Put files into a collection, in chunks.

    A chunk's id is made from its file's absolute path, its position there and its text. So indexing twice changes
    nothing, a changed file's chunks replace the old ones (the new ones are written first, so that the file is always in the
    collection), and chunks of files that are gone from a given folder are removed. Entries with other ids were written by someone
    else, and stay. A file that can't be read doesn't stop the others from being indexed.

    Each chunk's metadata holds `source` (the file's path as it was given), `path` (absolute) and `position`.

    Args:
        collection: the collection to write to; its own embedding function is used.
        paths: files and folders, as for `read_files`.
        chunk_size: most characters of a chunk.
        chunk_overlap: characters that neighbouring chunks may share, less than `chunk_size`.
        read: the result of `read_files` for these paths, if they are read already.
        prune: remove the chunks of all files that no longer exist, in any folder.
        progress: called after every batch with the number of chunks written, and of all.

    Raises:
        DocumentError: a path doesn't exist, nothing could be read, or the sizes are out of range.
        CollectionError: Chroma fails.
    """
    paths = list(paths)
    read = read_files(paths) if read is None else read
    if not prune:
        read.refuse_nothing(paths)
    splitters = {kind: _splitter(kind, chunk_size, chunk_overlap) for kind in (True, False)}
    chunks = [
        chunk
        for path, text in read.texts.items()
        for chunk in _chunks(
            splitters[is_markdown(path)].split_text(text),
            _printable(path.resolve()),
            {"source": _printable(Path(os.path.normpath(path)))},
        )
    ]
    folders = [path.resolve() for path in paths if path.is_dir()]

    def is_stale(path: str) -> bool:
        return (prune or any(map(Path(path).is_relative_to, folders))) and _is_gone(path)

    report = _write(
        collection, chunks, {_printable(path.resolve()) for path in read.texts}, is_stale, progress
    )
    return replace(report, bad=_as_text(read.bad), skipped=_as_text(read.skipped))


def index_documents(
    collection: Collection,
    documents: Iterable[Document],
    *,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    chunk_overlap: int = DEFAULT_CHUNK_OVERLAP,
    progress: OnProgress | None = None,
) -> IndexReport:
    """Put documents of LangChain's loaders into a collection, in chunks, such as those of `WebBaseLoader(url).load()`.

    The documents of one source (`metadata["source"]`, or the text itself if there is none) replace the chunks that were indexed from that
    source before. Metadata that Chroma can hold (texts, numbers, booleans) goes to the chunks.

    Args:
        collection: the collection to write to; its own embedding function is used.
        documents: texts with metadata.
        chunk_size: most characters of a chunk.
        chunk_overlap: characters that neighbouring chunks may share, less than `chunk_size`.
        progress: called after every batch with the number of chunks written, and of all.

    Raises:
        DocumentError: there are no documents, or the sizes are out of range.
        CollectionError: Chroma fails.
    """
    splitter = _splitter(False, chunk_size, chunk_overlap)
    pieces: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for document in documents:
        own = {k: v for k, v in document.metadata.items() if isinstance(v, (str, int, float, bool))}
        source = str(own.get("source") or hashlib.sha256(document.page_content.encode()).hexdigest()[:16])
        parts = pieces.setdefault(source, [])
        parts += [(piece, {**own, "source": source}) for piece in splitter.split_text(document.page_content)]
    if not pieces:
        msg = "there are no documents to index"
        raise DocumentError(msg)
    chunks = [
        _chunk(piece, source, position, metadata)
        for source, parts in pieces.items()
        for position, (piece, metadata) in enumerate(parts)
    ]
    return _write(collection, chunks, set(pieces), lambda _: False, progress)


def _write(
    collection: Collection,
    chunks: Sequence[_Chunk],
    read: Container[str],
    is_stale: Callable[[str], bool],
    progress: OnProgress | None,
) -> IndexReport:
    """Add the chunks that are new, then remove those that are out of date.

    Args:
        collection: the collection to write to.
        chunks: all current chunks of the paths in `read`.
        read: paths whose other chunks are out of date.
        is_stale: tells whether the chunks of a path that isn't in `read` are to be removed.
        progress: called after every batch with the number of chunks written, and of all.
    """
    function = chosen_function(collection)
    there = _indexed(collection)
    wanted = {chunk.id for chunk in chunks}
    new = [chunk for chunk in chunks if chunk.id not in there]
    others = {id_: path for id_, path in there.items() if id_ not in wanted}
    with chroma_errors(f"writing to the collection {collection.name!r}"):
        written = 0
        for batch in _batches(new):
            collection.upsert(
                ids=[chunk.id for chunk in batch],
                embeddings=embedded(function, [chunk.text for chunk in batch]),
                documents=[chunk.text for chunk in batch],
                metadatas=[chunk.metadata for chunk in batch],
            )
            written += len(batch)
            if progress is not None:
                progress(written, len(new))
        stale = _own(collection, [id_ for id_, path in others.items() if path in read or is_stale(path)])
        for ids in _batches(stale):
            collection.delete(ids=ids)
        gone = _own(
            collection,
            [
                id_
                for id_, path in others.items()
                if path not in read and not is_stale(path) and _is_gone(path)
            ],
        )
        total = collection.count()
    return IndexReport(len(read), len(new), len(chunks) - len(new), len(stale), total, len(gone))


def _splitter(markdown: bool, chunk_size: int, chunk_overlap: int) -> RecursiveCharacterTextSplitter:
    if not 0 <= chunk_overlap < chunk_size:
        msg = f"chunk_overlap must be at least 0 and less than chunk_size; they are {chunk_overlap} and {chunk_size}"
        raise DocumentError(msg)
    sizes: dict[str, Any] = {"chunk_size": chunk_size, "chunk_overlap": chunk_overlap}
    if markdown:
        return RecursiveCharacterTextSplitter.from_language(Language.MARKDOWN, **sizes)
    return RecursiveCharacterTextSplitter(**sizes)


def _chunks(pieces: Iterable[str], path: str, metadata: Mapping[str, Any]) -> Iterator[_Chunk]:
    for position, piece in enumerate(pieces):
        yield _chunk(piece, path, position, metadata)


def _chunk(text: str, path: str, position: int, metadata: Mapping[str, Any]) -> _Chunk:
    return _Chunk(_id(path, position, text), text, path, {**metadata, "path": path, "position": position})


def _id(path: str, position: object, text: str) -> str:
    # The path's length comes first, so that no two different triples give the same bytes.
    return hashlib.sha256(f"{len(path)}:{path}{position}:{text}".encode()).hexdigest()[:32]


def _indexed(collection: Collection) -> dict[str, str]:
    """Return by id the path of every entry that has one."""
    there: dict[str, str] = {}
    offset = 0
    with chroma_errors(f"reading the collection {collection.name!r}"):
        while True:
            page = collection.get(limit=_PAGE, offset=offset, include=["metadatas"])
            for id_, metadata in zip(page["ids"], page["metadatas"] or [], strict=True):
                path = (metadata or {}).get("path")
                if isinstance(path, str):
                    there[id_] = path
            offset += len(page["ids"])
            if not page["ids"]:
                return there


def _own(collection: Collection, ids: Sequence[str]) -> list[str]:
    """Return the ids of entries that this module wrote: only these are made from path, position and text."""
    own = []
    for batch in _batches(ids):
        page = collection.get(ids=batch, include=["metadatas", "documents"])
        for id_, metadata, text in zip(
            page["ids"], page["metadatas"] or [], page["documents"] or [], strict=True
        ):
            facts = metadata or {}
            if id_ == _id(str(facts.get("path")), facts.get("position"), text or ""):
                own.append(id_)
    return own


def _is_gone(path: str) -> bool:
    """Return whether a path is a file's and the file no longer exists; a web page's address, for example, is never gone.

    Nor is a file whose name isn't UTF-8, since what `_printable` made of it can't be looked up.
    """
    return os.path.isabs(path) and "\ufffd" not in path and not os.path.exists(path)


def _as_text(reasons: Mapping[Path, str]) -> dict[str, str]:
    return {_printable(path): reason for path, reason in reasons.items()}


def _printable(path: Path) -> str:
    """Return a path as valid Unicode, since Chroma can't store other bytes that a file name may hold."""
    return os.fsencode(path).decode("utf-8", "replace")


def _batches(items: Iterable[_T]) -> Iterator[list[_T]]:
    remaining = iter(items)
    while batch := list(islice(remaining, _BATCH)):
        yield batch
