"""What virtual tokens are compared with: the best that words in the prompt can do, chosen on questions of its own."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any

from spring_rag.callbacks import OnProgress
from spring_rag.data.examples import RagExample
from spring_rag.encoding import encode
from spring_rag.errors import DataError, PromptError
from spring_rag.evaluation.ways import ScoredAnswer, Way, answer_in_ways, layouts
from spring_rag.files import read_text
from spring_rag.prompt import BRIEF, RagTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from spring_rag.model import SpringModel

_FIRST_LINE = ("\n",)
"""Ends an answer where the next worked example would begin."""

_EXAMPLES = (
    (
        "who designed the old harbour bridge",
        "Clara Whitfield",
        "The Old Harbour Bridge is a steel arch bridge in Port Ellery. It was designed by the engineer Clara Whitfield and opened to"
        " traffic on 4 May 1931, after three years of work.",
    ),
    (
        "when did the museum of clocks move to its present building",
        "1987",
        "The Museum of Clocks was founded in 1952 in two rooms of the town hall. It moved to its present building, a former grain store"
        " on Mill Street, in 1987.",
    ),
    (
        "what do marsh foxes mainly eat",
        "small fish and frogs",
        "The marsh fox lives in wetlands of the north. It hunts at night, mainly for small fish and frogs, and rears two to four cubs a"
        " year.",
    ),
)
"""Question, short answer, and a passage that holds it: invented, so that no set of questions holds them."""

_MOST_OF_CONTEXT = 0.25
"""Share of the context that words may take. What takes more would cost passages, in every way that it is compared with."""

_MOST_DEV, _LEAST_DEV, _DEV_SHARE = 50, 20, 0.1


@dataclass(frozen=True, slots=True)
class WordsWay:
    """One way to tell the plain backbone in words how to answer.

    Args:
        name: how it is called in reports.
        template: the prompts' layout, with the words in it.
        stop: strings that end an answer.
    """

    name: str
    template: RagTemplate
    stop: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """What the backbone is told beside passages and question."""
        system = f"{self.template.system}\n" if self.template.system else ""
        return system + self.template.opening + self.template.instruction


@dataclass(frozen=True, slots=True)
class WordsTrial:
    """How a way did on the questions that the best one is chosen on."""

    way: WordsWay
    answers: tuple[ScoredAnswer, ...]

    def mean(self, score: str) -> float:
        """Return the mean over the questions of a score of `ScoredAnswer`, by its name."""
        return sum(float(getattr(answer, score)) for answer in self.answers) / len(self.answers)

    def to_dict(self) -> dict[str, Any]:
        """Return the row that `--json` prints."""
        return {
            "way": self.way.name,
            "exact_match": round(self.mean("exact_match"), 4),
            "f1": round(self.mean("f1"), 4),
            "n_dev": len(self.answers),
        }


def word_ways(
    template: RagTemplate, tokenizer: "PreTrainedTokenizerBase", instruction: str = BRIEF
) -> list[WordsWay]:
    """Return the ways in words that are worth a try on any backbone, and those in a chat if the tokenizer has a chat template.

    Args:
        template: the layout of passages and question, as the virtual tokens use it.
        tokenizer: the backbone's.
        instruction: the sentence that asks for a brief answer.
    """
    text = replace(template, chat=False, system=None)
    told = template.instruction + instruction
    worked = _worked(template, with_passages=False)
    shown = told + worked
    shown_reading = _worked(template, with_passages=True) + told
    ways = [
        WordsWay("text, told", replace(text, instruction=told)),
        WordsWay("text, told, first line", replace(text, instruction=told), _FIRST_LINE),
        WordsWay("text, worked examples", replace(text, instruction=shown), _FIRST_LINE),
        WordsWay(
            "text, worked examples only",
            replace(text, instruction=template.instruction + worked),
            _FIRST_LINE,
        ),
        WordsWay(
            "text, worked examples with passages",
            replace(text, opening=template.opening + shown_reading),
            _FIRST_LINE,
        ),
    ]
    if tokenizer.chat_template:
        chat = replace(template, chat=True)
        ways += [
            WordsWay("chat, told", replace(chat, instruction=told)),
            WordsWay("chat, worked examples", replace(chat, instruction=shown)),
        ]
    return ways


def _worked(template: RagTemplate, *, with_passages: bool) -> str:
    """Lay out the worked examples by the template, each followed by its answer."""
    lines = []
    for question, answer, passage in _EXAMPLES:
        context = template.passage.format(number=1, passage=passage) + template.context_end
        asked = template.question.format(question=question)
        lines.append(f"{context if with_passages else ''}{asked} {answer}\n\n")
    return "".join(lines)


def best_words(
    model: "SpringModel",
    dev_examples: Sequence[RagExample],
    candidates: Sequence[WordsWay],
    *,
    max_new_tokens: int = 48,
    batch_size: int = 64,
    progress: OnProgress | None = None,
) -> list[WordsTrial]:
    """Answer questions in each way, the plain backbone without virtual tokens, all on the same passages.

    Args:
        model: the backbone.
        dev_examples: questions that nothing else is reported on.
        candidates: ways to try; those whose words leave too little of the context are passed over.
        max_new_tokens: most ids of an answer.
        batch_size: prompts answered at once.
        progress: called with the number of answers so far, and of all.

    Returns:
        A trial per way, best first: by F1, then by exact match, then in the order given.

    Raises:
        DataError: no questions, or no way whose words leave room for passages.
    """
    if not dev_examples:
        msg = "there are no questions to choose the best words on; give at least one"
        raise DataError(msg)
    tried = [way for way in candidates if _leaves_room(model, way)]
    if not tried:
        msg = f"the words to compare with take more than {_MOST_OF_CONTEXT:.0%} of the backbone's context; shorten them"
        raise DataError(msg)
    ways = [Way(way.template, stop=way.stop) for way in tried]
    answers = answer_in_ways(
        model,
        dev_examples,
        [layouts(model, example, ways, max_new_tokens) for example in dev_examples],
        ways,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=progress,
    )
    trials = [WordsTrial(way, its) for way, its in zip(tried, answers, strict=True)]
    return sorted(trials, key=lambda trial: (-trial.mean("f1"), -trial.mean("exact_match")))


def _leaves_room(model: "SpringModel", way: WordsWay) -> bool:
    length = model.backend.context_length
    if length is None:
        return True
    without_passages = way.template.render("", ())
    return len(encode(without_passages, model.tokenizer).ids) <= _MOST_OF_CONTEXT * length


def thinned(examples: Sequence[RagExample]) -> list[RagExample]:
    """Draw evenly as many questions as choosing the words takes at most."""
    return list(examples[:: -(-len(examples) // _MOST_DEV)])


def set_aside(sets: Sequence[Sequence[RagExample]]) -> tuple[list[list[RagExample]], list[RagExample]]:
    """Set questions aside to choose the words on: a tenth of all, but 20 to 50, at most half, and never the last one of a set.

    Which ones depends on their text alone, so a question that occurs twice falls to one side.

    Returns:
        What is left of each set, and the questions set aside.
    """
    questions = {example.question: example for examples in sets for example in examples}
    count = min(_MOST_DEV, max(_LEAST_DEV, round(_DEV_SHARE * len(questions))), len(questions) // 2)
    left = [list(examples) for examples in sets]
    aside: list[RagExample] = []
    for question in sorted(questions, key=lambda text: hashlib.sha256(text.encode()).digest()):
        kept = [[example for example in examples if example.question != question] for examples in left]
        if len(aside) < count and all(kept):
            left = kept
            aside.append(questions[question])
    return left, aside


def read_prompt(path: Path) -> RagTemplate:
    """Read a prompt of the user's own.

    Args:
        path: a text in UTF-8 with `{context}` and, after it, `{question}`, each once; a literal brace is doubled.

    Raises:
        PromptError: it can't be read, or isn't such a text.
    """
    try:
        text = read_text(path).removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it isn't UTF-8 text"
        msg = f"the prompt {path} can't be read: {reason}"
        raise PromptError(msg) from error
    opening, instruction, after = _around_placeholders(text, path)
    question = "{question}" + after.replace("{", "{{").replace("}", "}}")
    return RagTemplate(question=question, context_end="", instruction=instruction, opening=opening)


def prompt_ways(
    name: str, prompt: RagTemplate, template: RagTemplate, tokenizer: "PreTrainedTokenizerBase"
) -> list[WordsWay]:
    """Return a prompt of the user's own as text, and as a chat if the tokenizer has a chat template.

    Args:
        name: of the prompt.
        prompt: what `read_prompt` gives.
        template: whose layout the passages take.
        tokenizer: the backbone's.
    """
    layout = replace(prompt, passage=template.passage)
    ways = [WordsWay(f"text, {name}", layout)]
    if tokenizer.chat_template:
        ways.append(WordsWay(f"chat, {name}", replace(layout, chat=True)))
    return ways


def _around_placeholders(text: str, path: Path) -> tuple[str, str, str]:
    """Return what stands before `{context}`, between both, and after `{question}`."""
    try:
        pieces = list(Formatter().parse(text))
    except ValueError:
        pieces = []
    names = [name for _, name, spec, conversion in pieces if name is not None and not spec and not conversion]
    placeholders = sum(name is not None for _, name, _, _ in pieces)
    if names != ["context", "question"] or placeholders != len(names):
        msg = (
            f"the prompt {path} must hold {{context}} and, after it, {{question}}, each once and nothing else in braces; "
            "write a literal brace twice"
        )
        raise PromptError(msg)
    literals = ["", "", ""]
    passed = 0
    for literal, name, _, _ in pieces:
        literals[passed] += literal
        passed += name is not None
    return literals[0], literals[1], literals[2]
