"""The files of questions with retrieved passages, made of the public data sets."""

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from real_data import Asked, nq_and_xquad, popqa

from chroma_spring_rag import connect_folder, index_files, open_or_create_collection, search

DEPTH = 10
"""Passages per question: of those beyond the best five some take the place of passages that hold an answer, where these are left out."""


def write_questions(data: Path, output: Path) -> None:
    """Write `nq-dev.jsonl`, `nq-test.jsonl`, `xquad.jsonl` and `popqa.jsonl`; a file that is there already stays.

    Natural Questions and XQuAD get what the default retrieval finds in one index of all their passages; PopQA brings its own five.

    Args:
        data: folder with `nq/`, `xquad/` and `popqa/`.
        output: gets the files.
    """
    output.mkdir(parents=True, exist_ok=True)
    files = {name: output / f"{name.replace('/', '-')}.jsonl" for name in ("nq/dev", "nq/test", "xquad")}
    if left := [name for name, file in files.items() if not file.exists()]:
        passages, asked = nq_and_xquad(data)
        with tempfile.TemporaryDirectory() as folder:
            texts = Path(folder, "texts")
            texts.mkdir()
            for one, text in passages.items():
                (texts / f"{one}.txt").write_text(text, encoding="utf-8")
            collection = open_or_create_collection(connect_folder(Path(folder, "db"), create=True), "texts")
            index_files(collection, [texts])
            for name in left:
                found = search(collection, [one.question for one in asked[name]], DEPTH)
                retrieved = [[passage.text for passage in row] for row in found]
                _write(files[name], zip(asked[name], retrieved, strict=True))
    if not (file := output / "popqa.jsonl").exists():
        _write(file, popqa(data))


def _write(path: Path, questions: Iterable[tuple[Asked, list[str]]]) -> None:
    """Write a file as a whole or not at all."""
    rows = [
        {
            "id": one.id,
            "question": one.question,
            "golden_answers": one.answers,
            "ret_passages": passages,
        }
        for one, passages in questions
    ]
    aside = path.with_name(path.name + ".part")
    aside.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
    os.replace(aside, path)
    print(f"{len(rows)} questions in {path}")
