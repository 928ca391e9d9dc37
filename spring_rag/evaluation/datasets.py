"""Sets of questions for evaluation: files, and folders in FlashRAG's layout (arXiv 2405.13576)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spring_rag.data.examples import RagExample, load_examples
from spring_rag.data.matching import holds
from spring_rag.errors import DataError


@dataclass(frozen=True, slots=True)
class Dataset:
    """Questions under a name; `skipped` counts the bad lines that were left out."""

    name: str
    examples: tuple[RagExample, ...]
    skipped: int = 0


def load_dataset(
    path: Path, split: str | None = None, *, skip_bad: bool = False, limit: int | None = None
) -> Dataset:
    """Read whatever `load_examples` reads, or one split of a folder `name/{train,dev,test}.jsonl`.

    Args:
        path: the file or folder.
        split: which file of such a folder; test if not given, or dev where there is no test (HotpotQA, 2WikiMultihopQA).
        skip_bad: leave bad lines out, and count them.
        limit: only the first so many questions.

    Raises:
        DataError: no such file, split or questions; or bad lines.
    """
    file, splits = path, sorted(one.stem for one in path.glob("*.jsonl"))
    if splits:
        split = split or next((one for one in ("test", "dev") if one in splits), "test")
        file = path / f"{split}.jsonl"
        if split not in splits:
            msg = f"{path} has no split {split!r} (a file {file.name}); splits there: {', '.join(splits)}"
            raise DataError(msg)
    loaded = load_examples(file, skip_bad=skip_bad)
    name = path.resolve().name if path.is_dir() else path.stem
    return Dataset(name, tuple(loaded.examples[:limit]), len(loaded.bad))


def named_apart(datasets: Sequence[Dataset]) -> list[Dataset]:
    """Number the sets of questions that have the same name."""
    seen: Counter[str] = Counter()
    named = []
    for dataset in datasets:
        seen[dataset.name] += 1
        number = seen[dataset.name]
        named.append(replace(dataset, name=f"{dataset.name} ({number})") if number > 1 else dataset)
    return named


def answer_retrieved(example: RagExample) -> bool:
    """Return whether an accepted answer stands in one of the passages."""
    return any(holds(passage, example.answers) for passage in example.passages)
