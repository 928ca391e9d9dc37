"""Calls of several threads, gathered into batches of one model."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from spring_rag.backends.base import BATCH_SIZE, Generation, GenerationSettings, Request

WINDOW_SECONDS = 0.005
"""A leader that had company last time begins when nobody new has come for so long."""

RunBatch = Callable[[Sequence[Request], Sequence[Tensor], GenerationSettings], list[Generation]]


@dataclass(eq=False, slots=True)
class _Call:
    """What one caller wants to know, and the answers once they are there."""

    requests: Sequence[Request]
    rows: Sequence[Tensor]
    settings: GenerationSettings
    found: list[Generation] | Exception | None = None

    @property
    def length(self) -> int:
        return max(len(request.encoded.ids) for request in self.requests)


class Gathering:
    """Answers what arrives while the model is busy together, in its next turn.

    It has no thread of its own. A caller who finds the model free leads: it answers for itself and for all whose settings are
    the same. Who comes meanwhile waits, until a leader has brought the answers along or it is the next leader itself. So the
    more there are, the larger the batches grow, and a caller who is alone waits for nobody. Only after a batch of several does
    a leader wait for a moment: those who got their answers together may be asking again together.

    Args:
        run: answers requests as one batch, given the rows that go into their slots; called by one thread at a time.
        turn: held while the model is used; others (streams, say) may hold it, too.
    """

    def __init__(self, run: RunBatch, turn: threading.Lock) -> None:
        self._run = run
        self._turn = turn
        state = threading.Lock()
        self._arrived = threading.Condition(state)
        self._changed = threading.Condition(state)
        self._waiting: list[_Call] = []
        self._led = False
        self._had_company = False

    def answer(
        self, requests: Sequence[Request], rows: Sequence[Tensor], settings: GenerationSettings
    ) -> list[Generation]:
        """What `run` gives for these requests, results in their order. Raises what `run` raises for them alone.

        Args:
            requests: at least one; those of one call stay together.
            rows: the virtual tokens of each, shape `[k, hidden_size]`.
            settings: such that neighbours in a batch change nothing.
        """
        call = _Call(requests, rows, settings)
        with self._changed:
            self._waiting.append(call)
            self._arrived.notify()
            try:
                self._changed.wait_for(lambda: call.found is not None or not self._led)
            except BaseException:  # Ctrl-C: nobody wants the answer any more
                self._waiting = [each for each in self._waiting if each is not call]
                raise
            if call.found is None:
                self._led = True
        if call.found is None:
            self._lead(call)
        if isinstance(call.found, Exception):
            raise call.found
        assert call.found is not None
        return call.found

    def _lead(self, call: _Call) -> None:
        """Answer a batch that `call` is part of."""
        batch: list[_Call] = [call]
        try:
            with self._turn:
                self._expect_company()
                batch = self._take(call)
                self._answer(batch)
        finally:
            with self._changed:
                # Left without answers by something worse than an error, Ctrl-C in the leader's thread: others will lead. Nobody wants the
                # leader's own any more.
                self._waiting = [each for each in self._waiting if each is not call]
                self._waiting += [each for each in batch if each.found is None and each is not call]
                self._led = False
                self._changed.notify_all()

    def _expect_company(self) -> None:
        with self._arrived:
            while self._had_company and len(self._waiting) < BATCH_SIZE:
                if not self._arrived.wait(WINDOW_SECONDS):
                    break

    def _take(self, call: _Call) -> list[_Call]:
        """The batch of `call`, out of those that wait: prompts of similar length run together."""
        with self._changed:
            alike = [each for each in self._waiting if each.settings == call.settings]
            alike.sort(key=lambda each: each.length, reverse=True)
            batch: list[_Call] = []
            for each in alike:
                if sum(len(one.requests) for one in [*batch, each]) > BATCH_SIZE:
                    if call in batch:
                        break
                    batch = []
                batch.append(each)
            self._waiting = [each for each in self._waiting if each not in batch]
            self._had_company = len(batch) > 1
            return batch

    def _answer(self, batch: Sequence[_Call]) -> None:
        """Fill in what is found. If a batch of several calls fails, each is answered alone: one's error is not another's."""
        requests = [request for each in batch for request in each.requests]
        rows = [virtual for each in batch for virtual in each.rows]
        try:
            answers = iter(self._run(requests, rows, batch[0].settings))
        except Exception as error:
            if len(batch) == 1:
                batch[0].found = error
                return
            for each in batch:
                self._answer([each])
            return
        for each in batch:
            each.found = [next(answers) for _ in each.requests]
