"""Read the texts of files, and of a folder's files that are of a known kind."""

import os
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chroma_spring_rag.errors import DATABASE_FILE, DocumentError
from spring_rag.errors import MissingExtraError
from spring_rag.extras import extra

_MOST_BYTES = 2**28


@dataclass(frozen=True, slots=True)
class FilesRead:
    """The result of reading files.

    Attributes:
        texts: the text of each file that could be read, by path.
        bad: the reason for each file that couldn't be read, by path.
        skipped: the reason for each file of a folder that wasn't tried, by path.
    """

    texts: Mapping[Path, str]
    bad: Mapping[Path, str]
    skipped: Mapping[Path, str]

    def refuse_nothing(self, paths: Sequence[Path]) -> None:
        """Check that something was read from the paths.

        Raises:
            DocumentError: nothing was; the error says why.
        """
        if self.texts:
            return
        if self.bad:
            problems = "; ".join(f"{path} {reason}" for path, reason in self.bad.items())
            msg = f"nothing was indexed: {problems}. Convert or leave out these files"
        else:
            msg = (
                f"there is nothing to read in {', '.join(map(str, paths))} ({', '.join(sorted(KINDS))}); to remove what was indexed"
                " from it before, use --prune"
            )
        raise DocumentError(msg)


def read_files(paths: Sequence[Path]) -> FilesRead:
    """Read files, and those files of folders whose ending is in `KINDS`.

    A folder's hidden files and Chroma databases are left out, and links that lead out of the folder aren't followed. PDF, HTML and
    DOCX need `spring-rag[files]`.

    Args:
        paths: files of any name, and folders. A file whose ending isn't in `KINDS` is read as UTF-8 text.

    Raises:
        DocumentError: a path doesn't exist.
    """
    files: dict[Path, Path] = {}
    named: set[Path] = set()
    texts: dict[Path, str] = {}
    bad: dict[Path, str] = {}
    skipped: dict[Path, str] = {}
    for path in paths:
        if path.is_dir():
            unread: list[tuple[Path, str]] = []
            for file in _files_of(path, unread):
                if reason := _reason_to_skip(file, path):
                    skipped[file] = reason
                else:
                    files.setdefault(file.resolve(), file)
            skipped |= dict(unread)
        elif path.exists():
            named.add(files.setdefault(path.resolve(), path))
        else:
            msg = f"{path} doesn't exist"
            raise DocumentError(msg)
    for file in files.values():
        try:
            texts[file] = _text_of(file)
        except UnicodeDecodeError as error:
            bad[file] = f"isn't UTF-8 text (byte {error.start}: {error.reason})"
        except OSError as error:
            bad[file] = f"can't be read ({error.strerror or error})"
        except MissingExtraError as error:
            (bad if file in named else skipped)[file] = str(error)
        except Exception as error:  # a damaged document fails anywhere in its reader, with errors of any kind
            bad[file] = f"can't be read ({' '.join(str(error).split()) or type(error).__name__})"
    return FilesRead(texts, bad, skipped)


def is_markdown(path: Path) -> bool:
    """Return whether a file's text, once read, is Markdown, to be split at its headings."""
    return path.suffix.lower() in _MARKDOWN


def _files_of(folder: Path, unread: list[tuple[Path, str]]) -> Iterator[Path]:
    """Yield a folder's files that aren't hidden; add to `unread` the folders in it that can't be read, and why."""

    def note(error: OSError) -> None:
        unread.append((Path(error.filename), f"can't be read ({error.strerror})"))

    for root, subfolders, names in os.walk(folder, onerror=note):
        if DATABASE_FILE in names:  # the index may be among the files that it is made of
            subfolders.clear()
            continue
        # Links to folders are among the subfolders, and aren't entered.
        links = [name for name in subfolders if Path(root, name).is_symlink()]
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted([*names, *links]):
            if not name.startswith("."):
                yield Path(root, name)


def _reason_to_skip(file: Path, folder: Path) -> str | None:
    if file.is_symlink():
        target = Path(os.path.realpath(file))  # Path.resolve fails on a link to itself
        if not target.is_relative_to(folder.resolve()):
            return "a link out of the folder"
    if file.is_dir():
        return "a link to a folder"
    if file.suffix.lower() not in KINDS:
        return "of a kind that isn't read"
    if not file.is_file():
        return "no plain file" if file.exists() else "a link to nothing"
    return None


def _text_of(file: Path) -> str:
    # Reading a pipe or a device might never end.
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        msg = "it is no plain file"
        raise DocumentError(msg)
    _refuse_size(found.st_size)
    text = KINDS.get(file.suffix.lower(), _read_text)(file)
    # Some readers return half characters, which nothing can store.
    return text.encode("utf-8", "replace").decode("utf-8")


def _refuse_size(size: int) -> None:
    """Refuse a file that would fill the memory.

    Raises:
        DocumentError: it is larger than any document.
    """
    if size > _MOST_BYTES:
        msg = f"it holds {size:,} bytes, and {_MOST_BYTES:,} are the most: split it"
        raise DocumentError(msg)


def _read_text(file: Path) -> str:
    return file.read_bytes().decode("utf-8-sig")


def _read_pdf(file: Path) -> str:
    with extra("files"):
        from pypdf import PdfReader
    text = "\n\n".join(page.extract_text() for page in PdfReader(file).pages)
    if not text.strip():
        msg = "its pages hold no text: are they pictures?"
        raise DocumentError(msg)
    return text


def _read_html(file: Path) -> str:
    return _as_markdown(file.read_bytes())


def _read_docx(file: Path) -> str:
    with extra("files"):
        import mammoth
    with zipfile.ZipFile(file) as archive:
        _refuse_size(sum(each.file_size for each in archive.infolist()))
    with file.open("rb") as opened:
        return _as_markdown(mammoth.convert_to_html(opened).value)


def _as_markdown(html: bytes | str) -> str:
    """Return the visible text of a page, with headings, lists and tables as Markdown."""
    with extra("files"):
        from bs4 import BeautifulSoup
        from markdownify import ATX, MarkdownConverter
    page = BeautifulSoup(html, "html.parser")
    for unseen in page(["script", "style", "noscript", "template", "head", "img"]):
        unseen.decompose()
    return str(MarkdownConverter(heading_style=ATX).convert_soup(page)).strip()


KINDS: Mapping[str, Callable[[Path], str]] = {
    ".txt": _read_text,
    ".text": _read_text,
    ".md": _read_text,
    ".markdown": _read_text,
    ".pdf": _read_pdf,
    ".html": _read_html,
    ".htm": _read_html,
    ".docx": _read_docx,
}
"""The functions that read files, by the file's ending in lower case."""

_MARKDOWN = {".md", ".markdown", ".html", ".htm", ".docx"}
