"""What a set of virtual tokens can be trained to do on a context. Each skill is one small file; a new one joins `SKILLS`."""

from spring_rag.errors import TokensError
from spring_rag.skills.answer import Answer
from spring_rag.skills.answerable import Answerable
from spring_rag.skills.check import Check
from spring_rag.skills.cite import Cite
from spring_rag.skills.skill import Skill

__all__ = ["ANSWER", "ANSWERABLE", "CHECK", "CITE", "SKILLS", "Skill", "skill_of"]

ANSWER, ANSWERABLE, CITE, CHECK = Answer.name, Answerable.name, Cite.name, Check.name

SKILLS: dict[str, Skill] = {skill.name: skill for skill in (Answer(), Answerable(), Cite(), Check())}
"""Every skill by its name, which is the `task` of the virtual tokens that were trained for it."""


def skill_of(task: str) -> Skill:
    """The skill of that name.

    Raises:
        TokensError: there is none; names those that there are.
    """
    if task not in SKILLS:
        msg = f"no skill is called {task!r}; there are {', '.join(SKILLS)}. Were the tokens trained by a later version of spring-rag?"
        raise TokensError(msg)
    return SKILLS[task]
