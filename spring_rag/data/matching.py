"""Find accepted answers in texts: one rule for data, training, scores and benchmarks."""

import re
import string
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_JUDGEMENTS = frozenset(("yes", "no", "true", "false"))

# Thai to Khmer, East Asia, Hangul: scripts that don't separate words, or join particles to them.
_JOINED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ua4cf\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
)
_JOINED_LETTER = re.compile(f"[{_JOINED}]")
_PARTED_LETTER = rf"[^\W{_JOINED}]"


def normalise(text: str) -> str:
    """Return a text as SQuAD compares it (`evaluate-v1.1.py`): lower case, single spaces, no ASCII punctuation, no English articles."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def stands_in(text: str, answers: Sequence[str]) -> bool:
    """Return whether one of the answers occurs in a text as whole words, normalised or as written, in any case.

    "1" isn't in "1811", but "US" is in "a U.S. ship" and "Ada" in "ADA's bridge". In scripts that don't separate words, "東京" is in
    "首都は東京です". An answer of which normalising leaves nothing, such as "A", is in no text.
    """
    wanted = [answer for answer in answers if normalise(answer)]
    for form in (normalise, str.casefold):
        whole = form(text)
        if any(_is_word_in(whole, form(answer).strip()) for answer in wanted):
            return True
    return False


def readable(answers: Sequence[str]) -> list[str]:
    """Return the answers that a passage can hold: all but yes and no, true and false, which follow from passages without these words."""
    return [answer for answer in answers if normalise(answer) not in _JUDGEMENTS]


def holds(passage: str, answers: Sequence[str]) -> bool:
    """Return whether a passage holds one of the answers, other than yes and no, true and false."""
    return stands_in(passage, readable(answers))


def _is_word_in(text: str, words: str) -> bool:
    if words not in text:
        return False
    before = "" if _JOINED_LETTER.match(words[0]) else f"(?<!{_PARTED_LETTER})"
    after = "" if _JOINED_LETTER.match(words[-1]) else f"(?!{_PARTED_LETTER})"
    return re.search(before + re.escape(words) + after, text) is not None
