"""Try virtual tokens on every causal family of the installed transformers: how it answers, how it trains, and why not faster.

`python benchmarks/families.py [family …]` makes a tiny random model of each family and writes `results/families.json`
and `docs/families.md`; with names it replaces only their rows. Answers in batches and one by one are compared with greedy decoding by hand,
without a cache. The training gradient is compared with that of the plain loss over one whole sequence per example. Each family has its own process and
two minutes of processor time, so that one that hangs doesn't stop the others.
"""

import argparse
import json
import multiprocessing
import resource
import signal
import sys
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_families import FAMILIES, VOCAB, tiny
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, PreTrainedModel

from spring_rag.backends.base import GenerationSettings, Request
from spring_rag.backends.decoding import accepting_embeddings
from spring_rag.backends.local import LocalBackend
from spring_rag.encoding import Encoded
from spring_rag.errors import SpringError
from spring_rag.splice import InputEmbedding
from spring_rag.tokens import VirtualTokens
from spring_rag.training import Example, objective
from spring_rag.training.choice import proven_way
from spring_rag.training.frozen import frozen

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "families.json"
PAGE = ROOT / "docs" / "families.md"
SECONDS = 120

# Longer and shorter than the tiny windows and chunks; the last has the first one's context.
SHAPES = [(41, 5, 3), (9, 8, 2), (23, 1, 4), (41, 3, 2)]
KS = [4, 2, 3, 1]
NEW_TOKENS = 6
_TRAINING = {"together": "context once", "by_context": "context once, one by one", "whole": "whole sequence"}
REFUSED, WRONG, UNBUILT = "refused", "WRONG", "not built"


def examine(family: str) -> dict[str, str]:
    """Return the family's row of the table: `inference`, `training` and `reason` (empty if both are in the fastest way)."""
    try:
        model = tiny(family)
    except Exception as error:
        return {"inference": UNBUILT, "training": UNBUILT, "reason": f"no tiny model: {_line(error)}"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        inference, why = _inference(model)
        training, why_not = _training(model)
    said = [_line(one.message) for one in caught if type(model).__name__ in str(one.message)]
    return {
        "model": type(model).__name__,
        "inference": inference,
        "training": training,
        "reason": "; ".join(dict.fromkeys(filter(None, [why, why_not, *said]))),
    }


def _inference(model: PreTrainedModel) -> tuple[str, str]:
    encoded = [one for one, _ in _examples()]
    # Summarisers end an answer of full length by force, as decoding by hand doesn't.
    model.generation_config.forced_eos_token_id = None
    try:
        backend = LocalBackend(model, AutoTokenizer.from_pretrained(ROOT / "tests" / "toy" / "backbone"))
        matrix = _matrix(backend.embedding)
        backend.add_tokens("default", VirtualTokens(matrix))
        expected = [
            _by_hand(model, backend.embedding, one, matrix[:k]) for one, k in zip(encoded, KS, strict=True)
        ]
        requests = [Request(one, None, k) for one, k in zip(encoded, KS, strict=True)]
        settings = GenerationSettings(max_new_tokens=NEW_TOKENS)
        rows: list[int] = []
        hook = model.register_forward_pre_hook(
            lambda _, __, inputs: (
                rows.append(len(inputs["inputs_embeds"])) if inputs.get("inputs_embeds") is not None else None
            ),
            with_kwargs=True,
        )
        found = [list(one.token_ids) for one in backend.generate(requests, settings)]
        hook.remove()
        alone = [list(backend.generate([one], settings)[0].token_ids) for one in requests]
        plain = [
            _by_transformers(model, backend.embedding, one, matrix[:k])
            for one, k in zip(encoded, KS, strict=True)
        ]
    except SpringError as error:
        return REFUSED, _line(error)
    except Exception as error:
        return WRONG, f"an answer fails: {type(error).__name__}: {_line(error)}"
    if not _same(alone, plain):
        return WRONG, "an answer by itself isn't the one that transformers gives"
    if not _same(found, alone):
        return WRONG, "answers depend on their neighbours"
    why = "" if _same(alone, expected) else "transformers' own answer with a cache isn't the one without"
    return ("in batches" if max(rows) > 1 else "one by one"), why


def _same(found: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]) -> bool:
    """Compare two answers up to an end of sequence, which decoding by hand ignores."""
    return all(one == other[: len(one)] for one, other in zip(found, expected, strict=True))


def _by_transformers(
    model: PreTrainedModel, embedding: InputEmbedding, prompt: Encoded, rows: Tensor
) -> list[int]:
    """Return the greedy answer ids of transformers' own `generate`, given embeddings."""
    before, after = (embedding.embed(torch.tensor(ids)) for ids in (prompt.context_ids, prompt.suffix_ids))
    embeds = torch.cat([before, embedding.virtual(rows), after])[None]
    with torch.no_grad():
        generating: Any = accepting_embeddings(model)
        made = generating.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
        )
    return [int(one) for one in made[0][-NEW_TOKENS:]]


def _by_hand(model: PreTrainedModel, embedding: InputEmbedding, prompt: Encoded, rows: Tensor) -> list[int]:
    """Return greedy answer ids, each computed from the whole sequence so far."""
    before, after = (embedding.embed(torch.tensor(ids)) for ids in (prompt.context_ids, prompt.suffix_ids))
    sequence = torch.cat([before, embedding.virtual(rows), after])
    found: list[int] = []
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            # A copy: CTRL scales what it gets in place.
            found.append(
                int(model(inputs_embeds=sequence[None].clone(), use_cache=False).logits[0, -1].argmax())
            )
            sequence = torch.cat([sequence, embedding.embed(torch.tensor(found[-1:]))])
    return found


def _training(model: PreTrainedModel) -> tuple[str, str]:
    examples = _examples()
    try:
        embedding = InputEmbedding(model)
        matrix = _matrix(embedding).requires_grad_()
        (gradient,) = torch.autograd.grad(objective(model, examples, matrix, KS, embedding=embedding), matrix)
        with frozen(model):
            way = proven_way(model, embedding, examples, [KS])
            (expected,) = torch.autograd.grad(_plain_loss(model, embedding, examples, matrix), matrix)
    except SpringError as error:
        return REFUSED, _line(error)
    except Exception as error:
        return WRONG, f"training fails: {type(error).__name__}: {_line(error)}"
    distance = float((gradient - expected).norm() / expected.norm())
    if not distance < 1e-3:
        return WRONG, f"the gradient is {distance:.1%} off"
    return _TRAINING[way.__name__], ""


def _plain_loss(
    model: PreTrainedModel, embedding: InputEmbedding, examples: Sequence[Example], matrix: Tensor
) -> Tensor:
    losses = []
    for (encoded, target), k in zip(examples, KS, strict=True):
        before, after = (
            embedding.embed(torch.tensor(ids))
            for ids in (encoded.context_ids, (*encoded.suffix_ids, *target[:-1]))
        )
        logits = model(
            inputs_embeds=torch.cat([before, embedding.virtual(matrix[:k]), after])[None], use_cache=False
        ).logits[0]
        losses.append(
            functional.cross_entropy(logits[-len(target) :], torch.tensor(target), reduction="none")
        )
    return torch.cat(losses).mean()


def _examples() -> list[Example]:
    draw = torch.Generator().manual_seed(3)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, VOCAB - 1, (count,), generator=draw).tolist())

    examples: list[Example] = [
        (Encoded(ids(context + rest), context), ids(target)) for context, rest, target in SHAPES
    ]
    first, (last, target) = examples[0][0], examples[-1]
    examples[-1] = (Encoded(first.context_ids + last.suffix_ids, first.slot), target)
    return examples


def _matrix(embedding: InputEmbedding) -> Tensor:
    with embedding.table() as table:
        return table[10 : 10 + max(KS)].detach().float() + 0.1 * torch.randn(
            max(KS), table.shape[1], generator=torch.Generator().manual_seed(4)
        )


def _line(message: object) -> str:
    return " ".join(str(message).split())[:300]


def examine_apart(family: str) -> dict[str, str]:
    """Run `examine` in a separate process with a limit on processor time, since the machine may be busy."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    process = fork.Process(target=_send, args=(family, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if ours.poll(10 * SECONDS):
            found: dict[str, str] = ours.recv()
            return found
        why = f"it hangs for more than {10 * SECONDS} seconds"
    except EOFError:
        process.join()
        why = (
            f"it takes more than {SECONDS} seconds"
            if process.exitcode == -signal.SIGXCPU
            else "the process died"
        )
    finally:
        process.kill()
        process.join()
    return {"inference": UNBUILT, "training": UNBUILT, "reason": why}


def _send(family: str, connection: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
    try:
        found = examine(family)
    except BaseException as error:
        found = {"inference": WRONG, "training": WRONG, "reason": f"{type(error).__name__}: {_line(error)}"}
    connection.send(found)


def write(families: dict[str, dict[str, str]]) -> None:
    """Write the results and the page, from the same rows."""
    table = {"transformers": transformers.__version__, "families": dict(sorted(families.items()))}
    RESULTS.write_text(json.dumps(table, indent=1) + "\n")
    PAGE.write_text(page(table))


def page(table: dict[str, Any]) -> str:
    """Return the table as a page of the documentation."""
    families: dict[str, dict[str, str]] = table["families"]

    def count(column: str, *values: str) -> int:
        return sum(row[column] in values for row in families.values())

    lines = [
        "# Which models work",
        "",
        f"Every causal family of transformers {table['transformers']}, tried with virtual tokens on a tiny random model "
        "(`python benchmarks/families.py` writes this page; `make test-families` tries all of them again).",
        "",
        f"Of {len(families)} families {count('inference', 'in batches', 'one by one')} answer and "
        f"{count('training', *_TRAINING.values())} train; {count('training', 'context once')} compute a context once in training. "
        "The others are refused, or no tiny model of them could be built; the reason is below.",
        "",
        "- **in batches**: prompts of different lengths run together, and each answers as it does alone. **one by one**: they would influence",
        "  each other, so each runs alone.",
        "- **context once**: only the part from the slot on is differentiated. **context once, one by one**: the same, without contexts of",
        "  different lengths in one batch. **whole sequence**: the usual objective; slower, the same gradient.",
        "- Which of these a model gets is tried out when it is first used, on the model itself; nothing depends on this table.",
        "",
        "| family | model | inference | training | reason |",
        "| --- | --- | --- | --- | --- |",
    ]
    for family, row in families.items():
        reason = row["reason"].replace("|", "\\|").replace("<", "&lt;")
        lines.append(
            f"| {family} | {row.get('model', '')} | {row['inference']} | {row['training']} | {reason} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("families", nargs="*", metavar="family", help="only these")
    chosen = parser.parse_args().families or FAMILIES
    transformers.logging.set_verbosity_error()
    known = json.loads(RESULTS.read_text())["families"] if RESULTS.exists() else {}
    families = {name: row for name, row in known.items() if name in FAMILIES}
    for family in chosen:
        families[family] = row = examine_apart(family)
        print(
            f"{family}: {row['inference']}, {row['training']}. {row['reason']}", file=sys.stderr, flush=True
        )
        write(families)


if __name__ == "__main__":
    main()
