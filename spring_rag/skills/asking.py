"""A skill that chooses, asked of a backbone: its requests, and what their answers say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from spring_rag.backends.base import Backend, Generation, GenerationSettings, Request
from spring_rag.callbacks import OnProgress
from spring_rag.encoding import Encoded
from spring_rag.prompt import RagPrompt
from spring_rag.skills.choosing import Choosing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from spring_rag.skills.skill import Skill


_ONE = GenerationSettings(max_new_tokens=1)
"""The choice is read from the token that comes next."""


@dataclass(frozen=True, slots=True)
class AskedSkill:
    """The requests of one question to a skill.

    Attributes:
        skill: that is asked.
        requests: for the probabilities that its choice takes; few.
        calibration: slope and intercept, where the skill's tokens have them.
    """

    skill: Skill
    requests: tuple[Request, ...]
    calibration: tuple[float, float] | None
    _choosing: Choosing

    def probabilities(self, found: Sequence[Generation]) -> list[float]:
        """How likely each of the skill's targets is, in their order; they add up to 1. Calibrated, where there is a calibration.

        Args:
            found: what the requests got, in their order.
        """
        told = [
            dict(zip(request.choices, one.logprobs, strict=True))
            for request, one in zip(self.requests, found, strict=True)
        ]
        return self.skill.calibrated(self._choosing.probabilities(told), self.calibration)


def ask_skill(
    skill: Skill,
    prompt: RagPrompt,
    encoded: Encoded,
    tokenizer: PreTrainedTokenizerBase,
    *,
    tokens: str | None = None,
    num_tokens: int | None = None,
    calibration: tuple[float, float] | None = None,
    claim: str | None = None,
) -> AskedSkill:
    """Put a question to a skill.

    Args:
        skill: one that chooses among targets.
        prompt: question, passages and the template of the skill's tokens.
        encoded: the same as ids.
        tokenizer: the backbone's.
        tokens: name of the set of virtual tokens; None is the default set.
        num_tokens: k; None is all of them.
        calibration: of the tokens.
        claim: the answer that is judged, if the skill judges one.
    """
    choosing = skill.choosing(prompt.passages, prompt.template, tokenizer, claim)
    plain = Request(encoded, tokens, num_tokens, prompt.to_prompt())
    requests = tuple(
        replace(plain, encoded=replace(encoded, ids=(*encoded.ids, *before)), choices=ids)
        for before, ids in choosing.places
    )
    return AskedSkill(skill, requests, calibration, choosing)


def ask_in_batches(
    backend: Backend,
    skill: Skill,
    fitted: Sequence[tuple[RagPrompt, Encoded]],
    claims: Sequence[str | None],
    batch_size: int,
    *,
    tokens: str | None = None,
    num_tokens: int | None = None,
    calibration: tuple[float, float] | None = None,
    progress: OnProgress | None = None,
) -> Iterator[list[float]]:
    """Put many questions to a skill; gives for each the probabilities of the targets, calibrated where there is a calibration.

    Args:
        backend: with the skill's tokens attached.
        skill: one that chooses among targets.
        fitted: prompts in the layout of the skill's tokens, and their ids.
        claims: for each the answer that is judged, if the skill judges one.
        batch_size: most requests at once, of which a question may make several.
        tokens: as for `ask_skill`.
        num_tokens: as for `ask_skill`.
        calibration: as for `ask_skill`.
        progress: called after each batch with the number of questions asked so far, and of all.
    """
    asked = [
        ask_skill(
            skill,
            *each,
            backend.tokenizer,
            tokens=tokens,
            num_tokens=num_tokens,
            calibration=calibration,
            claim=claim,
        )
        for each, claim in zip(fitted, claims, strict=True)
    ]
    start = 0
    while start < len(asked):
        end = start + 1
        while end < len(asked) and sum(len(one.requests) for one in asked[start : end + 1]) <= batch_size:
            end += 1
        batch = asked[start:end]
        found = iter(backend.generate([request for one in batch for request in one.requests], _ONE))
        for one in batch:
            yield one.probabilities([next(found) for _ in one.requests])
        if progress is not None:
            progress(end, len(asked))
        start = end
