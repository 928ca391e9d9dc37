"""Train the demo's backbone from scratch: `python -m spring_rag.demo.build.pretrain --output DIR`.

The order of things: a small Llama that begins with circuits for reading; lessons of four levels, the next one when nearly all
short answers are right; a constant learning rate that falls linearly at the end (Hägele et al. 2024, arXiv 2405.18392). Hidden
matrices are trained by Muon (Jordan et al. 2024), the rest by AdamW. Started again, it goes on from its last checkpoint.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from spring_rag.demo.build.backbone import small_llama, train_tokenizer
from spring_rag.demo.build.lessons import Segment, lesson, shape

LEVELS = 4
ROW_TOKENS = {1: 208, 2: 288, 3: 384, 4: 448}
BATCH_TOKENS = 7168
_LEAST_STEPS, _MOST_STEPS = 100, 350


class Lessons(IterableDataset[tuple[torch.Tensor, ...]]):
    """Endless batches of rows of a level, which is shared with the process that draws them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int, level: torch.Tensor) -> None:
        self.tokenizer, self.seed, self.level = tokenizer, seed, level

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        rng = Random(self.seed)
        while True:
            level = int(self.level)
            width = ROW_TOKENS[level]
            rows = BATCH_TOKENS // width
            ids = torch.full((rows, width), self.tokenizer.pad_token_id)
            weights = torch.zeros(rows, width)
            briefs = torch.zeros(rows, width, dtype=torch.long)
            for i in range(rows):
                segments = lesson(rng, shape(rng, level), lambda text: len(text) // 4, width)
                self._fill(segments, ids[i], weights[i], briefs[i], rng)
            yield ids, weights, briefs

    def _fill(
        self,
        segments: list[Segment],
        ids: torch.Tensor,
        weights: torch.Tensor,
        briefs: torch.Tensor,
        rng: Random,
    ) -> None:
        start, answer = 0, 0
        for segment in segments:
            piece = self._ids(segment.text)
            end = min(start + len(piece), len(ids))
            ids[start:end] = torch.tensor(piece[: end - start], dtype=torch.long)
            if segment.answer:
                weights[start:end] = 1.0 if segment.brief else 0.5
                if segment.brief:
                    answer += 1
                    briefs[start:end] = answer
            else:
                # A fifth of the other tokens stands for all of them: their logits cost more than they teach.
                keep = torch.tensor([rng.random() < 0.2 for _ in range(end - start)])
                weights[start:end] = 0.4 * keep
            start = end
            if start == len(ids):
                return


@dataclass(frozen=True)
class Outcome:
    """One batch: its loss, that of the answers alone, and how many of its short answers are right in every token."""

    loss: torch.Tensor
    answer_loss: float
    right: int
    briefs: int


def forward(body: Callable[..., Any], model: LlamaForCausalLM, batch: tuple[torch.Tensor, ...]) -> Outcome:
    """The weighted next-token loss, with logits only where a weight asks for them."""
    ids, weights, briefs = batch
    target, weight, brief = ids[:, 1:], weights[:, 1:], briefs[:, 1:]
    picked = weight > 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = body(input_ids=ids, use_cache=False)[0]
        logits = model.lm_head(hidden[:, :-1][picked])
    losses = functional.cross_entropy(logits.float(), target[picked], reduction="none")
    loss = (losses * weight[picked]).sum() / weight.sum()
    # Numbers of short answers start anew in each row.
    keys = (brief + 1000 * (brief > 0) * torch.arange(len(ids))[:, None])[picked]
    wrong = torch.zeros(1000 * len(ids)).index_add_(0, keys, (logits.argmax(-1) != target[picked]).float())
    asked = keys[keys > 0].bincount(minlength=len(wrong)) > 0
    right = int((asked & (wrong == 0)).sum())
    return Outcome(loss, losses[brief[picked] > 0].mean().item(), right, int(asked.sum()))


def make_optimizers(model: LlamaForCausalLM, args: argparse.Namespace) -> dict[torch.optim.Optimizer, float]:
    """Optimizers and their peak learning rates: Muon for hidden matrices, AdamW for embeddings and norms.

    Muon's usual rate is five times higher; it washes the circuits out that the weights start with, and records are then
    told apart no better than by chance.
    """
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    muon = torch.optim.Muon(matrices, lr=args.muon_lr, momentum=0.95, weight_decay=0.01, ns_steps=4)
    adam = torch.optim.AdamW(others, lr=args.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)
    return {muon: args.muon_lr, adam: args.adam_lr}


def pretrain(args: argparse.Namespace) -> None:
    """Train a backbone and save it, in bf16, with its tokenizer and log; goes on from a checkpoint in the output folder."""
    torch.manual_seed(args.seed)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(args.vocab, args.seed)
    tokenizer.save_pretrained(output)
    model = small_llama(tokenizer, args.hidden, args.layers, args.heads)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} pieces", flush=True)
    optimizers = make_optimizers(model, args)
    level = torch.ones(1, dtype=torch.long).share_memory_()
    checkpoint = output / "checkpoint.pt"
    done, share, tokens, since, before = 0, 0.0, 0, 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        done, share, tokens, since, before = state["progress"]
        level.fill_(state["level"])
    lessons = Lessons(tokenizer, args.seed + done, level)
    batches = iter(DataLoader(lessons, batch_size=None, num_workers=1, prefetch_factor=2))
    body = torch.compile(model.model, dynamic=False) if args.compile else model.model
    started = time.time() - before
    with (output / "log.jsonl").open("a" if done else "w") as log:
        for step in range(done + 1, args.steps + 1):
            factor = min(1.0, step / 100, (args.steps - step + 1) / (args.decay * args.steps))
            for optimizer, peak in optimizers.items():
                optimizer.param_groups[0]["lr"] = peak * factor
            batch = next(batches)
            outcome = forward(body, model, batch)
            outcome.loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            tokens, since = tokens + batch[0].numel(), since + 1
            share = 0.98 * share + 0.02 * outcome.right / max(outcome.briefs, 1)
            if step % 20 == 0:
                line = {
                    "step": step,
                    "level": int(level),
                    "loss": round(outcome.loss.item(), 4),
                    "answers": round(outcome.answer_loss, 4),
                    "brief_right": round(share, 4),
                    "tokens": tokens,
                    "seconds": round(time.time() - started),
                }
                print(json.dumps(line), flush=True)
                log.write(json.dumps(line) + "\n")
                log.flush()
            passed = share > args.pass_mark and since > _LEAST_STEPS
            if (passed or since > _MOST_STEPS) and int(level) < LEVELS:
                level += 1
                since, share = 0, 0.0
            if step % 100 == 0:
                state = {
                    "model": model.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                    "progress": (step, share, tokens, since, time.time() - started),
                    "level": int(level),
                }
                torch.save(state, checkpoint.with_suffix(".new"))
                checkpoint.with_suffix(".new").replace(checkpoint)
    model.bfloat16().save_pretrained(output)
    checkpoint.unlink(missing_ok=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument(
        "--decay", type=float, default=0.3, help="share of the steps in which the learning rate falls"
    )
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=3072)
    parser.add_argument("--muon-lr", type=float, default=0.004)
    parser.add_argument("--adam-lr", type=float, default=0.002)
    parser.add_argument(
        "--pass-mark", type=float, default=0.8, help="share of right short answers that ends a level"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    pretrain(parser.parse_args())
