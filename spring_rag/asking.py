"""A question with all that is wanted to know of its answer: one batch over one context, a request for each skill."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from spring_rag.errors import TokensError
from spring_rag.fitting import crossing, fit, fit_together, room
from spring_rag.skills import skill_of
from spring_rag.skills.asking import AskedSkill, ask_skill
from spring_rag.skills.cite import citations

if TYPE_CHECKING:
    from spring_rag.backends.base import Backend, FinishReason, Generation, Request, Usage
    from spring_rag.encoding import Encoded
    from spring_rag.prompt import RagPrompt

ANSWERABLE, CITE, CHECK = "answerable", "cite", "check"


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
    """

    text: str
    answerable: float | None
    citations: list[int]
    reasoning: str | None
    usage: Usage
    withheld: bool
    finish_reason: FinishReason


def attached_skills(backend: Backend) -> dict[str, str]:
    """For each task the name of the set of virtual tokens that was attached last for it."""
    found = {}
    for name in backend.bank:
        tokens = backend.bank[name]
        found[tokens.task] = name
    return found


@dataclass(frozen=True, slots=True)
class AskedQuestion:
    """The requests of one question.

    Attributes:
        answer: asks for the answer itself.
        skills: what else is asked, by task.
        least: the answer is withheld below this probability.
    """

    answer: Request
    skills: Mapping[str, AskedSkill]
    least: float | None

    @property
    def requests(self) -> list[Request]:
        """All of them, the answer's first."""
        return [self.answer, *(request for skill in self.skills.values() for request in skill.requests)]

    def read(self, found: Sequence[Generation]) -> RagAnswer:
        """What the requests got, in their order, as an answer."""
        rest = iter(found)
        written = next(rest)
        told = {task: _taken(rest, len(skill.requests)) for task, skill in self.skills.items()}
        answerable = self.skills[ANSWERABLE].yes(told[ANSWERABLE]) if ANSWERABLE in told else None
        withheld = self.least is not None and answerable is not None and answerable < self.least
        cited = (
            citations(self.skills[CITE].probabilities(told[CITE])) if CITE in told and not withheld else []
        )
        return RagAnswer(
            text="" if withheld else written.text.strip(),
            answerable=answerable,
            citations=cited,
            reasoning=written.reasoning,
            usage=written.usage,
            withheld=withheld,
            finish_reason=written.finish_reason,
        )


def ask(
    backend: Backend,
    prompt: RagPrompt,
    answer: Request,
    *,
    max_new_tokens: int,
    least: float | None,
) -> AskedQuestion:
    """Put a question to the answer's tokens and to the skills that are attached.

    All see the same passages: those that fit beside the question in each layout, and the longest answer.

    Args:
        backend: with the sets attached.
        prompt: of the answer.
        answer: of the same prompt; its ids are replaced where not all passages fit.
        max_new_tokens: most tokens of the answer.
        least: the answer is withheld below this probability; None withholds none.

    Raises:
        TokensError: `least` without the skill `answerable`.
        PromptTooLongError: the question alone doesn't fit.
    """
    attached = attached_skills(backend)
    if least is not None and ANSWERABLE not in attached:
        msg = f"min_answerable = {least} needs virtual tokens of the task {ANSWERABLE!r}; attach some with add_skill"
        raise TokensError(msg)
    sets = {task: backend.bank[attached[task]] for task in (ANSWERABLE, CITE) if task in attached}
    if not sets:
        return AskedQuestion(answer, {}, least)
    layouts = [prompt.template, *(one.template or prompt.template for one in sets.values())]
    counts = [answer.num_tokens or 0, *map(len, sets.values())]
    budget = room(backend.context_length, max(counts), max_new_tokens)
    avoided = crossing(backend.position_switch, counts, max_new_tokens)
    prompts = [replace(prompt, template=layout) for layout in layouts]
    (shown, encoded), *others = fit_together(prompts, budget, backend.tokenizer, avoided=avoided)
    asked = {
        task: _asked(backend, attached[task], *fitted) for task, fitted in zip(sets, others, strict=True)
    }
    return AskedQuestion(replace(answer, encoded=encoded, prompt=shown.to_prompt()), asked, least)


def check(backend: Backend, question: str, answer: str, prompt: RagPrompt) -> AskedSkill:
    """Ask whether passages support an answer.

    Args:
        backend: with the skill `check` attached.
        question: that is answered.
        answer: from anywhere.
        prompt: with the passages, and the layout to take where the tokens record none.

    Raises:
        TokensError: the skill isn't attached.
        PromptTooLongError: question and answer alone don't fit.
    """
    attached = attached_skills(backend)
    if CHECK not in attached:
        msg = f"checking an answer needs virtual tokens of the task {CHECK!r}; attach some with add_skill"
        raise TokensError(msg)
    tokens, skill = backend.bank[attached[CHECK]], skill_of(CHECK)
    layout = tokens.template or prompt.template
    asked = replace(prompt, question=skill.asked(question, answer), template=layout)
    budget = room(backend.context_length, len(tokens), 1)
    return _asked(backend, attached[CHECK], *fit(asked, budget, backend.tokenizer))


def _asked(backend: Backend, name: str, prompt: RagPrompt, encoded: Encoded) -> AskedSkill:
    """A question that is put to a set of virtual tokens, all of them, by the skill that they were trained for."""
    tokens = backend.bank[name]
    return ask_skill(
        skill_of(tokens.task),
        prompt,
        encoded,
        backend.tokenizer,
        tokens=name,
        num_tokens=len(tokens),
        calibration=tokens.calibration,
    )


def _taken(found: Iterator[Generation], count: int) -> list[Generation]:
    return [next(found) for _ in range(count)]
