"""Asking with skills: the answer and what each skill says of it, in one batch over one context."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from spring_rag.answering import answers, num_used, request_of
from spring_rag.backends.base import GenerationSettings
from spring_rag.errors import PromptTooLongError, TokensError
from spring_rag.fitting import fit_beside
from spring_rag.prompt import RagPrompt, RagTemplate
from spring_rag.skills import ANSWER, ANSWERABLE, CHECK, CITE, skill_of
from spring_rag.skills.asking import AskedSkill, ask_skill
from spring_rag.skills.cite import citations

if TYPE_CHECKING:
    from spring_rag.backends.base import Backend, FinishReason, Generation, Request, Usage
    from spring_rag.encoding import Encoded
    from spring_rag.tokens import VirtualTokens


@dataclass(frozen=True, slots=True)
class RagAnswer:
    """An answer, and what the attached skills say about it.

    Attributes:
        text: the answer, stripped at both ends; empty where it is withheld.
        answerable: the probability that the passages hold the answer, from 0 to 1; None without the skill `answerable`.
        citations: numbers of the passages that hold it, from 1, likeliest first; empty where it is withheld, where no passage seems to
            hold it, and without the skill `cite`.
        reasoning: what the backbone thought before it answered; None where it didn't.
        usage: numbers of tokens of the answer alone; the skills read the same context.
        withheld: whether there is no answer because `answerable` is below what was asked for.
        finish_reason: "stop", or "length" when `max_new_tokens` cut the answer.
        logprob: natural logarithm of the probability of the answer as it was written: the higher, the surer is the model of it.
        skills: for each skill that was asked, by task, the probabilities of its targets, in the order of `Skill.targets`.
        shown: number of passages that the model saw: the best ones, the others didn't fit.
    """

    text: str
    answerable: float | None
    citations: list[int]
    reasoning: str | None
    usage: Usage
    withheld: bool
    finish_reason: FinishReason
    logprob: float | None = None
    skills: Mapping[str, list[float]] = field(default_factory=dict)
    shown: int = 0


def attached_skills(backend: Backend) -> dict[str, str]:
    """Map each task to the name of the set of virtual tokens that was attached last for it."""
    found = {}
    for name in backend.bank:
        tokens = backend.bank[name]
        found[tokens.task] = name
    return found


def skill_template(tokens: VirtualTokens, otherwise: RagTemplate) -> RagTemplate:
    """Return the layout that a skill's tokens were trained in; if none is recorded, another one with the skill's line."""
    return tokens.template or replace(otherwise, question=skill_of(tokens.task).line)


@dataclass(frozen=True, slots=True)
class AskedQuestion:
    """The requests that one question makes.

    Attributes:
        answer: asks for the answer itself.
        skills: what else is asked, by task.
        least: the answer is withheld below this probability.
        shown: number of passages that all requests have.
    """

    answer: Request
    skills: Mapping[str, AskedSkill]
    least: float | None
    shown: int

    @property
    def requests(self) -> list[Request]:
        """Every request, the answer's first."""
        return [self.answer, *(request for skill in self.skills.values() for request in skill.requests)]

    def read(self, found: Sequence[Generation]) -> RagAnswer:
        """Turn the results of the requests, in their order, into an answer."""
        rest = iter(found)
        written = next(rest)
        told = {
            task: skill.probabilities(_taken(rest, len(skill.requests)))
            for task, skill in self.skills.items()
        }
        answerable = told[ANSWERABLE][skill_of(ANSWERABLE).yes_at] if ANSWERABLE in told else None
        withheld = self.least is not None and answerable is not None and answerable < self.least
        cited = citations(told[CITE]) if CITE in told and not withheld else []
        return RagAnswer(
            text="" if withheld else written.text.strip(),
            answerable=answerable,
            citations=cited,
            reasoning=written.reasoning,
            usage=written.usage,
            withheld=withheld,
            finish_reason=written.finish_reason,
            logprob=written.logprob,
            skills=told,
            shown=self.shown,
        )


def ask(
    backend: Backend,
    prompt: RagPrompt,
    tokens: str | None,
    num_tokens: int | None,
    settings: GenerationSettings,
    least: float | None,
) -> AskedQuestion:
    """Put a question to the tokens that answer and to the skills that are attached.

    All see the same passages: those that fit beside the question in each layout, and the longest answer.

    Args:
        backend: with the sets attached.
        prompt: of the answer.
        tokens: name of the set that answers; None is the default set.
        num_tokens: k of that set; None is all of it.
        settings: of the answer.
        least: the answer is withheld below this probability; None withholds none.

    Raises:
        TokensError: an unknown set, more virtual tokens than it has, or `least` without the skill `answerable`.
        PromptTooLongError: the question alone doesn't fit.
    """
    attached = attached_skills(backend)
    if least is not None and ANSWERABLE not in attached:
        msg = f"min_answerable = {least} needs virtual tokens of the task {ANSWERABLE!r}; attach some with add_skill"
        raise TokensError(msg)
    sets = {
        task: backend.bank[name]
        for task, name in attached.items()
        if task != ANSWER and not skill_of(task).judges
    }
    layouts = [prompt.template, *(skill_template(one, prompt.template) for one in sets.values())]
    counts = [num_used(backend, tokens, num_tokens), *map(len, sets.values())]
    prompts = [replace(prompt, template=layout) for layout in layouts]
    behind = [
        skill_of(task).length(len(prompt.passages), layout, backend.tokenizer)
        for task, layout in zip(sets, layouts[1:], strict=True)
    ]
    answer, *others = fit_beside(prompts, backend, counts, max([settings.max_new_tokens, *behind]))
    asked = {
        task: _asked(backend, attached[task], *fitted) for task, fitted in zip(sets, others, strict=True)
    }
    shown = len(answer[0].passages)
    return AskedQuestion(request_of(backend, *answer, tokens, counts[0]), asked, least, shown)


def ask_many(
    backend: Backend,
    prompts: Sequence[RagPrompt],
    tokens: Sequence[str | None],
    num_tokens: Sequence[int | None],
    settings: GenerationSettings,
    least: float | None,
) -> list[RagAnswer]:
    """`ask` for several questions in one batch, each with its own set and k.

    Raises:
        ValueError: `least` is no probability.
    """
    if least is not None and not 0 <= least <= 1:
        msg = f"min_answerable is {least}; it is a probability, from 0 to 1"
        raise ValueError(msg)
    asked = [
        ask(backend, prompt, name, count, settings, least)
        for prompt, name, count in zip(prompts, tokens, num_tokens, strict=True)
    ]
    requests = [request for each in asked for request in each.requests]
    found = iter(answers(backend, requests, replace(settings, logprob=True)))
    return [each.read(_taken(found, len(each.requests))) for each in asked]


def check(backend: Backend, question: str, answer: str, passages: Sequence[str]) -> float:
    """Return the probability that passages support an answer; see `SpringModel.check`."""
    attached = attached_skills(backend)
    if CHECK not in attached:
        msg = f"checking an answer needs virtual tokens of the task {CHECK!r}; attach some with add_skill"
        raise TokensError(msg)
    tokens = backend.bank[attached[CHECK]]
    prompt = RagPrompt(question, passages, skill_template(tokens, RagTemplate()))
    one = GenerationSettings(max_new_tokens=1)
    length = skill_of(CHECK).length(len(passages), prompt.template, backend.tokenizer, answer)
    longest = backend.context_length
    if longest is not None and length + len(tokens) >= longest:
        msg = (
            f"the answer to check has {length} tokens, and the backbone's context holds {longest} with passages, question and "
            f"{len(tokens)} virtual tokens; check a part of the answer at a time"
        )
        raise PromptTooLongError(msg)
    [fitted] = fit_beside([prompt], backend, [len(tokens)], length)
    asked = _asked(backend, attached[CHECK], *fitted, claim=answer)
    return asked.probabilities(answers(backend, asked.requests, one))[asked.skill.yes_at]


def _asked(
    backend: Backend, name: str, prompt: RagPrompt, encoded: Encoded, claim: str | None = None
) -> AskedSkill:
    """Put a question to all virtual tokens of a set, in the form of the skill that they were trained for."""
    tokens = backend.bank[name]
    return ask_skill(
        skill_of(tokens.task),
        prompt,
        encoded,
        backend.tokenizer,
        tokens=name,
        num_tokens=len(tokens),
        calibration=tokens.calibration,
        claim=claim,
    )


def _taken(found: Iterator[Generation], count: int) -> list[Generation]:
    return [next(found) for _ in range(count)]
