"""Messages of a framework → a chat prompt of the core, its slot right before the question."""

from __future__ import annotations

from collections.abc import Sequence

from spring_rag.bridge.marks import FollowingSlot
from spring_rag.prompt import Message, Part, Prompt, Slot

ROLES = {
    "human": "user",
    "ai": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "developer": "system",
}
"""Names that frameworks and other makers' models have for the roles that every chat template knows."""


def chat_prompt(messages: Sequence[tuple[str, Sequence[Part]]]) -> Prompt:
    """The chat prompt that these messages are; roles under any of their names. Nothing in them is trusted.

    A slot whose question follows in a later message comes right before that, whatever was put between. Slots of questions that have been
    answered are left out where there is another.

    Raises:
        PromptError: no messages, or two slots.
    """
    roles = [ROLES.get(role, role) for role, _ in messages]
    contents = [list(parts) for _, parts in messages]
    _move_following(roles, contents)
    if sum(map(_has_slot, contents)) > 1:
        answered = max((i for i, role in enumerate(roles) if role == "assistant"), default=0)
        for i in range(answered):
            if roles[i] == "user":
                contents[i] = [part for part in contents[i] if not isinstance(part, Slot)]
    return Prompt(
        messages=tuple(Message(role, tuple(parts)) for role, parts in zip(roles, contents, strict=True))
    )


def _move_following(roles: list[str], contents: list[list[Part]]) -> None:
    """Put a slot whose question follows right before the user's last turn: at the end of its own message if no other stands between."""
    turn = len(roles)
    while turn and roles[turn - 1] == "user":
        turn -= 1
    for i, parts in enumerate(contents):
        following = [part for part in parts if isinstance(part, FollowingSlot)]
        for part in following:
            parts.remove(part)
            if i + 1 < turn < len(roles):
                contents[turn].insert(0, Slot())
            else:
                parts.append(Slot())


def _has_slot(parts: list[Part]) -> bool:
    return any(isinstance(part, Slot) for part in parts)
