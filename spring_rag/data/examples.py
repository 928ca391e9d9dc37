"""Questions with accepted answers and passages, for training and evaluation alike.

Two kinds of records are read: the authors' `{"question", "target", "ret_passages"}`, with passages best first,
and FlashRAG's `{"id", "question", "golden_answers", "metadata"}`, without passages. They come as JSON lines, or as
the rows of a data set that Hugging Face's `datasets` saved to disk.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from spring_rag.errors import DataError, counted
from spring_rag.extras import extra
from spring_rag.files import parse_json, read_text, replace_files

UNANSWERABLE_ANSWER = "not stated"
"""The default answer if the passages hold none."""

_SHOWN_PROBLEMS = 1000


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
    """A file's examples, its bad lines (none unless they were to be skipped), and the line of each example."""

    examples: list[RagExample]
    bad: list[BadLine]
    lines: list[int] = field(default_factory=list)

    def without(self, indices: Collection[int], reason: str) -> "Loaded":
        """Return these examples without some, which become bad lines for this reason."""
        kept = [index for index in range(len(self.examples)) if index not in indices]
        return Loaded(
            [self.examples[index] for index in kept],
            [*self.bad, *(BadLine(self.lines[index], reason) for index in sorted(indices))],
            [self.lines[index] for index in kept],
        )

    def refuse_bad(self, path: str | Path) -> None:
        """Check that there are no bad lines.

        Raises:
            DataError: there are some; the first thousand are named.
        """
        if not self.bad:
            return
        what = "row" if Path(path).is_dir() else "line"
        shown = "\n".join(f"  {what} {bad.number}: {bad.reason}" for bad in self.bad[:_SHOWN_PROBLEMS])
        more = len(self.bad) - _SHOWN_PROBLEMS
        rest = f"\n  and {more} more" if more > 0 else ""
        msg = f"{path} has {counted(len(self.bad), f'bad {what}')}; correct what is wrong, or skip it (--skip-bad):\n{shown}{rest}"
        raise DataError(msg)


def load_examples(path: str | Path, *, skip_bad: bool = False) -> Loaded:
    """Read a file of JSON lines or a data set's folder, in either format.

    Args:
        path: a UTF-8 file, whose empty lines are passed over; or a folder that `Dataset.save_to_disk` wrote.
        skip_bad: leave bad lines (rows) out and report them, instead of refusing the data.

    Raises:
        DataError: the data can't be read, hold no example, or have bad lines, of which the first thousand are named.
        MissingExtraError: `path` is a folder, and `datasets` isn't installed.
    """
    what = "row" if Path(path).is_dir() else "line"
    loaded = _load_rows(Path(path)) if what == "row" else load_lines(_lines(path))
    if not skip_bad:
        loaded.refuse_bad(path)
    if not loaded.examples:
        expected = "one JSON object a line" if what == "line" else "rows with a question and its answers"
        msg = f"{path} holds no examples; expected {expected}"
        raise DataError(msg)
    return loaded


def _lines(path: str | Path) -> list[str]:
    try:
        return read_text(Path(path)).split("\n")
    except OSError as error:
        msg = f"{path} can't be read: {error.strerror}"
        raise DataError(msg) from error
    except UnicodeDecodeError as error:
        msg = f"{path} can't be read as UTF-8 text: {error}"
        raise DataError(msg) from error


def load_lines(lines: Iterable[str]) -> Loaded:
    """Read examples from JSON lines, and collect the bad lines, numbered from 1."""
    loaded = Loaded([], [])
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except json.JSONDecodeError as error:
            loaded.bad.append(BadLine(number, f"not JSON ({error.msg}, column {error.colno})"))
        except ValueError as error:  # also a number of thousands of digits
            loaded.bad.append(BadLine(number, f"not JSON ({error})"))
        else:
            _sort_in(loaded, number, record)
    return loaded


def _load_rows(folder: Path) -> Loaded:
    """Read a data set from a folder, or the only split of one.

    Raises:
        DataError: the folder holds no data set, or several splits.
    """
    with extra("train"):
        import datasets
    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # pyarrow and datasets raise errors of a dozen kinds
        msg = f"{folder} isn't a data set that Dataset.save_to_disk wrote: {' '.join(str(error).split())}"
        raise DataError(msg) from error
    if isinstance(found, datasets.DatasetDict):
        if len(found) != 1:
            msg = f"{folder} has the splits {', '.join(sorted(found)) or '(none)'}; name the folder of one, such as {folder / 'train'}"
            raise DataError(msg)
        found = next(iter(found.values()))
    loaded = Loaded([], [])
    for number, row in enumerate(found, 1):
        # Columns that only some rows have are None in the others.
        _sort_in(loaded, number, {key: value for key, value in row.items() if value is not None})
    return loaded


def _sort_in(loaded: Loaded, number: int, record: Any) -> None:
    try:
        loaded.examples.append(_example(record))
        loaded.lines.append(number)
    except DataError as error:
        loaded.bad.append(BadLine(number, str(error)))


def write_examples(path: str | Path, examples: Iterable[RagExample]) -> None:
    """Write examples as the authors' JSON lines. An existing file is replaced in one step.

    Raises:
        OSError: the file can't be written.
    """
    lines = []
    for example in examples:
        target = example.answers[0] if len(example.answers) == 1 else list(example.answers)
        record = {"question": example.question, "target": target, "ret_passages": list(example.passages)}
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    replace_files(Path(path).parent, {Path(path).name: "".join(lines).encode()})


def hold_out(
    examples: Sequence[RagExample], share: float, seed: int
) -> tuple[list[RagExample], list[RagExample]]:
    """Hold out a random share of the questions. A question that occurs twice is held out with all its examples, or not at all.

    Returns:
        The examples to train on, and those held out, both in their order.

    Raises:
        DataError: one of the two would be empty.
    """
    questions = list(dict.fromkeys(example.question for example in examples))
    out = set(Random(f"{seed}:held out").sample(questions, round(share * len(questions))))
    kept = [example for example in examples if example.question not in out]
    held = [example for example in examples if example.question in out]
    if not kept or not held:
        msg = f"a held-out share of {share} of {len(questions)} questions leaves {len(kept)} examples to train on and {len(held)} held out"
        raise DataError(msg)
    return kept, held


def _example(record: Any) -> RagExample:
    if not isinstance(record, Mapping):
        msg = f"expected an object, got {type(record).__name__}"
        raise DataError(msg)
    question = record.get("question")
    if not isinstance(question, str) or not question.strip():
        msg = '"question" must be a text that is not blank'
        raise DataError(msg)
    _check_characters([question], "question")
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
    _check_characters(value, key)
    return tuple(text for text in value if text.strip())


def _check_characters(texts: Sequence[str], key: str) -> None:
    """Refuse half characters, which JSON's escapes can spell, but no tokenizer and no file takes."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            msg = f'"{key}" holds half a character ({text[error.start]!r}, one of a surrogate pair)'
            raise DataError(msg) from error


def digest(examples: Sequence[RagExample]) -> str:
    """Return the first 16 hex digits of the SHA-256 of the examples in their order, by which an artifact names its training data."""
    sha = hashlib.sha256()
    for example in examples:
        fields = [example.question, example.answers, example.passages]
        sha.update(json.dumps(fields, ensure_ascii=True).encode() + b"\n")
    return sha.hexdigest()[:16]
