"""Files, and documents of LangChain's loaders, into a Chroma collection, so that indexing again changes only what changed."""

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
        files: files (or sources of documents) read.
        added: chunks written.
        unchanged: chunks of these files that were there already.
        removed: chunks taken out: of earlier versions of these files, and of files gone from the given folders.
        total: chunks in the collection now.
        gone: chunks, still in the collection, of files that aren't anywhere any more.
        bad: files that couldn't be read, and why. What was indexed of them before stays.
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

    A chunk's id is made of its file's absolute path, its position there and its text. So indexing twice changes
    nothing, a changed file's chunks replace the old ones (new ones are written first: the file never disappears in
    between), and chunks of files that are gone from a given folder are removed. Entries whose ids aren't made so are
    someone else's, and stay. A file that can't be read keeps none of the others from being indexed.

    Each chunk's metadata holds `source` (the file's path as it was given), `path` (absolute) and `position`.

    Args:
        collection: where to; its own embedding function is used.
        paths: files and folders, as `read_files` takes them.
        chunk_size: most characters of a chunk.
        chunk_overlap: characters that neighbouring chunks may share, less than `chunk_size`.
        read: what `read_files` gave for the same paths, if they are read already.
        prune: remove the chunks of all files that don't exist any more, wherever they were.
        progress: told about every batch written.

    Raises:
        DocumentError: a path that doesn't exist, nothing that could be read, or sizes out of range.
        CollectionError: Chroma refuses.
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
    """Put LangChain's documents into a collection, in chunks: what any of its loaders gives, as `WebBaseLoader(url).load()`.

    The documents of one source (`metadata["source"]`; the text itself where there is none) replace what was indexed of that
    source before. Metadata that Chroma can hold (texts, numbers, booleans) goes to the chunks.

    Args:
        collection: where to; its own embedding function is used.
        documents: texts with metadata.
        chunk_size: most characters of a chunk.
        chunk_overlap: characters that neighbouring chunks may share, less than `chunk_size`.
        progress: told about every batch written.

    Raises:
        DocumentError: no documents, or sizes out of range.
        CollectionError: Chroma refuses.
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
    """Add what is new of these chunks, then remove what isn't wanted any more.

    Args:
        collection: where to.
        chunks: what is wanted of the paths in `read`.
        read: paths whose other chunks are of earlier versions.
        is_stale: whether the chunks of another path are to be removed.
        progress: told about every batch written.
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
    # Lengths before the parts: no two different triples give the same bytes.
    return hashlib.sha256(f"{len(path)}:{path}{position}:{text}".encode()).hexdigest()[:32]


def _indexed(collection: Collection) -> dict[str, str]:
    """Path of every entry in the collection that has one, by id."""
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
    """Those of the entries that were written here: only their ids are made of path, position and text."""
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
    """Whether a file isn't there; what isn't a file's path, as that of a web page, never is gone."""
    return os.path.isabs(path) and not os.path.exists(path)


def _as_text(reasons: Mapping[Path, str]) -> dict[str, str]:
    return {_printable(path): reason for path, reason in reasons.items()}


def _printable(path: Path) -> str:
    """A path as valid Unicode: file names may hold bytes that aren't, which Chroma can't store."""
    return os.fsencode(path).decode("utf-8", "replace")


def _batches(items: Iterable[_T]) -> Iterator[list[_T]]:
    remaining = iter(items)
    while batch := list(islice(remaining, _BATCH)):
        yield batch
