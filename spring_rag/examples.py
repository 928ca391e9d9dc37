"""Questions with accepted answers and passages, for training and evaluation alike.

Two formats of JSON lines are read: the authors' `{"question", "target", "ret_passages"}`, whose passages stand in the
order of their rank, and FlashRAG's `{"id", "question", "golden_answers", "metadata"}`, which has none.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spring_rag.errors import DataError

_SHOWN_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class RagExample:
    """A question, its accepted answers (the first is trained on), and passages, best first."""

    question: str
    answers: tuple[str, ...]
    passages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that isn't an example, and why."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """A file's examples, and its bad lines (none unless they were to be skipped)."""

    examples: list[RagExample]
    bad: list[BadLine]


def load_examples(path: str | Path, *, skip_bad: bool = False) -> Loaded:
    """Read a file of JSON lines, in either format.

    Args:
        path: the file, UTF-8; empty lines are passed over.
        skip_bad: leave bad lines out and report them, instead of refusing the file.

    Raises:
        DataError: the file can't be read, holds no example, or has bad lines; all of them are named.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path} can't be read as UTF-8 text: {error}"
        raise DataError(msg) from error
    loaded = load_lines(lines)
    if loaded.bad and not skip_bad:
        shown = "\n".join(f"  line {bad.number}: {bad.reason}" for bad in loaded.bad[:_SHOWN_PROBLEMS])
        more = len(loaded.bad) - _SHOWN_PROBLEMS
        rest = f"\n  and {more} more" if more > 0 else ""
        msg = f"{path} has {len(loaded.bad)} bad lines; mend them, or skip them:\n{shown}{rest}"
        raise DataError(msg)
    if not loaded.examples:
        msg = f"{path} holds no examples; expected one JSON object a line"
        raise DataError(msg)
    return loaded


def load_lines(lines: Iterable[str]) -> Loaded:
    """Read examples from JSON lines; bad ones are collected, numbered from 1."""
    loaded = Loaded([], [])
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            loaded.examples.append(_example(json.loads(line)))
        except json.JSONDecodeError as error:
            loaded.bad.append(BadLine(number, f"not JSON ({error.msg}, column {error.colno})"))
        except RecursionError:
            loaded.bad.append(BadLine(number, "not JSON (nested too deeply)"))
        except DataError as error:
            loaded.bad.append(BadLine(number, str(error)))
    return loaded


def _example(record: Any) -> RagExample:
    if not isinstance(record, Mapping):
        msg = f"expected an object, got {type(record).__name__}"
        raise DataError(msg)
    question = record.get("question")
    if not isinstance(question, str) or not question.strip():
        msg = '"question" must be a text that is not blank'
        raise DataError(msg)
    key = "golden_answers" if "golden_answers" in record else "target"
    answers = record.get(key)
    answers = [answers] if isinstance(answers, str) else answers
    return RagExample(
        question, _texts(answers, key, required=True), _texts(record.get("ret_passages", []), "ret_passages")
    )


def _texts(value: Any, key: str, *, required: bool = False) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        expected = "a text or a list of texts" if required else "a list of texts"
        msg = f'"{key}" must be {expected}'
        raise DataError(msg)
    if required and not any(text.strip() for text in value):
        msg = f'"{key}" holds no answer'
        raise DataError(msg)
    return tuple(text for text in value if text.strip())


def digest(examples: Sequence[RagExample]) -> str:
    """SHA-256 (hex, first 16) of the examples in their order: which data an artifact was trained on."""
    sha = hashlib.sha256()
    for example in examples:
        fields = [example.question, example.answers, example.passages]
        sha.update(json.dumps(fields, ensure_ascii=True).encode() + b"\n")
    return sha.hexdigest()[:16]
