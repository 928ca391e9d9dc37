"""Let the backbone itself write questions and answers from documents, and keep those that survive a round trip."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from spring_rag.callbacks import OnProgress
from spring_rag.data.matching import holds, normalise, stands_in
from spring_rag.errors import DataError
from spring_rag.prompt import BRIEF, Message, Prompt, RagPrompt, RagTemplate, Text

if TYPE_CHECKING:
    from spring_rag.model import SpringModel

MAKE_PROMPT = "Passage: {passage}\n\nWrite a question about this passage, and its answer.\n"
_PASSAGE = "{passage}"
_PAIR = re.compile(
    r"(?:\W*question\W*?:)?[\s*]*(?P<question>[^\n]+?)[\s*]*\n[\s*]*answer\W*?:[\s*]*(?P<answer>[^\n]+)",
    re.IGNORECASE,
)
_MAX_NEW_TOKENS = 96
_MAX_ANSWER_WORDS = 12


@dataclass(frozen=True, slots=True)
class Pair:
    """A question, its answer, and the passage that it was written from."""

    question: str
    answer: str
    passage: str


@dataclass(frozen=True, slots=True)
class Made:
    """What the backbone wrote.

    Attributes:
        pairs: the pairs kept, in the order of the passages.
        asked: number of pairs asked for.
        refused: number of the other pairs, by reason.
    """

    pairs: list[Pair]
    asked: int
    refused: dict[str, int]


def make_pairs(
    model: "SpringModel",
    passages: Sequence[str],
    *,
    per_passage: int = 1,
    prompt: str = MAKE_PROMPT,
    chat: bool | None = None,
    temperature: float = 0.8,
    seed: int = 0,
    batch_size: int = 16,
    progress: OnProgress | None = None,
) -> Made:
    """Let the plain backbone write questions with answers, and ask them back.

    A pair is kept if its answer is short and occurs in its passage, if its question doesn't give the answer away, and if the backbone,
    given the passage and the question, answers the same again.

    Args:
        model: the backbone; its virtual tokens are not used.
        passages: what to ask about.
        per_passage: pairs to write about each passage; sampled, so that they differ.
        prompt: the request, with `{passage}` in it; its answer must have a line with the question and one with `Answer: …`.
        chat: put the request into the tokenizer's chat template; None means yes if it has one.
        temperature: sampling temperature of the writing; the round trip is greedy.
        seed: seed of the writing.
        batch_size: prompts that run at once.
        progress: called with the number of pairs written and asked back so far, and of all.

    Raises:
        DataError: the prompt doesn't hold `{passage}` exactly once, or there are no passages.
        BackendError: the backend fails; see `SpringModel.generate`.
    """
    if prompt.count(_PASSAGE) != 1:
        msg = f"the prompt for writing questions must hold {_PASSAGE} once: {prompt!r}"
        raise DataError(msg)
    if not passages:
        msg = "there are no passages to write questions about"
        raise DataError(msg)
    if chat is None:
        chat = bool(getattr(model.tokenizer, "chat_template", None))
    pairs: list[Pair] = []
    refused: Counter[str] = Counter()
    asked: set[str] = set()
    total, done = per_passage * len(passages), 0
    for turn in range(per_passage):
        for start in range(0, len(passages), batch_size):
            batch = passages[start : start + batch_size]
            written = _write(model, batch, prompt, chat, temperature, seed + turn)
            for pair, reason in _ask_back(model, written, chat):
                key = normalise(pair.question) if pair is not None else ""
                if pair is not None and key not in asked:
                    asked.add(key)
                    pairs.append(pair)
                else:
                    refused[reason or "asked before"] += 1
            done += len(batch)
            if progress is not None:
                progress(done, total)
    place = {passage: number for number, passage in enumerate(passages)}
    pairs.sort(key=lambda pair: place[pair.passage])
    return Made(pairs, total, dict(refused))


def _write(
    model: "SpringModel", passages: Sequence[str], prompt: str, chat: bool, temperature: float, seed: int
) -> list[tuple[Pair | None, str]]:
    """Return a pair for each passage, or the reason for which there is none."""
    before, after = prompt.split(_PASSAGE)
    requests = []
    for passage in passages:
        parts = [Text(before, trusted=True), Text(passage), Text(after, trusted=True)]
        filled = tuple(part for part in parts if part.text)
        requests.append(Prompt(messages=(Message("user", filled),)) if chat else Prompt(parts=filled))
    # A base model goes on with the next question after an empty line.
    replies = model.generate(
        requests,
        num_tokens=0,
        max_new_tokens=_MAX_NEW_TOKENS,
        temperature=temperature,
        seed=seed,
        stop=None if chat else "\n\n",
        batch_size=len(requests),
    )
    return [_parse(reply.text, passage) for reply, passage in zip(replies, passages, strict=True)]


def _parse(reply: str, passage: str) -> tuple[Pair | None, str]:
    found = _PAIR.search(reply)
    if found is None:
        return None, "no question with an answer"
    question, answer = found["question"].strip(), found["answer"].strip().rstrip("*").strip()
    if not holds(passage, [answer]):
        return None, "the answer isn't in the passage"
    if len(answer.split()) > _MAX_ANSWER_WORDS:
        return None, "the answer is long"
    if stands_in(question, [answer]):
        return None, "the question gives its answer away"
    return Pair(question, answer.rstrip("."), passage), ""


def _ask_back(
    model: "SpringModel", written: Sequence[tuple[Pair | None, str]], chat: bool
) -> list[tuple[Pair | None, str]]:
    pairs = [pair for pair, _ in written if pair is not None]
    if not pairs:
        return list(written)
    template = replace(RagTemplate(), chat=chat, instruction=BRIEF)
    replies = model.generate(
        [RagPrompt(pair.question, [pair.passage], template) for pair in pairs],
        num_tokens=0,
        max_new_tokens=_MAX_NEW_TOKENS,
        batch_size=len(pairs),
    )
    agreed = {pair: stands_in(reply.text, [pair.answer]) for pair, reply in zip(pairs, replies, strict=True)}
    return [
        (pair, reason) if pair is None or agreed[pair] else (None, "asked back, it is answered differently")
        for pair, reason in written
    ]
