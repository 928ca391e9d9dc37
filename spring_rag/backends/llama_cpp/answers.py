"""Prompts are read into llama.cpp's cache, and their answers written side by side."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import FloatTensor, LongTensor, Tensor
from transformers import PreTrainedTokenizerBase

from spring_rag.backends.base import Generation, GenerationSettings, Request
from spring_rag.backends.decoding import (
    Sampler,
    StopStrings,
    TextStreamer,
    chosen,
    decoder,
    draw_seeds,
    finished,
)
from spring_rag.backends.llama_cpp.embedding import GgufEmbedding
from spring_rag.backends.llama_cpp.engine import Engine, Piece
from spring_rag.backends.llama_cpp.room import Place, Room
from spring_rag.encoding import Encoded
from spring_rag.errors import BackendError
from spring_rag.splice import check_prompt

_UNREAD = cast(FloatTensor, torch.empty(1, 0))
"""Scores for what doesn't look at them."""


class _Answer:
    """One answer in progress.

    Args:
        encoded: its prompt.
        virtual: what llama.cpp takes for the virtual tokens, shape `[k, hidden_size]`.
        settings: how to decode.
        sampler: None decodes greedily.
        stops: None where there are no stop strings.
        choices: ids that may follow: how likely each is, is all that is asked then; empty where an answer is written.

    Attributes:
        context: ids that the prompt has in common with others on the same passages.
        suffix: ids behind the virtual tokens.
        own: most tokens behind the context that are read into the cache; the answer's last one never is.
        ids: what was generated so far.
        logits: from which the choices are read, once they are known; None for an answer.
        logprob: of what was generated so far; None where it isn't asked for.
    """

    def __init__(
        self,
        encoded: Encoded,
        virtual: Tensor,
        settings: GenerationSettings,
        sampler: Sampler | None,
        stops: StopStrings | None,
        choices: tuple[int, ...],
    ) -> None:
        self.encoded, self.virtual = encoded, virtual
        self.context, self.suffix = encoded.context_ids, encoded.suffix_ids
        if encoded.slot is None:
            self.context, self.suffix = (), encoded.ids
        elif not len(virtual) and not self.suffix:  # something must be read, for the answer to follow
            self.context, self.suffix = self.context[:-1], self.context[-1:]
        self.choices = choices
        self.own = len(virtual) + len(self.suffix) + (0 if choices else settings.max_new_tokens - 1)
        self.ids: list[int] = []
        self.logits: Tensor | None = None
        self.logprob = 0.0 if settings.logprob else None
        self._most, self._sampler, self._stops = settings.max_new_tokens, sampler, stops

    @property
    def behind_slot(self) -> int:
        """Position of the suffix."""
        return len(self.context) + len(self.virtual)

    @property
    def last(self) -> int:
        """Position of the token that was generated last."""
        return len(self.encoded.ids) + len(self.virtual) + len(self.ids) - 1

    def go_on(self, logits: Tensor) -> None:
        """Choose the next token by its logits, shape `[vocab]`, or keep them where it is asked how likely the choices are."""
        if self.choices:
            self.logits = logits
            return
        scores = cast(FloatTensor, logits[None])
        if self._sampler is not None:
            scores = self._sampler(cast(LongTensor, _UNREAD), scores)
        self.ids.append(int(scores.argmax()))
        if self.logprob is not None:
            self.logprob += float(logits.log_softmax(dim=-1)[self.ids[-1]])

    def is_whole(self, eos_ids: frozenset[int]) -> bool:
        """Whether no more tokens follow."""
        if self.choices:
            return True
        if self.ids[-1] in eos_ids or len(self.ids) == self._most:
            return True
        ids = cast(LongTensor, torch.tensor([self.ids]))
        return self._stops is not None and bool(self._stops(ids, _UNREAD))


class Writer:
    """Writes answers, several at once. Contexts that they share, or that were read lately, are computed once.

    One thread at a time may call it.

    Args:
        engine: llama.cpp with the backbone.
        embedding: of the backbone.
        tokenizer: of the backbone.
        eos_ids: where an answer ends.
    """

    def __init__(
        self,
        engine: Engine,
        embedding: GgufEmbedding,
        tokenizer: PreTrainedTokenizerBase,
        eos_ids: frozenset[int],
    ) -> None:
        self._engine, self._embedding, self._eos_ids = engine, embedding, eos_ids
        self._text = decoder(tokenizer)
        self.room = Room(engine.cells, engine)

    def write(
        self,
        requests: Sequence[Request],
        rows: Sequence[Tensor],
        settings: GenerationSettings,
        streamer: TextStreamer | None = None,
        cancelled: threading.Event | None = None,
    ) -> list[Generation]:
        """Answer requests, results in their order.

        Args:
            requests: each fits the cache by itself.
            rows: the virtual tokens of each, shape `[k, hidden_size]`, in the space of the table.
            settings: how to decode.
            streamer: gets the ids of the one request as they come.
            cancelled: ends the work once it is set.

        Raises:
            PromptError: an empty prompt, or one that another tokenizer encoded.
            BackendError: llama.cpp can't go on, or the work was cancelled.
        """
        answers = self._begun(requests, rows, settings)
        waiting = deque(answers)
        places: dict[_Answer, Place] = {}

        def check() -> None:
            if cancelled is not None and cancelled.is_set():
                msg = "the stream was closed before the answer was whole"
                raise BackendError(msg)

        def go_on(asked: Sequence[_Answer], logits: Tensor) -> None:
            for answer, scores in zip(asked, logits, strict=True):
                answer.go_on(scores)
                if streamer is not None:
                    streamer.put(torch.tensor(answer.ids[-1:]))
                if answer.is_whole(self._eos_ids):
                    self.room.leave(places.pop(answer))

        if streamer is not None:
            streamer.put(torch.empty(0))  # the prompt, which it doesn't show
        try:
            while waiting or places:
                new = []
                while waiting and (place := self.room.take(waiting[0].context, waiting[0].own)) is not None:
                    new.append(waiting.popleft())
                    places[new[-1]] = place
                for asked, logits in self._read(new, places, check):
                    go_on(asked, logits)
                if writing := list(places):
                    pieces = [
                        Piece(places[each].sequence, each.last, each.ids[-1:], asks=True) for each in writing
                    ]
                    go_on(writing, self._engine.decode(pieces, check))
        finally:
            for place in places.values():
                self.room.leave(place)
        return [self._finished(each, settings) for each in answers]

    def _finished(self, answer: _Answer, settings: GenerationSettings) -> Generation:
        encoded, virtual = answer.encoded, len(answer.virtual)
        if answer.logits is not None:
            return chosen(encoded, virtual, answer.choices, answer.logits)
        whole = finished(answer.ids, encoded, virtual, settings.stop, self._eos_ids, self._text)
        return replace(whole, logprob=answer.logprob)

    def _begun(
        self, requests: Sequence[Request], rows: Sequence[Tensor], settings: GenerationSettings
    ) -> list[_Answer]:
        answers = []
        seeds = draw_seeds(settings, len(requests))
        for number, (request, virtual, seed) in enumerate(zip(requests, rows, seeds, strict=True)):
            check_prompt(number, request.encoded, len(virtual), self._embedding.vocab_size)
            answers.append(
                _Answer(
                    request.encoded,
                    self._embedding.virtual(virtual),
                    settings,
                    None if settings.greedy else Sampler(settings, [seed], self._embedding.device),
                    StopStrings(self._text, settings.stop, 0, 1) if settings.stop else None,
                    request.choices,
                )
            )
        return answers

    def _read(
        self, new: Sequence[_Answer], places: dict[_Answer, Place], check: Callable[[], None]
    ) -> list[tuple[list[_Answer], Tensor]]:
        """Read prompts, and give the logits behind them: first of those that end in virtual tokens, then of all others."""
        for answer in new:
            place = places[answer]
            context = place.context
            if context is None:
                continue
            assert context.sequence is not None  # the context of an answer in progress isn't put aside
            if not context.computed:
                self._engine.decode([Piece(context.sequence, 0, context.ids)], check)
                context.computed = True
            self._engine.copy(context.sequence, place.sequence)
        # A batch of llama.cpp's holds either embeddings or ids.
        batches: list[list[tuple[_Answer, Piece]]] = [
            [
                (each, Piece(places[each].sequence, len(each.context), each.virtual, asks=not each.suffix))
                for each in new
                if len(each.virtual)
            ],
            [
                (each, Piece(places[each].sequence, each.behind_slot, each.suffix, asks=True))
                for each in new
                if each.suffix
            ],
        ]
        read = []
        for batch in batches:
            if batch:
                logits = self._engine.decode([piece for _, piece in batch], check)
                read.append(([each for each, piece in batch if piece.asks], logits))
        return read
