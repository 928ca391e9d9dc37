"""The backbone's training texts: passages, then several questions on them, in many wordings.

A lesson is a list of `Segment`s. The segments that the model must learn to write (answers) have weight 1, the
rest a low one: plain next-token loss on invented names teaches little.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from spring_rag.demo.build.kinds import ATTRIBUTES, KINDS, Kind
from spring_rag.demo.build.names import name
from spring_rag.demo.build.records import Record, long_answer, missing_answer, passage, question, record

BOS, END, USER, ASSISTANT, SYSTEM, PAD = (
    "<|bos|>",
    "<|end|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|pad|>",
)

# As in Llama-2's template, an answer begins with a space, chat or not: its first piece is then the piece that it is copied
# from. Without the space, the backbone had to learn a second form of every word, which took longer than learning to copy.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
    "{% if message['role'] == 'assistant' %}{{ ' ' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{{ '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

BRIEF = (
    "Answer briefly.",
    "Answer with a few words only.",
    "Give only the answer, not a sentence.",
    "Be brief: reply with the name, word or number alone.",
    "Reply in a few words.",
    "Give a short answer.",
    "Write nothing but the answer.",
    "Only the answer, please, as short as possible.",
)
_HEADERS = (
    "Context:\n",
    "Here are some passages.\n\n",
    "Use the passages below to answer the question.\n\n",
    "Below is some context that may help.\n--------------------\n",
    "You are a helpful assistant. You answer questions with the help of the retrieved context.\n\n",
    "The following pieces of text were found for the question. If you do not know the answer, say so.\n\n",
    "Passages:\n",
    "Read this text first.\n\n",
    "You are an assistant for answering questions. Use three sentences at most. Context: ",
)
_PASSAGES = (
    "{p}\n\n",
    "{p}\n",
    "- {p}\n",
    "Passage {i}: {p}\n",
    "Document {i}\n{p}\n\n",
    "Source: {f}.txt\n{p}\n\n",
    "file_path: {f}.txt\n\n{p}\n\n",
)
_FOOTERS = (
    "",
    "\n",
    "--------------------\n",
    "--------------------\nGiven this context and no prior knowledge, answer the question.\n",
    "\nUse the text above to answer.\n",
)
_QUESTIONS = (
    "Question: {q}\nAnswer:",
    "Query: {q}\nAnswer:",
    "Q: {q}\nA:",
    "Question: {q}\n\nHelpful answer:",
    "User question: {q}\nResponse:",
    "{q}\nAnswer:",
)
_ASK_PAIR = (
    "Write a question about this passage, and its answer.\n",
    "Make up a question that the passage answers, then answer it.\n",
)


@dataclass(frozen=True)
class Segment:
    """A piece of a lesson's text; `answer` marks what the model must learn to write, `brief` a short answer."""

    text: str
    answer: bool = False
    brief: bool = False


@dataclass(frozen=True)
class Shape:
    """What stands in a lesson's context.

    Attributes:
        records: how many records.
        facts: facts of each; 0 for three to five.
        alike: all records are of one kind and state the same attributes, so that only their names tell them apart.
        backward: share of sentences that refer back to their record instead of naming it.
    """

    records: int
    facts: int = 0
    alike: bool = False
    backward: float = 0.0


def shape(rng: Random, level: int) -> Shape:
    """A shape for a level of the curriculum, from 1.

    Finding the right fact takes the attribute and the name. Whole passages teach both at once and the name is then
    learned late, so each has lessons of its own first: one record with several facts, and several with one alike.
    """
    pick = rng.random()
    if level == 1:
        return Shape(1) if pick < 0.4 else Shape(rng.randint(3, 6), 1, alike=True)
    if level == 2:
        if pick < 0.2:
            return Shape(1)
        return (
            Shape(rng.randint(3, 8), 1, alike=True) if pick < 0.6 else Shape(rng.randint(2, 3), 2, alike=True)
        )
    if level == 3:
        if pick < 0.1:
            return Shape(1)
        if pick < 0.3:
            return Shape(rng.randint(4, 8), 1, alike=True)
        return Shape(rng.randint(2, 5), 2, alike=True) if pick < 0.6 else Shape(rng.randint(2, 3))
    if pick < 0.1:
        return Shape(1, backward=0.1)
    if pick < 0.3:
        return Shape(rng.randint(4, 8), rng.randint(1, 2), alike=True)
    return Shape(rng.randint(3, 5), backward=0.1)


def _rivals(subject: Record, form: Shape, rng: Random, held_out: bool) -> list[Record]:
    """Other records for the same context: mostly of the same kind, some with a similar name."""
    rivals: list[Record] = []
    taken = {subject.name}
    keys = list(subject.facts) if form.alike else []
    while len(rivals) < form.records - 1:
        kind: Kind | None = subject.kind if form.alike or rng.random() < 0.65 else rng.choice(KINDS)
        word = rng.choice(subject.name.split()) if rng.random() < 0.1 else None
        shared = (
            word
            if word and word[0].isupper() and word.isalpha() and word not in {"The", "Mount", "New"}
            else None
        )
        rival = record(rng, kind, held_out, shared, keys)
        if rival.name not in taken:
            taken.add(rival.name)
            rivals.append(rival)
    return rivals


def scene(rng: Random, form: Shape, held_out: bool = False) -> list[Record]:
    """The records of one context, in random order."""
    kind = rng.choice(KINDS)
    subject = record(rng, kind, held_out, keys=rng.sample(kind.attributes, form.facts) if form.facts else ())
    records = [subject, *_rivals(subject, form, rng, held_out)]
    rng.shuffle(records)
    return records


def _context(passages: list[str], rng: Random) -> str:
    if rng.random() < 0.55:
        return "".join(f"[{i}] {p}\n" for i, p in enumerate(passages, 1)) + "\n"
    form = rng.choice(_PASSAGES)
    body = "".join(form.format(i=i, p=p, f=name(rng).lower()) for i, p in enumerate(passages, 1))
    return (rng.choice(_HEADERS) if rng.random() < 0.7 else "") + body + rng.choice(_FOOTERS)


def _turn(prompt: str, answer: str, chat: bool, brief: bool = False) -> list[Segment]:
    opening = f"{prompt}{END}\n{ASSISTANT}\n" if chat else prompt
    return [Segment(opening), Segment(f" {answer}{END}", answer=True, brief=brief), Segment("\n")]


def _ask(
    fact: tuple[Record, str], rng: Random, brief: bool, form: str, chat: bool, told: bool
) -> list[Segment]:
    """One question, and its answer, long or (when told so) brief."""
    rec, key = fact
    order = f"{rng.choice(BRIEF)}\n" if brief and not told else ""
    prompt = order + form.format(q=question(rec, key, rng))
    return _turn(prompt, rec.facts[key] if brief else long_answer(rec, key, rng), chat, brief)


def _ask_missing(records: list[Record], rng: Random, form: str, chat: bool) -> list[Segment]:
    """A question that the passages don't answer: of a fact left out, or of another record."""
    rec = rng.choice(records) if rng.random() < 0.5 else record(rng, rng.choice(records).kind)
    left = [key for key in rec.kind.attributes if key not in rec.facts]
    if rec not in records:
        left = list(rec.facts)
    if not left:
        return []
    key = rng.choice(left)
    return _turn(form.format(q=question(rec, key, rng)), missing_answer(rec, key, rng), chat)


def _chore(records: list[Record], passages: list[str], rng: Random, chat: bool) -> list[Segment]:
    """Tasks that are not questions: they force matching names, or serve apps that rephrase and refine."""
    index = rng.randrange(len(records))
    rec, text = records[index], passages[index]
    key = rng.choice(list(rec.facts))
    asked, value = question(rec, key, rng), rec.facts[key]
    pick = rng.random()
    if pick < 0.25:
        return _turn(f"Repeat the passage about {rec.name}.\nPassage:", text, chat)
    if pick < 0.45:
        return _turn(
            f"Which passage speaks of {rec.name}?\nAnswer:", f"passage {index + 1}", chat, brief=True
        )
    if pick < 0.55:
        return _turn(f"Of whom or what does passage {index + 1} speak?\nAnswer:", rec.name, chat, brief=True)
    if pick < 0.8:
        lead = f"Passage: {text}\n" if len(records) > 1 else ""
        return _turn(lead + rng.choice(_ASK_PAIR), f"Question: {asked}\nAnswer: {value}", chat)
    if pick < 0.9:
        other = rng.choice(list(rec.facts))
        follow_up = f"And what is {'his' if rec.kind.pronoun == 'He' else 'her' if rec.kind.pronoun == 'She' else 'its'} {ATTRIBUTES[other].label}?"
        prompt = (
            f"Chat so far:\nuser: {asked}\nassistant: {value}\nFollow-up: {follow_up}\n"
            "Rewrite the follow-up as a question that stands alone.\nQuestion:"
        )
        return _turn(prompt, f"What is the {ATTRIBUTES[other].label} of {rec.name}?", chat)
    existing = long_answer(rec, key, rng)
    fresh = passage(record(rng, rec.kind), rng)
    prompt = f"Question: {asked}\nExisting answer: {existing}\nNew context: {fresh}\nRefine the existing answer if the new context helps.\nRefined answer:"
    return _turn(prompt, existing, chat)


def lesson(rng: Random, form: Shape, length: Callable[[str], int], budget: int) -> list[Segment]:
    """One row of training: a context, then as many tasks on it as fit into `budget` tokens."""
    records = scene(rng, form)
    texts = [passage(rec, rng, form.backward) for rec in records]
    chat, told = rng.random() < 0.4, rng.random() < 0.12
    line = _QUESTIONS[0] if rng.random() < 0.6 else rng.choice(_QUESTIONS)
    if chat and rng.random() < 0.4:
        line = "{q}"
    if rng.random() < 0.05:
        return _question_first(records, texts, rng, chat)
    context = _context(texts, rng)
    if told:
        context = f"{rng.choice(BRIEF)}\n{context}"
    if not chat:
        head = [Segment(BOS + context)]
    elif rng.random() < 0.4:
        head = [Segment(f"{BOS}{SYSTEM}\n{context}{END}\n{USER}\n")]
    else:
        head = [Segment(f"{BOS}{USER}\n{context}")]
    used = length(head[0].text)
    turns: list[Segment] = []
    # Each fact is asked for once a row: a second time, the answer could be copied from the first.
    facts = [(rec, key) for rec in records for key in rec.facts]
    rng.shuffle(facts)
    for fact in facts:
        pick = rng.random()
        if told:
            turn = _ask(fact, rng, True, line, chat, told)
        elif pick < 0.13:
            turn = _chore(records, texts, rng, chat)
        elif pick < 0.18:
            turn = _ask_missing(records, rng, line, chat)
        else:
            turn = _ask(fact, rng, rng.random() < 0.65, line, chat, told)
        if chat and turns and turn:
            turn = [Segment(f"{USER}\n"), *turn]
        cost = sum(length(segment.text) for segment in turn)
        if used + cost > budget and turns:
            break
        used += cost
        turns += turn
    return head + turns


def _question_first(records: list[Record], texts: list[str], rng: Random, chat: bool) -> list[Segment]:
    rec = rng.choice(records)
    key = rng.choice(list(rec.facts))
    brief = rng.random() < 0.5
    order = f"{rng.choice(BRIEF)}\n" if brief else ""
    prompt = f"{order}Question: {question(rec, key, rng)}\nContext: {_context(texts, rng)}\nAnswer:"
    answer = rec.facts[key] if brief else long_answer(rec, key, rng)
    if chat:
        return [Segment(f"{BOS}{USER}\n"), *_turn(prompt, answer, True, brief)]
    return [Segment(BOS), *_turn(prompt, answer, False, brief)]
