"""Put skills where the package ships them: `python benchmarks/ship_skills.py TRAINED DEV`

TRAINED holds a folder for each task, as `spring-rag train --task` wrote it; their logs go beside the other results. `check` has the tokens of
the answer, since these are trained as its own would be: only its probabilities are calibrated, on the held-out questions of the file DEV.
"""

import argparse
import json
from pathlib import Path

from measure import RESULTS
from ship_tokens import DATA, history, named_by_the_hub

from spring_rag.backends.local import LocalBackend
from spring_rag.data.examples import digest, load_examples
from spring_rag.demo.default import default_backbone
from spring_rag.demo.paths import SKILLS, TOKENS
from spring_rag.recipe import TrainingRecipe
from spring_rag.skills import CHECK
from spring_rag.tokens import VirtualTokens
from spring_rag.training.heldout_choices import HeldOutChoices


def check_of(answer: VirtualTokens, dev: Path) -> VirtualTokens:
    """Calibrate the tokens of the answer as those of `check`."""
    backend = LocalBackend.from_pretrained(default_backbone(), dtype="bfloat16")
    examples = load_examples(dev).examples
    recipe = TrainingRecipe(task=CHECK, num_tokens=len(answer), batch_size=32)
    held_out = HeldOutChoices(backend.hf_model, backend.tokenizer, examples, recipe)
    calibration = held_out.calibration(answer.matrix)
    print(f"check: {calibration}")
    calibrated_on = {"examples": len(examples), "digest": digest(examples)}
    return VirtualTokens(
        answer.matrix,
        backbone=answer.backbone,
        template=answer.template,
        training={**(answer.training or {}), "calibrated on": calibrated_on},
        chat_template=answer.chat_template,
        task=CHECK,
        calibration=calibration,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trained", type=Path)
    parser.add_argument("dev", type=Path, help="JSON lines with ret_passages")
    parser.add_argument("--shipped", type=Path, default=SKILLS)
    args = parser.parse_args()
    folders = sorted(each for each in args.trained.glob("*") if (each / "config.json").exists())
    for folder in folders:
        tokens = VirtualTokens.from_pretrained(folder)
        named_by_the_hub(tokens, data=DATA[:2]).save_pretrained(args.shipped / tokens.task)
    if folders:
        lines = [
            f"{json.dumps({'task': folder.name, **entry})}\n"
            for folder in folders
            for entry in history(folder)
        ]
        (RESULTS / "skills-log.jsonl").write_text("".join(lines), encoding="utf-8")
    check_of(VirtualTokens.from_pretrained(TOKENS), args.dev).save_pretrained(args.shipped / CHECK)


if __name__ == "__main__":
    main()
