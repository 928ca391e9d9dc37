"""Train the demo's backbone from scratch: `python -m spring_rag.demo.build.pretrain --output DIR`.

The order of things: a byte-level BPE tokenizer on the lessons' own text; a small Llama; lessons of one passage, and
one passage more each time the short answers are nearly all right; a constant learning rate that falls linearly at the end
(Hägele et al. 2024, arXiv 2405.18392). Hidden matrices are trained by Muon (Jordan et al. 2024), the rest by AdamW.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from spring_rag.demo.build.lessons import (
    ASSISTANT,
    BOS,
    CHAT_TEMPLATE,
    END,
    PAD,
    SYSTEM,
    USER,
    Segment,
    lesson,
)

MAX_PASSAGES = 5
ROW_TOKENS = {1: 192, 2: 256, 3: 320, 4: 384, 5: 448}
BATCH_TOKENS = 7168
_SPLIT = r"[0-9]+| ?[A-Za-z]+|\s*\n| ?[^\sA-Za-z0-9]+|\s+"


def train_tokenizer(vocab_size: int, seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on lessons; numbers stand apart from the space before them."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    rng = Random(seed)
    special = [PAD, BOS, END, USER, ASSISTANT, SYSTEM]

    def texts() -> Iterator[str]:
        for _ in range(6000):
            row = "".join(part.text for part in lesson(rng, rng.randint(1, 4), len, 1500))
            for token in special:
                row = row.replace(token, "\n")
            yield row

    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts(), trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT, SYSTEM],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.model_max_length = 1024
    return tokenizer


def small_llama(tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int, heads: int) -> LlamaForCausalLM:
    """A randomly initialised Llama with tied embeddings."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    for layer in model.model.layers:
        _start_as_copier(layer.self_attn, hidden)
    return model


@torch.no_grad()
def _start_as_copier(attention: nn.Module, hidden: int) -> None:
    """Let a layer's heads begin by attending to like tokens and passing their content on.

    Queries equal keys and the output projection undoes the value projection, but for noise: "mimetic" initialisation
    (Trockman and Kolter 2023, arXiv 2305.09828). Copying from the context then appears after about 60 % of the steps.
    """
    matching, content = (nn.init.orthogonal_(torch.empty(hidden, hidden)) for _ in range(2))
    for name, start, noise in (
        ("q_proj", 0.7 * matching, 0.02),
        ("k_proj", 0.7 * matching, 0.02),
        ("v_proj", 0.5 * content, 0.01),
        ("o_proj", 0.5 * content.T, 0.01),
    ):
        attention.get_submodule(name).weight.copy_(start + noise * torch.randn(hidden, hidden))


class Lessons(IterableDataset[tuple[torch.Tensor, ...]]):
    """Endless batches of rows with at most `level` passages; `level` is shared with the process that draws them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int, level: torch.Tensor) -> None:
        self.tokenizer, self.seed, self.level = tokenizer, seed, level

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

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
                count = level if rng.random() < 0.6 else rng.randint(1, level)
                segments = lesson(rng, count, lambda text: len(text) // 4, width)
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
                weights[start:end] = 1.0
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


def _share_right(right: torch.Tensor, briefs: torch.Tensor, rows: torch.Tensor) -> tuple[int, int]:
    """How many brief answers are right in every token, and of how many."""
    keys = (rows * 1000 + briefs)[briefs > 0]
    answers, inverse = keys.unique(return_inverse=True)
    wrong = torch.zeros(len(answers)).index_add_(0, inverse, (~right[briefs > 0]).float())
    return int((wrong == 0).sum()), len(answers)


def pretrain(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(args.vocab, args.seed)
    tokenizer.save_pretrained(output)
    model = small_llama(tokenizer, args.hidden, args.layers, args.heads)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} pieces", flush=True)

    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=args.muon_lr, momentum=0.95, weight_decay=0.01, ns_steps=4),
        torch.optim.AdamW(others, lr=args.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    peaks = [args.muon_lr, args.adam_lr]
    level = torch.ones(1, dtype=torch.long).share_memory_()
    batches = iter(
        DataLoader(Lessons(tokenizer, args.seed, level), batch_size=None, num_workers=1, prefetch_factor=2)
    )
    body = torch.compile(model.model, dynamic=False) if args.compile else model.model
    log = (output / "log.jsonl").open("a")
    share, tokens, since, started = 0.0, 0, 0, time.time()
    for step in range(1, args.steps + 1):
        ids, weights, briefs = next(batches)
        factor = min(1.0, step / 100, (args.steps - step + 1) / (args.decay * args.steps))
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * factor
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = body(input_ids=ids, use_cache=False)[0]
        target, weight, brief = ids[:, 1:], weights[:, 1:], briefs[:, 1:]
        picked = weight > 0
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model.lm_head(hidden[:, :-1][picked])
        losses = functional.cross_entropy(logits.float(), target[picked], reduction="none")
        loss = (losses * weight[picked]).sum() / weight.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        tokens += ids.numel()
        since += 1
        rows = torch.arange(len(ids))[:, None].expand_as(target)[picked]
        good, count = _share_right(logits.argmax(-1) == target[picked], brief[picked], rows)
        share = 0.98 * share + 0.02 * good / max(count, 1)
        if step % 20 == 0:
            sure = losses[weight[picked] == 1].mean().item()
            line = {
                "step": step,
                "level": int(level),
                "loss": round(loss.item(), 4),
                "answers": round(sure, 4),
                "brief_right": round(share, 4),
                "tokens": tokens,
                "seconds": round(time.time() - started),
            }
            print(json.dumps(line), flush=True)
            log.write(json.dumps(line) + "\n")
            log.flush()
        if share > args.pass_mark and since > 120 and int(level) < MAX_PASSAGES:
            level += 1
            since, share = 0, 0.0
        if step % 500 == 0 or step == args.steps:
            model.to(torch.bfloat16).save_pretrained(output) if step == args.steps else torch.save(
                model.state_dict(), output / "checkpoint.pt"
            )
    log.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True)
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument(
        "--decay", type=float, default=0.25, help="share of the steps in which the learning rate falls"
    )
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=3072)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=0.003)
    parser.add_argument(
        "--pass-mark", type=float, default=0.8, help="share of right short answers that adds a passage"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    pretrain(parser.parse_args())
