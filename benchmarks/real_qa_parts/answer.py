"""How each way answers, and the files that keep the answers, a line for each question."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import peft
import torch
from real_qa_parts.train import PEFT_WAYS

from spring_rag.backbone import BackboneRecord
from spring_rag.backends.base import Generation, GenerationSettings, Request
from spring_rag.backends.local import LocalBackend
from spring_rag.data.examples import UNANSWERABLE_ANSWER, RagExample
from spring_rag.data.matching import holds
from spring_rag.encoding import Encoded, encode
from spring_rag.evaluation.words import WordsWay, word_ways
from spring_rag.model import SpringModel
from spring_rag.prompt import BRIEF, RagPrompt, RagTemplate
from spring_rag.splice import InputEmbedding
from spring_rag.tokens import VirtualTokens

TOP_K, NEW_TOKENS, BATCH = 5, 32, 16
KS = (1, 5, 10, 25, 50)
TOLD = BRIEF + f'If the passages do not hold the answer, say "{UNANSWERABLE_ANSWER}".\n'
TOKENS = "tokens-k"
MISSING = "-missing"
"""Ends the name of a data set whose questions lose the passages that hold an answer."""


class Question(NamedTuple):
    """A question with its id, accepted answers and passages."""

    id: str
    example: RagExample


class Reply(NamedTuple):
    """An answer, stripped at both ends, and how many ids were generated for it."""

    text: str
    tokens: int


Answerer = Callable[[Sequence[RagExample], Sequence[str]], dict[str, list[Reply]]]
"""Answers questions under some of the names that a way's answers are filed under."""


def questions(path: Path, data: str, limit: int | None) -> list[Question]:
    """A random sample, the same each time; a larger one begins with the smaller. Of each, the five best passages.

    A data set whose name ends in `-missing` is made of the same sample: of the questions whose five passages hold an answer, each
    with five (where so many were retrieved) that hold none. "not stated" is right then.
    """
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    records = Random("real_qa").sample(records, len(records))[:limit]
    found = []
    for record in records:
        answers, passages = tuple(record["golden_answers"]), record["ret_passages"]
        kept = tuple(passages[:TOP_K])
        if data.endswith(MISSING):
            others = tuple(one for one in passages if not holds(one, answers))[:TOP_K]
            if kept == others or not others:
                continue
            answers, kept = (UNANSWERABLE_ANSWER,), others
        found.append(Question(str(record["id"]), RagExample(record["question"], answers, kept)))
    return found


def all_words(model: SpringModel) -> list[WordsWay]:
    """What can be said in words: asking for brevity, and also what to say where the passages hold no answer."""
    ways = word_ways(RagTemplate(), model.tokenizer, BRIEF)
    told = word_ways(RagTemplate(), model.tokenizer, TOLD)
    return [*ways, *(replace(way, name=f"{way.name}, {UNANSWERABLE_ANSWER}") for way in told)]


def answerer(way: str, backbone: str, dtype: str, folder: Path, words: dict[str, str] | None) -> Answerer:
    """Load what a way needs.

    Args:
        way: "plain", "words", "tokens", or one of `PEFT_WAYS`.
        backbone: folder, file or Hub id.
        dtype: of the backbone, which is that of all arithmetic.
        folder: what was trained; nothing is read from it for plain and words.
        words: names of the chosen ways in words, by the name that they are reported under.
    """
    backend = LocalBackend.from_pretrained(backbone, dtype=dtype)
    model = SpringModel.from_backend(backend)
    if way == "words":
        assert words is not None
        by_name = {one.name: one for one in all_words(model)}
        return lambda asked, names: {
            name: _ask(model, asked, by_name[words[name]].template, by_name[words[name]].stop)
            for name in names
        }
    if way == "tokens":
        model.add_tokens("default", folder)
        return lambda asked, names: _ask_with_tokens(model, asked, names)
    if way == "prompt-tuning":
        return _prompt_tuned(backend, folder)
    if way == "prefix-tuning":
        return _prefix_tuned(backend, folder)
    if way == "lora":
        # Not merged: the sum would be rounded to the backbone's dtype.
        adapted: Any = peft.PeftModel.from_pretrained(backend.hf_model, folder).get_base_model()
        model = SpringModel(adapted, backend.tokenizer)
    return lambda asked, _: {way: _ask(model, asked)}


def _ask(
    model: SpringModel,
    asked: Sequence[RagExample],
    template: RagTemplate | None = None,
    stop: Sequence[str] = (),
) -> list[Reply]:
    prompts = [RagPrompt(e.question, e.passages, template or RagTemplate()) for e in asked]
    found = model.generate(
        prompts, num_tokens=0, max_new_tokens=NEW_TOKENS, stop=stop or None, batch_size=BATCH
    )
    return [_reply(one) for one in found]


def _ask_with_tokens(
    model: SpringModel, asked: Sequence[RagExample], names: Sequence[str]
) -> dict[str, list[Reply]]:
    """All ks in one batch, where a question's context is computed once."""
    template, ks = model.template(), [int(name.removeprefix(TOKENS)) for name in names]
    found = model.generate(
        [RagPrompt(e.question, e.passages, template) for e in asked for _ in ks],
        num_tokens=[*ks] * len(asked),
        max_new_tokens=NEW_TOKENS,
        batch_size=BATCH * len(ks),
    )
    return {name: [_reply(one) for one in found[at :: len(ks)]] for at, name in enumerate(names)}


def _prompt_tuned(backend: LocalBackend, folder: Path) -> Answerer:
    """With PEFT's trained rows in front of all, where PEFT has them; our splice pads no gap between them and the prompt."""
    rows = peft.load_peft_weights(str(folder), device="cpu")["prompt_embeddings"]
    scale = InputEmbedding(backend.hf_model).scale
    made = VirtualTokens(rows.float() / scale, backbone=BackboneRecord.of(backend.hf_model))
    backend.add_tokens("default", made)

    def answer(asked: Sequence[RagExample], _: Sequence[str]) -> dict[str, list[Reply]]:
        requests = [Request(Encoded(ids, 0)) for ids in _plain_ids(backend, asked)]
        settings = GenerationSettings(max_new_tokens=NEW_TOKENS)
        found: dict[int, Reply] = {}
        for batch in _alike([request.encoded.ids for request in requests]):
            replies = backend.generate([requests[number] for number in batch], settings)
            found.update(zip(batch, map(_reply, replies), strict=True))
        return {"prompt-tuning": [found[number] for number in range(len(asked))]}

    return answer


def _prefix_tuned(backend: LocalBackend, folder: Path) -> Answerer:
    """With PEFT's trained keys and values as the first columns of the cache.

    By the backbone's own `generate`: PEFT's places a padded batch's prompts as if the padding were text.
    """
    tuned = peft.PeftModel.from_pretrained(backend.hf_model, folder).eval()
    hf_model: Any = tuned.get_base_model()
    columns = tuned.active_peft_config.num_virtual_tokens
    # What counts columns instead of positions would count the padding between prefix and prompt.
    size = 1 if getattr(hf_model.config.get_text_config(), "sliding_window", None) else BATCH
    end = backend.tokenizer.eos_token_id

    def answer(asked: Sequence[RagExample], _: Sequence[str]) -> dict[str, list[Reply]]:
        prompts = _plain_ids(backend, asked)
        found: dict[int, Reply] = {}
        for batch in _alike(prompts, size):
            width = max(len(prompts[number]) for number in batch)
            gaps = [width - len(prompts[number]) for number in batch]
            ids = [
                [end] * (columns + gap) + [*prompts[number]] for number, gap in zip(batch, gaps, strict=True)
            ]
            mask = [[1] * columns + [0] * gap + [1] * (width - gap) for gap in gaps]
            with torch.no_grad():
                made = hf_model.generate(
                    torch.tensor(ids),
                    attention_mask=torch.tensor(mask),
                    past_key_values=tuned.get_prompt(len(batch)),
                    max_new_tokens=NEW_TOKENS,
                    do_sample=False,
                    eos_token_id=end,
                    pad_token_id=end,
                )
            for number, row in zip(batch, made[:, columns + width :].tolist(), strict=True):
                row = row[: row.index(end) + 1] if end in row else row
                text = str(backend.tokenizer.decode(row, skip_special_tokens=True))
                found[number] = Reply(text.strip(), len(row))
        return {"prefix-tuning": [found[number] for number in range(len(asked))]}

    return answer


def _plain_ids(backend: LocalBackend, asked: Sequence[RagExample]) -> list[tuple[int, ...]]:
    return [encode(RagPrompt(e.question, e.passages), backend.tokenizer).ids for e in asked]


def _alike(prompts: Sequence[Sequence[int]], size: int = BATCH) -> list[list[int]]:
    """Batches of similar lengths."""
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def _reply(found: Generation) -> Reply:
    return Reply(found.text.strip(), found.usage.generated)


WAYS = ("plain", "words", *PEFT_WAYS, "tokens")
FILED_UNDER = {"words": ("words", "words-told"), "tokens": tuple(f"{TOKENS}{k}" for k in KS)}
"""Names of what ways answer in, where these aren't their own."""


def lines_of(path: Path) -> list[dict[str, Any]]:
    """What a part file holds; a last line that was torn by a sudden end is taken off."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def add_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Add lines to a part file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
