"""Ways to make the demo's backbone answer from passages, on the same data and the same number of steps: `python benchmarks/comparison.py`

Compared: the plain backbone; told in words; PEFT's prompt tuning (as many trained tokens, in front of the prompt); LoRA; our virtual
tokens between context and question; the demo's shipped ones. Records are the demo's kind: trained on some, asked of 1,000 others whose words
no training saw. To one question in six no passage holds the answer, and "not stated" is right. `--only STAGE` runs one part; what is
trained already is kept in `--work`.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import peft
import torch
from measure import RESULTS, save
from torch.nn import functional
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from spring_rag.backends.base import GenerationSettings, Request
from spring_rag.backends.local import LocalBackend
from spring_rag.demo import paths
from spring_rag.demo.build.export import invent, left_out, retrieve, write_training
from spring_rag.demo.build.records import passage, question
from spring_rag.encoding import Encoded, encode
from spring_rag.evaluation import BRIEF, Answer, Run, WordsWay, plain_difference, score, sweep
from spring_rag.evaluation.statistics import compare, interval
from spring_rag.examples import UNANSWERABLE_ANSWER, RagExample, load_examples
from spring_rag.model import SpringModel
from spring_rag.prompt import RagPrompt, RagTemplate
from spring_rag.tokens import VirtualTokens
from spring_rag.training import TrainingRecipe, train_tokens
from spring_rag.training.dataset import RagExamples, SimilarLengths
from spring_rag.training.objective import Example

TOP_K, QUESTIONS, HOPELESS, NEW_TOKENS = 3, 1000, 167, 32
TOLD = BRIEF + 'If the passages do not hold the answer, say "not stated".\n'
KS = (1, 10, 50)
RATES = {"prefix": 1e-2, "lora": 1e-3}
RECIPE = TrainingRecipe(
    num_tokens=50,
    init_text="Answer with a few words only. Give only the answer, not a sentence. If the passages do not say, answer: not stated.",
    learning_rate=1e-2,
    max_steps=200,
    batch_size=8,
    max_passages=TOP_K,
    k_schedule="sandwich",
    unanswerable=0.1,
)
STEPS = RECIPE.max_steps or 0


def make_data(work: Path) -> None:
    """Training and test questions with their passages, as the demo's retriever finds them.

    Of the test's questions without an answer, half ask for a fact that a document leaves out, half for a record without a document.
    """
    work.mkdir(parents=True, exist_ok=True)
    write_training(work / "train.jsonl", documents=2000, questions=2000, unanswerable=200, seed=2)
    rng = Random("comparison")
    records = invent(1500, rng, held_out=True)
    texts = [passage(record, rng) for record in records]
    names = {record.name for record in records}
    strangers = [record for record in invent(1500, rng, held_out=True) if record.name not in names]
    facts = rng.sample([(record, key) for record in records for key in record.facts], 1000)
    hopeless = rng.sample(left_out(records, rng), HOPELESS // 2)
    hopeless += [(record, next(iter(record.facts))) for record in strangers[: HOPELESS - HOPELESS // 2]]
    asked = [question(record, key, rng) for record, key in [*facts, *hopeless]]
    found = retrieve(asked, texts, TOP_K)
    lines = []
    for at, (record, key) in enumerate(facts):
        if any(records[i] is record for i in found[at]) and len(lines) < QUESTIONS - HOPELESS:
            lines.append((at, record.facts[key]))
    lines += [(at, UNANSWERABLE_ANSWER) for at in range(len(facts), len(asked))]
    assert len(lines) == QUESTIONS
    with (work / "test.jsonl").open("w", encoding="utf-8") as file:
        for at, answer in lines:
            line = {"question": asked[at], "target": answer, "ret_passages": [texts[i] for i in found[at]]}
            file.write(json.dumps(line) + "\n")


def train_ours(work: Path) -> None:
    backend = LocalBackend.from_pretrained(paths.BACKBONE)
    train_tokens(
        backend.hf_model,
        backend.tokenizer,
        load_examples(work / "train.jsonl").examples,
        RECIPE,
        work / "ours",
    )


def train_prefix(work: Path) -> None:
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=RECIPE.num_tokens,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text=RECIPE.init_text,
        tokenizer_name_or_path=str(paths.BACKBONE),
    )
    train_peft(work, "prefix", config)


def train_lora(work: Path) -> None:
    train_peft(
        work, "lora", peft.LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear")
    )


def train_peft(work: Path, name: str, config: peft.PeftConfig) -> None:
    """The usual loss over the whole sequence, with the batches, steps, warm-up, clipping and schedule of our run."""
    torch.manual_seed(RECIPE.seed)
    backend = LocalBackend.from_pretrained(paths.BACKBONE)
    model = peft.get_peft_model(backend.hf_model, config)
    data = RagExamples(load_examples(work / "train.jsonl").examples, backend.tokenizer, RECIPE)
    parameters = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(parameters, RATES[name], weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, int(RECIPE.warmup * STEPS), STEPS)
    started = time.perf_counter()
    for step, batch in zip(range(STEPS), batches(data), strict=False):
        loss = whole_sequence_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, RECIPE.max_grad_norm)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            print(f"{name}: step {step}, loss {loss.item():.3f}", flush=True)
    seconds = round(time.perf_counter() - started, 1)
    model.save_pretrained(work / name)
    facts = {
        "parameters": sum(one.numel() for one in parameters),
        "seconds": seconds,
        "loss": round(loss.item(), 4),
    }
    (work / name / "training.json").write_text(json.dumps(facts))


def batches(data: RagExamples) -> Iterator[list[Example]]:
    for epoch in range(1000):
        sampler = SimilarLengths(data, RECIPE.batch_size, RECIPE.seed)
        sampler.set_epoch(epoch)
        examples = [data[place].example for place in sampler]
        whole = len(examples) - len(examples) % RECIPE.batch_size
        yield from (examples[i : i + RECIPE.batch_size] for i in range(0, whole, RECIPE.batch_size))


def whole_sequence_loss(model: torch.nn.Module, batch: list[Example]) -> torch.Tensor:
    rows = [([*encoded.ids, *target], len(target)) for encoded, target in batch]
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row, _ in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row, _ in rows])
    wanted = torch.zeros_like(mask, dtype=torch.bool)
    for number, (row, target) in enumerate(rows):
        wanted[number, len(row) - target : len(row)] = True
    # PEFT puts its tokens in front; what the prompt's columns predict stands at the end.
    logits = model(input_ids=ids, attention_mask=mask).logits[:, -width:]
    return functional.cross_entropy(logits[:, :-1][wanted[:, 1:]], ids[wanted])


def answer_prefix(work: Path, examples: list[RagExample]) -> tuple[Answer, ...]:
    """With PEFT's trained rows in front of all, where PEFT has them; our splice pads no gap between them and the prompt."""
    backend = LocalBackend.from_pretrained(paths.BACKBONE)
    rows = peft.load_peft_weights(str(work / "prefix"))["prompt_embeddings"]
    backend.add_tokens("default", VirtualTokens(rows, backbone=shipped().backbone))
    requests = [
        Request(Encoded(encode(RagPrompt(e.question, e.passages), backend.tokenizer).ids, 0))
        for e in examples
    ]
    settings = GenerationSettings(max_new_tokens=NEW_TOKENS)
    answers: list[Answer] = []
    for start in range(0, len(requests), 16):
        replies = backend.generate(requests[start : start + 16], settings)
        answers += [
            score(reply, e.answers) for reply, e in zip(replies, examples[start : start + 16], strict=True)
        ]
    return tuple(answers)


def answer_lora(work: Path, examples: list[RagExample]) -> tuple[Answer, ...]:
    backend = LocalBackend.from_pretrained(paths.BACKBONE)
    merged: PreTrainedModel = peft.PeftModel.from_pretrained(
        backend.hf_model, work / "lora"
    ).merge_and_unload()
    model = SpringModel(merged, backend.tokenizer)
    return sweep(model, examples, [0], max_new_tokens=NEW_TOKENS).runs[0].answers


def shipped() -> VirtualTokens:
    return VirtualTokens.from_pretrained(paths.TOKENS)


def evaluate(work: Path) -> None:
    examples = load_examples(work / "test.jsonl").examples
    model = SpringModel.from_pretrained(paths.BACKBONE, tokens=work / "ours")
    model.add_tokens("shipped", shipped())
    brief, unsure = (WordsWay(text, RagTemplate(instruction=text)) for text in (BRIEF, TOLD))
    plain = sweep(model, examples, [0, *KS], words=brief, max_new_tokens=NEW_TOKENS)
    told = sweep(model, examples, [50], words=unsure, tokens="shipped", max_new_tokens=NEW_TOKENS)
    prefix = f"PEFT prompt tuning, {RECIPE.num_tokens} tokens in front"
    assert plain.instructed is not None
    assert told.instructed is not None
    ours = {f"virtual tokens, k = {run.k}": run.answers for run in plain.runs if run.k}
    ways: dict[str, tuple[Answer, ...]] = {
        "plain": plain.runs[0].answers,
        "told to be brief": plain.instructed.answers,
        'told to be brief, and to say "not stated"': told.instructed.answers,
        prefix: answer_prefix(work, examples),
        "LoRA, rank 8": answer_lora(work, examples),
        **ours,
        "the demo's shipped tokens, k = 50": told.runs[0].answers,
    }
    cost = {prefix: "prefix", "LoRA, rank 8": "lora"}
    training = {
        name: json.loads((work / folder / "training.json").read_text()) for name, folder in cost.items()
    }
    made = VirtualTokens.from_pretrained(work / "ours")
    assert made.training is not None
    for name in ours:
        training[name] = {"parameters": made.matrix.numel(), "seconds": made.training["seconds"]}
    save("comparison", {
        "what": f"{len(examples)} questions, {TOP_K} passages each; of {unanswerable(examples).count(True)} no passage holds the answer",
        "steps": STEPS,
        "recipe": RECIPE.to_dict(),
        "learning_rates": {"virtual tokens": RECIPE.learning_rate, **RATES},
        "largest_difference_of_logits_at_k_0": plain_difference(model, examples[:32]),
        "results": [row(name, answers, ways, examples) | {"training": training.get(name)} for name, answers in ways.items()],
    })  # fmt: skip
    with (RESULTS / "comparison-answers.jsonl").open("w", encoding="utf-8") as file:
        for number, example in enumerate(examples):
            answers = {name: found[number].text for name, found in ways.items()}
            file.write(
                json.dumps({"question": example.question, "accepted": example.answers, "answers": answers})
                + "\n"
            )


def unanswerable(examples: list[RagExample]) -> list[bool]:
    return [example.answers == (UNANSWERABLE_ANSWER,) for example in examples]


def row(
    name: str, answers: tuple[Answer, ...], ways: dict[str, tuple[Answer, ...]], examples: list[RagExample]
) -> dict[str, Any]:
    run, told = Run(0, answers), Run(0, ways["told to be brief"])
    exact, missing = run.scores("exact_match"), unanswerable(examples)
    found = [one for one, absent in zip(exact, missing, strict=True) if not absent]
    said = [one for one, absent in zip(exact, missing, strict=True) if absent]
    bounds, against = interval(exact), compare(exact, told.scores("exact_match"))
    return {
        "way": name,
        "exact_match": round(run.mean("exact_match"), 4),
        "interval": [round(bounds.low, 4), round(bounds.high, 4)],
        "f1": round(run.mean("f1"), 4),
        "exact_match_where_the_answer_is_there": round(sum(found) / len(found), 4),
        "says_so_where_it_is_not": round(sum(said) / len(said), 4),
        "answer_tokens": round(run.mean("num_tokens"), 2),
        "gain_over_told_to_be_brief": round(against.gain, 4),
        "p": against.p,
    }


STAGES = {
    "data": make_data,
    "ours": train_ours,
    "prefix": train_prefix,
    "lora": train_lora,
    "evaluate": evaluate,
}
MADE = {
    "data": "test.jsonl",
    "ours": "ours/config.json",
    "prefix": "prefix/training.json",
    "lora": "lora/training.json",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path("build/comparison"), help="folder for data and what is trained"
    )
    parser.add_argument("--only", choices=STAGES, help="run one part")
    args = parser.parse_args()
    for name, stage in STAGES.items():
        if args.only in (None, name) and not (name in MADE and (args.work / MADE[name]).exists()):
            stage(args.work)


if __name__ == "__main__":
    main()
