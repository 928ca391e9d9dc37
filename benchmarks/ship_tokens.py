"""Put newly trained tokens where the package ships them: `python benchmarks/ship_tokens.py FIRST SECOND SHIPPED`

Tokens name the file that they were trained on as their backbone. Here this is replaced by the Hub id, which other machines know.
The data and its licences go into the record, and so into the card; the logs of both runs go to the other results.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from measure import RESULTS

from spring_rag.demo.default import HUB_ID
from spring_rag.tokens import VirtualTokens

DATA = [
    {"name": "Natural Questions (open), training part", "licence": "CC BY-SA 3.0 (Wikipedia)"},
    {"name": "SQuADshifts, Wikipedia part", "licence": "CC BY 4.0"},
    {"name": "invented documents (benchmarks/training_documents.py)", "licence": "MIT"},
]


def history(trained: Path) -> list[dict[str, Any]]:
    """Return what a run logged."""
    last = max((trained / "checkpoints").glob("checkpoint-*"), key=lambda one: int(one.name.split("-")[1]))
    logged: list[dict[str, Any]] = json.loads((last / "trainer_state.json").read_text(encoding="utf-8"))[
        "log_history"
    ]
    return logged


def named_by_the_hub(tokens: VirtualTokens, **told: Any) -> VirtualTokens:
    """Return the tokens with the backbone's Hub id, and more in the record of their training."""
    assert tokens.backbone is not None
    return VirtualTokens(
        tokens.matrix,
        backbone=replace(tokens.backbone, model_id=HUB_ID),
        template=tokens.template,
        training={**(tokens.training or {}), **told},
        chat_template=tokens.chat_template,
        task=tokens.task,
        calibration=tokens.calibration,
    )


def main() -> None:
    first, second, shipped = map(Path, sys.argv[1:])
    tokens = VirtualTokens.from_pretrained(second)
    named_by_the_hub(tokens, data=DATA, command="make demo-tokens").save_pretrained(shipped)
    lines = [
        f"{json.dumps({'run': number, **entry})}\n"
        for number, run in enumerate((first, second), 1)
        for entry in history(run)
    ]
    (RESULTS / "tokens-log.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
