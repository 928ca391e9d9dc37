"""Wrong answers of the same kind as a right one, out of the passages: a number for a number, a name for a name."""

import re
from collections.abc import Iterator, Sequence
from random import Random

from spring_rag.data.matching import normalise, stands_in

_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_NUMBER = re.compile(
    rf"(?:(?:{_MONTHS})\s+)?\d(?:[\d,.]*\d)?(?:st|nd|rd|th|s|%)?(?:\s+(?:{_MONTHS}))?(?:,?\s+\d{{4}})?\b"
)
_NAME = re.compile(r"[A-Z][\w'’-]+(?:\s+(?:of\s+|the\s+|de\s+|von\s+)?[A-Z][\w'’-]+)*")
_CLAUSE = re.compile(r"[^.,;:!?()\n]+")
_SMALL = 3
"""Letters of a word that nothing begins or ends with."""


def wrong_answer(
    accepted: Sequence[str], others: Sequence[str], passages: Sequence[str], rng: Random
) -> str | None:
    """An answer that isn't right but could be.

    Args:
        accepted: the right answers; the first says what kind is looked for.
        others: answers to other questions on these passages, which are taken first.
        passages: else it is taken out of them.
        rng: draws.

    Returns:
        None if there is nothing of that kind.
    """
    wanted = _kind(accepted[0])
    for found in (
        [each for each in others if _kind(each) == wanted],
        list(_spans(wanted, max(1, len(accepted[0].split())), passages)),
    ):
        wrong = sorted({each for each in found if _differs(each, accepted)})
        if wrong:
            return rng.choice(wrong)
    return None


def _kind(answer: str) -> str:
    if any(letter.isdigit() for letter in answer):
        return "number"
    return "name" if any(word[:1].isupper() for word in answer.split()) else "words"


def _spans(kind: str, length: int, passages: Sequence[str]) -> Iterator[str]:
    for passage in passages:
        if kind != "words":
            yield from (match[0] for match in (_NUMBER if kind == "number" else _NAME).finditer(passage))
            continue
        for clause in _CLAUSE.findall(passage):
            words = clause.split()
            for start in range(len(words) - length + 1):
                span = words[start : start + length]
                if len(span[0]) > _SMALL < len(span[-1]) and not any(word[0].isupper() for word in span):
                    yield " ".join(span)


def _differs(answer: str, accepted: Sequence[str]) -> bool:
    return bool(normalise(answer)) and not any(
        stands_in(answer, [one]) or stands_in(one, [answer]) for one in accepted
    )
