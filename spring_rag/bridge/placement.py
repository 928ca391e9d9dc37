"""Where a slot goes in the templates of a framework: one rule for all of them."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from spring_rag.bridge.marks import FOLLOWING_MARK, adopt
from spring_rag.bridge.syntax import Syntax
from spring_rag.errors import PromptError
from spring_rag.rendering import Range

# "Question:" and its like belong to the question.
_MOST_WORDS_BETWEEN = 6
_SHOWN = 80


@dataclass(frozen=True, slots=True)
class TemplateText:
    """One string template inside a prompt.

    Attributes:
        template: its text; of a placeholder for messages, its variable's name.
        syntax: its format; None for a placeholder.
    """

    template: str
    syntax: Syntax | None


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


def words_between(texts: Sequence[str], slot: tuple[int, int], questions: Sequence[Place]) -> str:
    """What stands between a slot and the first question behind it, white space made plain; nothing where there is none.

    Args:
        texts: in the order in which they are rendered.
        slot: index of a text and character in it.
        questions: where the question is used.
    """
    following = [place for place in questions if (place.text, place.start) >= slot]
    if not following:
        return ""
    text, offset = slot
    first = min(following)
    if first.text == text:
        between = texts[text][offset : first.start]
    else:
        between = "\n".join(
            [texts[text][offset:], *texts[text + 1 : first.text], texts[first.text][: first.start]]
        )
    return " ".join(between.split())


def _warn_of_words(between: str, stacklevel: int) -> None:
    if len(between.split()) > _MOST_WORDS_BETWEEN:
        shown = between if len(between) <= _SHOWN else between[: _SHOWN - 1] + "…"
        msg = (
            f"words stand between the virtual tokens and the question: {shown!r}. They are trained to stand right in front of the "
            "question, and what comes between weakens them: put these words before the context, or the question on a line of its own"
        )
        warnings.warn(msg, stacklevel=stacklevel + 1)


@dataclass(frozen=True, slots=True)
class _Region:
    """A text that is rendered in one piece: a source, or a message in it."""

    source: int
    start: int
    text: str


def put_slot(
    sources: Sequence[TemplateText],
    contexts: Sequence[str],
    question: str,
    *,
    mark: str,
    repeat_question: bool = False,
    question_may_follow: bool = False,
    stacklevel: int = 1,
) -> tuple[int, str | None]:
    """Put a mark for the slot into the one of a prompt's string templates where it belongs.

    A template whose author put a marker into it keeps the slot there.

    Args:
        sources: in the order in which they are rendered.
        contexts: names that the variable with the context may have.
        question: name of the variable with the question.
        mark: what to put in.
        repeat_question: where the question stands before the context, ask it again behind the slot.
        question_may_follow: whether the question may come in a prompt that follows; the mark is then `FOLLOWING_MARK`.
        stacklevel: as `warnings.warn` takes it, counted from the caller.

    Returns:
        The number of the source and its new text; None in place of the text where the slot belongs in front of the last message that
        fills this placeholder.

    Raises:
        PromptError: two markers, no such variables, context and question in one block, a context that is messages, no safe place, or a
            question that can't be repeated.
    """
    sources = [
        TemplateText(each.syntax.normal(each.template) if each.syntax else each.template, each.syntax)
        for each in sources
    ]
    adopted = [adopt(each.template, mark) if each.syntax else "" for each in sources]
    marked = [
        i for i, text in enumerate(adopted) for _ in range(text.count(mark) + text.count(FOLLOWING_MARK))
    ]
    if len(marked) > 1:
        msg = f"a template can have one slot, this one has {len(marked)}; leave its marker in one place only"
        raise PromptError(msg)
    if marked:
        _warn_of_words(_after_mark(sources, adopted, marked[0], mark, question), stacklevel + 1)
        return marked[0], adopted[marked[0]]
    regions = list(_regions(sources))
    texts = [region.text for region in regions]
    found = sorted(place for name in contexts for place in _places(sources, regions, name))
    asked = list(_places(sources, regions, question))
    if not found:
        raise _missing(sources, contexts, "context")
    if not asked and not question_may_follow:
        raise _missing(sources, [question], "question")
    last = found[-1]
    home = sources[regions[last.text].source]
    if home.syntax is None:
        msg = f"the context is a placeholder for messages, {home.template!r}; virtual tokens need it as text in a message"
        raise PromptError(msg)
    if last in asked:
        msg = (
            f"context and question are in one block of the template, {texts[last.text][last.start : last.end]!r}; put "
            "spring_rag.prompt.SLOT_MARKER into its text where virtual tokens should go"
        )
        raise PromptError(msg)
    text = mark if asked else FOLLOWING_MARK
    if repeat_question and (repeated := question_to_repeat(texts, found, asked)) is not None:
        if sources[regions[max(asked).text].source].syntax is not home.syntax:
            msg = (
                f"the question {question!r} can't be repeated after the context: it is messages, or in a template of another format; "
                "put it at the prompt's end yourself"
            )
            raise PromptError(msg)
        offsets, behind = [(last.text, last.end)], f"\n{mark}{repeated}"
    else:
        offsets, behind = slot_offsets(texts, found, asked, stacklevel=stacklevel + 1), text
    for number, offset in offsets:
        region = regions[number]
        source = sources[region.source]
        if source.syntax is None:
            return region.source, None
        made = source.syntax.insert(source.template, text, region.start + offset)
        if made is not None:
            if behind == mark:
                _warn_of_words(words_between(texts, (number, offset), asked), stacklevel + 1)
            return region.source, made.replace(text, behind)
    msg = "there is no safe place for the slot in this template; put spring_rag.prompt.SLOT_MARKER where it should be"
    raise PromptError(msg)


def _after_mark(
    sources: Sequence[TemplateText], adopted: Sequence[str], number: int, mark: str, question: str
) -> str:
    """What stands between a marker that a template's author put there and the question."""
    texts = list(adopted)
    regions = [_Region(i, 0, text) for i, text in enumerate(texts)]
    marked = [TemplateText(text, source.syntax) for text, source in zip(texts, sources, strict=True)]
    offset = texts[number].find(mark)
    if offset < 0:
        return ""
    return words_between(texts, (number, offset + len(mark)), list(_places(marked, regions, question)))


def _regions(sources: Sequence[TemplateText]) -> Iterator[_Region]:
    for number, source in enumerate(sources):
        ranges: list[Range] = source.syntax.messages(source.template) if source.syntax else [(0, 0)]
        for start, end in ranges:
            yield _Region(number, start, source.template[start:end])


def _places(sources: Sequence[TemplateText], regions: Sequence[_Region], name: str) -> Iterator[Place]:
    """Where a variable is used, as places in the regions' texts."""
    for number, region in enumerate(regions):
        source = sources[region.source]
        if source.syntax is None:
            if source.template == name:
                yield Place(number, 0, 0)
            continue
        for start, end in source.syntax.uses(source.template, name):
            if region.start <= start and end <= region.start + len(region.text):
                yield Place(number, start - region.start, end - region.start)


def _missing(sources: Sequence[TemplateText], names: Sequence[str], argument: str) -> PromptError:
    used = {
        name
        for each in sources
        for name in (each.syntax.names(each.template) if each.syntax else {each.template})
    }
    expected = " or ".join(f"{{{name}}}" for name in names)
    msg = (
        f"the template has no {expected}, so there is no telling where virtual tokens go; it uses {', '.join(sorted(used)) or 'no variable'}: "
        f"name the right one with {argument}=..."
    )
    return PromptError(msg)
