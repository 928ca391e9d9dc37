"""The demo's table, at five passages and at ten: `python benchmarks/demo.py`

What `spring-rag demo` and `spring-rag demo --top-k 10` print, with the machine's size beside it.
"""

import tempfile
from pathlib import Path
from typing import Any

from measure import save

from spring_rag.demo import paths, run
from spring_rag.model import SpringModel

KS = (0, 1, 10, 50)


def main() -> None:
    model = SpringModel.from_pretrained(paths.BACKBONE, tokens=paths.TOKENS)
    questions = run.load_questions()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for top_k in (5, 10):
            examples, retrieved = run.retrieve(run.build_index(model, Path(folder), top_k), questions)
            result, _ = run.answer(model, questions, examples, retrieved, KS)
            results[f"{top_k} passages"] = result.to_dict()
    save("demo", {"what": f"{len(questions)} questions on records that no training saw", "results": results})


if __name__ == "__main__":
    main()
