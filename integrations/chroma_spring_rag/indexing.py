"""Text files into a Chroma collection, so that indexing again changes only what changed."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from chromadb import Collection
from langchain_text_splitters import Language, RecursiveCharacterTextSplitter

from chroma_spring_rag.errors import DocumentError, chroma_errors

DEFAULT_CHUNK_SIZE = 1000
DEFAULT_CHUNK_OVERLAP = 100

_MARKDOWN_SUFFIXES = {".md", ".markdown"}
_TEXT_SUFFIXES = {".txt", ".text"} | _MARKDOWN_SUFFIXES

# 256 vectors of 4,096 numbers are some 20 MB of JSON, half of what a Chroma server takes in one request.
_BATCH = 256
_PAGE = 5000

_T = TypeVar("_T")

Progress = Callable[[int, int], None]
"""Called with the number of chunks written so far and the number to write."""


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What indexing did.

    Attributes:
        files: files read.
        added: chunks written.
        unchanged: chunks of these files that were there already.
        removed: chunks taken out: of earlier versions of these files, and of files gone from the given folders.
        total: chunks in the collection now.
    """

    files: int
    added: int
    unchanged: int
    removed: int
    total: int


@dataclass(frozen=True, slots=True)
class _Chunk:
    id: str
    text: str
    source: str
    path: str
    position: int


def read_files(paths: Sequence[Path]) -> dict[Path, str]:
    """The texts of the files that `index_files` would put into a collection, by path.

    Args:
        paths: as `index_files` takes them.

    Raises:
        DocumentError: as `index_files` has it; names all that can't be read.
    """
    texts: dict[Path, str] = {}
    problems = []
    for file in _find_files(paths):
        try:
            texts[file] = file.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            problems.append(f"{file} isn't UTF-8 text (byte {error.start}: {error.reason})")
        except OSError as error:
            problems.append(f"{file} can't be read ({error.strerror})")
    if problems:
        msg = f"nothing was indexed: {'; '.join(problems)}. Convert or leave out these files"
        raise DocumentError(msg)
    return texts


def index_files(
    collection: Collection,
    paths: Iterable[Path],
    *,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    chunk_overlap: int = DEFAULT_CHUNK_OVERLAP,
    texts: Mapping[Path, str] | None = None,
    progress: Progress | None = None,
) -> IndexReport:
    """Put text and Markdown files into a collection, in chunks.

    A chunk's id is made of its file's absolute path, its position there and its text. So indexing twice changes
    nothing, a changed file's chunks replace the old ones (new ones are written first: the file never disappears in
    between), and chunks of files that are gone from a given folder are removed. All files are read before
    anything is written: if one can't be, nothing changes.

    Each chunk's metadata holds `source` (the file's path as it was given), `path` (absolute) and `position`.

    Args:
        collection: where to; its own embedding function is used.
        paths: files, of any name, and folders, of which all .txt, .text, .md and .markdown files are taken,
            hidden ones left out.
        chunk_size: most characters of a chunk.
        chunk_overlap: characters that neighbouring chunks may share, less than `chunk_size`.
        texts: what `read_files` gave for the same paths, if they are read already.
        progress: told about every batch written.

    Raises:
        DocumentError: a path that doesn't exist, a folder without text files, files that aren't UTF-8 text, or
            sizes out of range.
        CollectionError: Chroma refuses.
    """
    if not 0 <= chunk_overlap < chunk_size:
        msg = f"chunk_overlap must be at least 0 and less than chunk_size; they are {chunk_overlap} and {chunk_size}"
        raise DocumentError(msg)
    paths = list(paths)
    texts = read_files(paths) if texts is None else texts
    chunks = [
        chunk for path, text in texts.items() for chunk in _split(path, text, chunk_size, chunk_overlap)
    ]

    there = _indexed(collection)
    wanted = {chunk.id for chunk in chunks}
    read = {_identity(path) for path in texts}
    folders = [path.resolve() for path in paths if path.is_dir()]
    new = [chunk for chunk in chunks if chunk.id not in there]
    stale = [
        id_
        for id_, path in there.items()
        if id_ not in wanted and (path in read or _is_gone(Path(path), folders))
    ]

    with chroma_errors(f"writing to the collection {collection.name!r}"):
        written = 0
        for batch in _batches(new):
            collection.upsert(
                ids=[chunk.id for chunk in batch],
                documents=[chunk.text for chunk in batch],
                metadatas=[
                    {"source": chunk.source, "path": chunk.path, "position": chunk.position}
                    for chunk in batch
                ],
            )
            written += len(batch)
            if progress is not None:
                progress(written, len(new))
        for batch_of_ids in _batches(stale):
            collection.delete(ids=batch_of_ids)
        total = collection.count()
    return IndexReport(len(texts), len(new), len(chunks) - len(new), len(stale), total)


def _find_files(paths: Sequence[Path]) -> list[Path]:
    """The files to read, each once, in the order given; those of a folder sorted."""
    found: dict[Path, Path] = {}
    for path in paths:
        if path.is_dir():
            files = list(_text_files(path))
            if not files:
                msg = f"the folder {path} holds no text files ({', '.join(sorted(_TEXT_SUFFIXES))})"
                raise DocumentError(msg)
        elif path.exists():
            files = [path]
        else:
            msg = f"{path} doesn't exist"
            raise DocumentError(msg)
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def _text_files(folder: Path) -> Iterator[Path]:
    for root, subfolders, names in os.walk(folder):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            if Path(name).suffix.lower() in _TEXT_SUFFIXES and not name.startswith("."):
                yield Path(root, name)


def _split(path: Path, text: str, chunk_size: int, chunk_overlap: int) -> Iterator[_Chunk]:
    if path.suffix.lower() in _MARKDOWN_SUFFIXES:
        splitter = RecursiveCharacterTextSplitter.from_language(
            Language.MARKDOWN, chunk_size=chunk_size, chunk_overlap=chunk_overlap
        )
    else:
        splitter = RecursiveCharacterTextSplitter(chunk_size=chunk_size, chunk_overlap=chunk_overlap)
    identity = _identity(path)
    for position, piece in enumerate(splitter.split_text(text)):
        # Lengths before the parts: no two different triples give the same bytes.
        key = f"{len(identity)}:{identity}{position}:{piece}"
        id_ = hashlib.sha256(key.encode()).hexdigest()[:32]
        yield _Chunk(id_, piece, _printable(Path(os.path.normpath(path))), identity, position)


def _indexed(collection: Collection) -> dict[str, str]:
    """Path of every chunk in the collection that `index_files` wrote, by id."""
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


def _is_gone(path: Path, folders: Iterable[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders) and not path.exists()


def _identity(path: Path) -> str:
    return _printable(path.resolve())


def _printable(path: Path) -> str:
    """A path as valid Unicode: file names may hold bytes that aren't, which Chroma can't store."""
    return os.fsencode(path).decode("utf-8", "replace")


def _batches(items: Iterable[_T]) -> Iterator[list[_T]]:
    remaining = iter(items)
    while batch := list(islice(remaining, _BATCH)):
        yield batch
