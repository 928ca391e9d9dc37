"""Where a slot goes in the templates of a framework: one rule for all of them. Knows no framework."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a variable stands in a template's texts (the messages of a chat, say).

    Attributes:
        text: index of the text.
        start: its first character there.
        end: the one after its last.
    """

    text: int
    start: int
    end: int


def slot_offsets(
    texts: Sequence[str], contexts: Sequence[Place], questions: Sequence[Place], *, stacklevel: int = 1
) -> list[tuple[int, int]]:
    """Where the slot may go, as index of a text and character in it, best first.

    Best is right before the line that holds the question: what a line says of the question ("Question: ") stays behind the slot, as in
    training. If that line begins before the context ends, it is right after the context. If there is no question, it comes in
    another prompt that follows, and the slot is the end of the context's text.

    A question before the context is warned of, at `stacklevel` above the caller: the slot then goes right after the context.

    Args:
        texts: in the order in which they are rendered.
        contexts: where the context is used; at least one place.
        questions: where the question is used.
        stacklevel: as `warnings.warn` takes it, counted from the caller.
    """
    last = max(contexts)
    after_context = (last.text, last.end)
    following = [place for place in questions if (place.text, place.start) >= after_context]
    if following:
        first = min(following)
        line = texts[first.text].rfind("\n", 0, first.start) + 1
        if first.text == last.text and line < last.end:
            return [after_context]
        return [(first.text, line), (first.text, first.start), after_context]
    if questions:
        msg = (
            "the question stands before the context, so virtual tokens go right after the context. They are trained to stand "
            "between context and question and help most there: better move the question to the prompt's end, or let it be asked "
            "again there with repeat_question=True"
        )
        warnings.warn(msg, stacklevel=stacklevel + 1)
        return [after_context]
    text = texts[last.text]
    # jinja drops a line break at a template's end, but not one in front of a slot.
    return [(last.text, len(text)), (last.text, len(text.rstrip("\n"))), after_context]


def question_to_repeat(
    texts: Sequence[str], contexts: Sequence[Place], questions: Sequence[Place]
) -> str | None:
    """What asks the question once more, to stand right after a slot that follows the context; None if the question does so already, or isn't there.

    It is the line that holds the question, up to the variable's end.

    Args:
        texts: as for `slot_offsets`.
        contexts: as for `slot_offsets`.
        questions: where the question is used.
    """
    if not questions:
        return None
    last = max(contexts)
    place = max(questions)
    if (place.text, place.start) >= (last.text, last.end):
        return None
    text = texts[place.text]
    line = text.rfind("\n", 0, place.start) + 1
    before = [each.end for each in contexts if each.text == place.text and each.end <= place.start]
    return text[max([line, *before]) : place.end].lstrip()
