"""Untrained tokens of skills, for the toy."""

from __future__ import annotations

from spring_rag.prompt import RagTemplate
from spring_rag.skills import SKILLS
from spring_rag.tokens import VirtualTokens


def skill_tokens(task: str, answering: VirtualTokens, **more: object) -> VirtualTokens:
    """Untrained tokens of a skill."""
    rows = answering.matrix.flip(0)[: 4 + len(task)]
    template = RagTemplate(question=SKILLS[task].line)
    return VirtualTokens(rows, backbone=answering.backbone, template=template, task=task, **more)  # type: ignore[arg-type]
