"""What is trained: our virtual tokens, and PEFT's prompt tuning, prefix tuning and LoRA, on the same examples in the same order."""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import peft
import torch
from torch.nn import functional
from transformers import get_scheduler

from spring_rag.backends.local import LocalBackend
from spring_rag.cli.console import Progress
from spring_rag.data.examples import digest, load_examples
from spring_rag.splice import InputEmbedding
from spring_rag.tokens import VirtualTokens
from spring_rag.training import TrainingRecipe, train_tokens
from spring_rag.training.dataset import RagExamples, SampleIndex, SimilarLengths
from spring_rag.training.progress import ProgressReport
from spring_rag.training.trainer import initial_rows
from spring_rag.training.ways import Example

FACTS = "training.json"
STATE = "state.pt"
RANK = 8


class Trainable(NamedTuple):
    """How PEFT makes a way out of a backbone, how many columns it puts before the prompt's, and a sensible learning rate."""

    make: Callable[[LocalBackend, TrainingRecipe], peft.PeftModel]
    columns: Callable[[TrainingRecipe], int]
    rate: float


def _prompt_tuning(backend: LocalBackend, recipe: TrainingRecipe) -> peft.PeftModel:
    """Tokens in front of all, which begin as the rows that ours begin as."""
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=recipe.num_tokens)
    model = peft.get_peft_model(backend.hf_model, config)
    front: Any = model.prompt_encoder
    rows = initial_rows(backend.hf_model, backend.tokenizer, recipe.init_text, recipe.num_tokens)
    # PEFT puts its rows behind the embedding layer, and with them what the layer scales.
    scaled = rows * InputEmbedding(backend.hf_model).scale
    front["default"].embedding.weight.data.copy_(scaled)
    return model


def _prefix_tuning(backend: LocalBackend, recipe: TrainingRecipe) -> peft.PeftModel:
    """Keys and values in front of all, which begin as those that the backbone gives the initial text."""
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=recipe.num_tokens)
    model = peft.get_peft_model(backend.hf_model, config)
    enough = recipe.init_text * recipe.num_tokens
    peft.initialize_kv_prefix_from_text(
        model, backend.tokenizer, text=enough, use_chat_template=False, max_length=recipe.num_tokens
    )
    return model


def _lora(backend: LocalBackend, recipe: TrainingRecipe) -> peft.PeftModel:
    torch.manual_seed(recipe.seed)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
    return peft.get_peft_model(backend.hf_model, config)


PEFT_WAYS = {
    "prompt-tuning": Trainable(_prompt_tuning, lambda recipe: recipe.num_tokens, 1e-2),
    "prefix-tuning": Trainable(_prefix_tuning, lambda _: 0, 5e-3),
    "lora": Trainable(_lora, lambda _: 0, 1e-3),
}
RATES = {"tokens": 1e-2, **{name: way.rate for name, way in PEFT_WAYS.items()}}


def train(
    way: str,
    model: str,
    data: Path,
    recipe: TrainingRecipe,
    folder: Path,
    *,
    dtype: str,
    save_steps: int,
    micro_batch: int,
) -> None:
    """Train one way into its folder, or go on where it stopped; what is finished stays.

    Args:
        way: "tokens", or one of `PEFT_WAYS`.
        model: the backbone.
        data: JSON lines with "ret_passages".
        recipe: of all ways but for the learning rate; the k schedule is ours alone.
        folder: gets the trained parameters, and checkpoints on the way.
        dtype: of the backbone.
        save_steps: optimizer steps between checkpoints.
        micro_batch: examples per forward pass of PEFT's ways, for the memory that their whole sequences take.
    """
    if (folder / FACTS).exists():
        print(f"{folder} is trained")
        return
    backend = LocalBackend.from_pretrained(model, dtype=dtype)
    examples = load_examples(data).examples
    if way == "tokens":
        with Progress("training tokens") as report:
            made = train_tokens(
                backend.hf_model,
                backend.tokenizer,
                examples,
                recipe,
                folder,
                save_steps=save_steps,
                resume=True,
                callbacks=[ProgressReport(report)],
            )
        write(folder / FACTS, facts_of_tokens(made))
        return
    items = RagExamples(examples, backend.tokenizer, recipe)
    items.check()
    trained = PEFT_WAYS[way].make(backend, recipe)
    outcome = _loop(trained, items, recipe, folder, PEFT_WAYS[way].columns(recipe), save_steps, micro_batch)
    trained.save_pretrained(str(folder))
    data_facts = {"examples": len(examples), "digest": digest(examples)}
    write(folder / FACTS, {**outcome, "recipe": recipe.to_dict(), "data": data_facts})
    (folder / STATE).unlink()


def facts_of_tokens(tokens: VirtualTokens) -> dict[str, Any]:
    """What is told of a training run, of an artifact that knows its own."""
    run = tokens.training or {}
    kept = {key: run.get(key) for key in ("steps", "seconds", "loss", "recipe", "data")}
    return {"parameters": tokens.matrix.numel(), **kept}


def write(path: Path, value: object) -> None:
    """Write JSON as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    aside.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(aside, path)


def _loop(
    model: peft.PeftModel,
    items: RagExamples,
    recipe: TrainingRecipe,
    folder: Path,
    columns: int,
    save_steps: int,
    micro_batch: int,
) -> dict[str, Any]:
    """The usual loss over whole sequences, with the steps, warm-up, clipping and schedule of our own run."""
    steps = recipe.steps_of(len(items), recipe.batch_size)
    parameters = {name: one for name, one in model.named_parameters() if one.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = get_scheduler(recipe.scheduler, optimizer, int(recipe.warmup * steps), steps)
    settings = {"recipe": recipe.to_dict(), "data": digest(items.examples)}
    done, seconds, losses = 0, 0.0, 0.0
    if (folder / STATE).exists():
        state = torch.load(folder / STATE, weights_only=True)
        if state["settings"] != settings:
            msg = f"{folder} holds the checkpoint of a run with other data or settings; give another --work"
            raise SystemExit(msg)
        done, seconds, losses = state["step"], state["seconds"], state["losses"]
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        for name, value in state["parameters"].items():
            parameters[name].data.copy_(value)
        print(f"goes on after step {done}", flush=True)
    since = 0.0
    for step, batch in enumerate(_batches(items, recipe, done), done + 1):
        if step > steps:
            break
        started = time.perf_counter()
        loss = _backward(model, batch, columns, micro_batch)
        torch.nn.utils.clip_grad_norm_(parameters.values(), recipe.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        took = time.perf_counter() - started
        seconds, losses, since = seconds + took, losses + loss, since + took
        if since > 30 or step == steps:
            print(f"step {step} of {steps}, loss {loss:.3f}, {took:.1f} s", flush=True)
            since = 0.0
        if step % save_steps == 0 or step == steps:
            folder.mkdir(parents=True, exist_ok=True)
            state = {
                "settings": settings,
                "step": step,
                "seconds": seconds,
                "losses": losses,
                "parameters": {name: one.detach() for name, one in parameters.items()},
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
            }
            torch.save(state, folder / f"{STATE}.part")
            os.replace(folder / f"{STATE}.part", folder / STATE)
    return {
        "parameters": sum(one.numel() for one in parameters.values()),
        "steps": steps,
        "seconds": round(seconds, 1),
        "loss": round(losses / steps, 4),
    }


def _batches(items: RagExamples, recipe: TrainingRecipe, done: int) -> Iterator[list[Example]]:
    """The optimizer steps of our own run, in its order, from the one after `done`."""
    sampler = SimilarLengths(items, recipe.batch_size, recipe.seed)
    step, per_epoch = done, len(sampler) // recipe.batch_size
    while True:
        sampler.set_epoch(step // per_epoch)
        places: list[SampleIndex] = list(sampler)
        for start in range(step % per_epoch * recipe.batch_size, len(places), recipe.batch_size):
            yield [items[place].example for place in places[start : start + recipe.batch_size]]
            step += 1


def _backward(model: peft.PeftModel, batch: list[Example], columns: int, micro_batch: int) -> float:
    """Add the gradient of the mean loss over the batch's target ids; gives that mean."""
    count = sum(len(target) for _, target in batch)
    total = 0.0
    for start in range(0, len(batch), micro_batch):
        part = batch[start : start + micro_batch]
        loss = whole_sequence_loss(model, part, columns) * (sum(len(target) for _, target in part) / count)
        loss.backward()
        total += loss.item()
    return total


def whole_sequence_loss(model: torch.nn.Module, batch: list[Example], columns: int = 0) -> torch.Tensor:
    """Mean cross-entropy of the target ids; `columns` is how many the model itself puts before the prompt's."""
    read = [[*encoded.ids, *target[:-1]] for encoded, target in batch]
    width = max(map(len, read))
    # Padded on the right, where causality keeps it apart: no mask, and attention's fast kernels.
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in read])
    answers = torch.zeros(len(batch), columns + width, dtype=torch.bool)
    for number, (row, (_, target)) in enumerate(zip(read, batch, strict=True)):
        answers[number, columns + len(row) - len(target) : columns + len(row)] = True
    logits = model(input_ids=ids, logits_to_keep=answers, use_cache=False).logits
    return functional.cross_entropy(logits.float(), torch.tensor([i for _, target in batch for i in target]))
