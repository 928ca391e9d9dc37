"""Messages of a framework → a chat prompt of the core, its slot right before the question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

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


def chat_prompt(messages: Sequence[Message]) -> Prompt:
    """The chat prompt that these messages are; roles under any of their names. Nothing in them is trusted.

    A slot whose question follows in a later message comes right before that, whatever was put between. Slots of questions that have been
    answered are left out where there is another, and so are those of tools' results before the last one. A result gets the name of the
    tool that was called.

    Raises:
        PromptError: no messages, or two slots.
    """
    roles = [ROLES.get(message.role, message.role) for message in messages]
    contents = [list(message.parts) for message in messages]
    _move_following(roles, contents)
    _leave_out_answered(roles, contents)
    called = {call.id: call.name for message in messages for call in message.tool_calls}
    return Prompt(
        messages=tuple(
            replace(
                message,
                role=role,
                parts=tuple(parts),
                name=message.name or called.get(message.tool_call_id or ""),
            )
            for message, role, parts in zip(messages, roles, contents, strict=True)
        )
    )


def _leave_out_answered(roles: list[str], contents: list[list[Part]]) -> None:
    slots = [i for i, parts in enumerate(contents) if _has_slot(parts)]
    answered = max((i for i, role in enumerate(roles) if role == "assistant"), default=0)
    for i in slots if len(slots) > 1 else ():
        if (roles[i] == "tool" and i != slots[-1]) or (roles[i] == "user" and i < answered):
            contents[i] = [part for part in contents[i] if not isinstance(part, Slot)]


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
