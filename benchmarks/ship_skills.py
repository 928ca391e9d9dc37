"""Put freshly trained skills where the package ships them: `python benchmarks/ship_skills.py TRAINED [SHIPPED]`

TRAINED holds a folder for each task, as `spring-rag train --task` wrote it; their logs go beside the other results.
"""

import json
import sys
from pathlib import Path

from measure import RESULTS
from ship_tokens import DATA, history, named_by_the_hub

from spring_rag.demo.paths import SKILLS
from spring_rag.tokens import VirtualTokens


def main() -> None:
    trained, *given = map(Path, sys.argv[1:])
    shipped = given[0] if given else SKILLS
    lines = []
    for folder in sorted(each for each in trained.iterdir() if (each / "config.json").exists()):
        tokens = VirtualTokens.from_pretrained(folder)
        named_by_the_hub(tokens, data=DATA[:2]).save_pretrained(shipped / tokens.task)
        lines += [f"{json.dumps({'task': tokens.task, **entry})}\n" for entry in history(folder)]
    (RESULTS / "skills-log.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
