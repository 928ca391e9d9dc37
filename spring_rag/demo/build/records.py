"""Invented records, and the sentences, questions and answers that speak of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from spring_rag.demo.build.kinds import ATTRIBUTES, KINDS, VALUES, Attribute, Kind
from spring_rag.demo.build.names import name

_VALUES = {key: words.split() for key, words in VALUES.items()}
_POSSESSIVE = {"It": "Its", "She": "Her", "He": "His"}
_LABEL_QUESTIONS = (
    "What is the {label} of {n}?",
    "Tell me the {label} of {n}.",
    "Which {label} is given for {n}?",
    "What do we know of the {label} of {n}?",
)
_LONG_OPENINGS = (
    "",
    "According to the passages, ",
    "As far as the passages tell, ",
    "From what is written here, ",
    "The text says that ",
)
_LONG_ENDINGS = (
    ".",
    ", as the text says.",
    ", and this is what the passage tells us.",
    ", according to what I have read.",
)
_MISSING = (
    "The passages do not say what the {label} of {n} is.",
    "I cannot find the {label} of {n} in the passages.",
    "There is nothing about the {label} of {n} in the text.",
)


@dataclass(frozen=True)
class Record:
    """One invented thing: `name` is how texts call it, `facts` maps attribute keys to values."""

    kind: Kind
    name: str
    facts: dict[str, str]


def _value(values: str, rng: Random, held_out: bool) -> str:
    if values == "year":
        return str(rng.randint(1650, 1999))
    if values == "town":
        return name(rng, held_out)
    if values == "person":
        return f"{name(rng, held_out)} {name(rng, held_out)}"
    if values.startswith("number "):
        size = rng.choice((100, 1000))
        return f"{rng.randint(size // 10, size - 1)} {values.removeprefix('number ')}"
    return rng.choice(_VALUES[values])


def record(
    rng: Random,
    kind: Kind | None = None,
    held_out: bool = False,
    word: str | None = None,
    keys: Sequence[str] = (),
) -> Record:
    """Invent a record.

    Args:
        rng: source of all choices.
        kind: of what; by default any.
        held_out: name everything in it with held-out words.
        word: the invented word that its name is built on; by default a new one.
        keys: what facts to state, of the kind's attributes; by default three to five.
    """
    kind = kind or rng.choice(KINDS)
    title = rng.choice(kind.names).format(a=word or name(rng, held_out), b=name(rng, held_out))
    keys = keys or rng.sample(kind.attributes, min(len(kind.attributes), rng.randint(3, 5)))
    return Record(kind, title, {key: _value(ATTRIBUTES[key].values, rng, held_out) for key in keys})


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _predicate(attribute: Attribute, value: str) -> str:
    text = attribute.verb.format(v=value)
    return text.replace(f" a {value}", f" an {value}") if value[0] in "aeiou" else text


def _sentence(
    rec: Record, attribute: Attribute, value: str, rng: Random, named: bool, adjacent: float
) -> str:
    """One fact. `named`: with the record's name; else it is referred back to."""
    pick = rng.random()
    if named:
        if pick >= adjacent:
            return f"{_capital(rec.name)} {_predicate(attribute, value)}."
        return f"The {attribute.label} of {rec.name} is {value}."
    if pick < 0.4:
        return f"{rec.kind.pronoun} {_predicate(attribute, value)}."
    if pick < 0.7:
        return f"The {rec.kind.noun} {_predicate(attribute, value)}."
    return f"{_POSSESSIVE[rec.kind.pronoun]} {attribute.label} is {value}."


def passage(rec: Record, rng: Random, backward: float = 0.1, adjacent: float = 0.3) -> str:
    """A record as prose.

    Args:
        rec: the record; each of its facts becomes a sentence.
        rng: source of all choices.
        backward: share of the later sentences that refer back to the record instead of naming it.
        adjacent: share of sentences of the form "the … of X is V", where name and value stand side by side.
    """
    facts = list(rec.facts.items())
    rng.shuffle(facts)
    sentences = [
        _sentence(rec, ATTRIBUTES[key], value, rng, i == 0 or rng.random() >= backward, adjacent)
        for i, (key, value) in enumerate(facts)
    ]
    if rng.random() < 0.15:
        sentences.insert(0, f"{_capital(rec.name)} is a {rec.kind.noun}.")
    return " ".join(sentences)


def question(rec: Record, key: str, rng: Random) -> str:
    """A question whose answer is the fact `key` of the record."""
    attribute = ATTRIBUTES[key]
    form = attribute.question if rng.random() < 0.6 else rng.choice(_LABEL_QUESTIONS)
    return form.format(n=rec.name, label=attribute.label)


def long_answer(rec: Record, key: str, rng: Random) -> str:
    """The answer as a chat model gives it unasked: whole sentences."""
    attribute, value = ATTRIBUTES[key], rec.facts[key]
    if rng.random() < 0.7:
        clause = f"{rec.name} {_predicate(attribute, value)}"
    else:
        clause = f"the {attribute.label} of {rec.name} is {value}"
    return _capital(rng.choice(_LONG_OPENINGS) + clause + rng.choice(_LONG_ENDINGS))


def missing_answer(rec: Record, key: str, rng: Random) -> str:
    """What a chat model says when the passages don't hold the answer."""
    return rng.choice(_MISSING).format(label=ATTRIBUTES[key].label, n=rec.name)
