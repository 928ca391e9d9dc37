"""Write the training data of the shipped skills: `python benchmarks/skill_data.py TRAINING FOLDER`

TRAINING is a file of `training_data.py`, the passage with the answer first in each list. FOLDER gets `answerable.jsonl` and `cite.jsonl`.
In both, questions on different things share a context: it holds the passage that answers some of them, and of the
others only what retrieval found beside it. So a context is computed once for several questions, and most contexts answer some and not others.
"""

import json
import sys
from itertools import zip_longest
from pathlib import Path
from random import Random
from typing import Any

PASSAGES, QUESTIONS = 5, 3
"""Of a context; of a paragraph that several are asked about."""

Unit = list[dict[str, Any]]
"""Questions with the same passages."""


def units(path: Path) -> tuple[list[Unit], list[Unit]]:
    """Questions that are alone with their passages, and those that aren't."""
    groups: dict[tuple[str, ...], Unit] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        groups.setdefault(tuple(record["ret_passages"]), []).append(record)
    lone = [unit for unit in groups.values() if len(unit) == 1]
    return lone, [unit for unit in groups.values() if len(unit) > 1]


def mixed(held: list[Unit], robbed: list[Unit], rng: Random) -> list[dict[str, Any]]:
    """The questions of some units, over one context."""
    best = [unit[0]["ret_passages"][0] for unit in held]
    rest = [unit[0]["ret_passages"][1:] for unit in [*robbed, *held]]
    beside = [one for rank in zip_longest(*rest) for one in rank if one is not None]
    passages = list(dict.fromkeys([*best, *beside]))[:PASSAGES]
    asked = [one for unit in [*held, *robbed] for one in rng.sample(unit, min(QUESTIONS, len(unit)))]
    return [{**one, "ret_passages": passages} for one in asked]


def contexts(some: list[Unit], held: int, robbed: int, rng: Random) -> list[dict[str, Any]]:
    """All units, so many at a time."""
    shuffled = rng.sample(some, len(some))
    size = held + robbed
    return [
        record
        for start in range(0, len(shuffled) - size + 1, size)
        for record in mixed(shuffled[start : start + held], shuffled[start + held : start + size], rng)
    ]


if __name__ == "__main__":
    source, folder = map(Path, sys.argv[1:])
    lone, shared = units(source)
    draw = Random(0)
    made = {
        "answerable": contexts(lone, 2, 2, draw) + contexts(shared, 1, 1, draw),
        "cite": contexts(lone, 3, 0, draw) + contexts(shared, 2, 0, draw),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in made.items():
        written = "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)
        (folder / f"{name}.jsonl").write_text(written, encoding="utf-8")
        print(f"{len(records)} examples in {folder / name}.jsonl")
