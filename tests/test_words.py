"""Test the wordings that virtual tokens are compared with, and the choice of the best."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

from spring_rag.backends.local import LocalBackend
from spring_rag.cli.eval import evaluate
from spring_rag.data.examples import RagExample
from spring_rag.errors import DataError, PromptError
from spring_rag.evaluation import WordsWay, best_words, word_ways
from spring_rag.evaluation.words import prompt_ways, read_prompt, set_aside, thinned
from spring_rag.model import SpringModel
from spring_rag.prompt import RagTemplate

app = typer.Typer()
app.command()(evaluate)

CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
EXAMPLES = [RagExample(f"Who is {i}?", ("Ann",), ("Ann did it.",)) for i in range(4)]


@pytest.fixture(scope="module")
def model(build_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast) -> SpringModel:
    return SpringModel.from_backend(LocalBackend(build_model("llama"), tokenizer))


def test_all_ways_ask_the_same_question_of_the_same_passage(tokenizer: PreTrainedTokenizerFast) -> None:
    template = RagTemplate(passage="({number}) {passage}\n", question="Q: {question} {{now}}\nA:")
    ways = word_ways(template, tokenizer, "Be brief.\n")
    assert len({way.name for way in ways}) == len(ways)
    for way in ways:
        text = way.template.render("Who?", ["Ann did."]).text
        assert "(1) Ann did.\n" in text
        assert text.endswith("Q: Who? {now}\nA:")
        assert ("Be brief." in text) != way.name.endswith("only")
    shown = next(way for way in ways if way.name == "text, worked examples")
    assert shown.words.count("{now}\nA: ") == 3
    assert shown.stop == ("\n",)


def test_chats_are_tried_where_the_tokenizer_has_a_template(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", None)
    assert not any(way.template.chat for way in word_ways(RagTemplate(), tokenizer))
    monkeypatch.setattr(tokenizer, "chat_template", CHAT_TEMPLATE)
    kinds = [way.template.chat for way in word_ways(RagTemplate(chat=True, system="Read."), tokenizer)]
    assert set(kinds) == {False, True}


def test_the_best_answers_best(model: SpringModel) -> None:
    """A word that the random backbone says after one of the prompts is made the accepted answer."""
    ways = [WordsWay(f"way {i}", RagTemplate(instruction=f"{i} words\n")) for i in range(4)]
    said = {way: model.answer("Who?", [], template=way.template, max_new_tokens=6) for way in ways}
    right = next(way for way in reversed(ways) if list(said.values()).count(said[way]) == 1)
    steps: list[tuple[int, int]] = []
    trials = best_words(
        model,
        [RagExample("Who?", (said[right],))],
        ways,
        max_new_tokens=6,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert trials[0].way == right
    assert trials[0].to_dict() == {"way": right.name, "exact_match": 1.0, "f1": 1.0, "n_dev": 1}
    assert len(trials) == 4
    assert steps[-1] == (4, 4)
    with pytest.raises(DataError, match="no questions"):
        best_words(model, [], ways)


def test_words_that_leave_no_room_for_passages_are_passed_over(model: SpringModel) -> None:
    """The context holds 256 tokens, about as many characters."""
    long, short = (
        WordsWay(name, RagTemplate(instruction=text))
        for name, text in (("long", "many words " * 20), ("short", "few\n"))
    )
    trials = best_words(model, EXAMPLES, [long, short], max_new_tokens=2)
    assert [trial.way.name for trial in trials] == ["short"]
    with pytest.raises(DataError, match="shorten them"):
        best_words(model, EXAMPLES, [long])


def test_a_first_line_ends_an_answer(model: SpringModel) -> None:
    whole = model.answer("Who?", [], max_new_tokens=12)
    middle = whole[len(whole) // 2]
    (trial,) = best_words(
        model, [RagExample("Who?", ("Ann",))], [WordsWay("cut", RagTemplate(), (middle,))], max_new_tokens=12
    )
    assert trial.answers[0].text == whole[: whole.index(middle)].strip()


def test_questions_are_set_aside_by_their_text() -> None:
    many = [RagExample(f"Question {i}", ("x",)) for i in range(300)]
    (left,), aside = set_aside([many])
    assert len(aside) == 30
    assert not {one.question for one in aside} & {one.question for one in left}
    assert len(left) == 270
    (again,), _ = set_aside([many[::-1]])
    assert sorted(map(repr, again)) == sorted(map(repr, left))
    assert [len(set_aside([many[:n]])[1]) for n in (1, 3, 30, 100)] == [0, 1, 15, 20]
    assert len(set_aside([many + [RagExample(f"More {i}", ("x",)) for i in range(900)]])[1]) == 50
    (one, _), _ = set_aside([many[:1], many[1:]])
    assert one == many[:1]
    assert len(thinned(many)) == 50


def test_a_prompt_of_ones_own(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("Read {{this}}:\n{context}\nNow {question}, in {{a}} word:\n")
    template = RagTemplate(passage="* {passage}\n")
    way = prompt_ways("mine", read_prompt(file), template, tokenizer)[0]
    text = way.template.render("who?", ["Ann did.", "Bo didn't."]).text
    assert text == "Read {this}:\n* Ann did.\n* Bo didn't.\n\nNow who?, in {a} word:"
    assert way.words == "Read {this}:\n\nNow "


@pytest.mark.parametrize(
    "text",
    ["{context} only", "{question} {context}", "{context} {question} {question}", "{context} {question} {x}",
     "{context!r} {question}", "{context} {question", "{context.x} {question}"],
)  # fmt: skip
def test_a_prompt_without_its_placeholders_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text(text)
    with pytest.raises(PromptError, match="each once and nothing else in braces"):
        read_prompt(tmp_path / "mine.txt")
    with pytest.raises(PromptError, match="can't be read"):
        read_prompt(tmp_path / "missing.txt")


def test_eval_takes_a_prompt_and_questions_to_choose_on(
    model: SpringModel, build_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    build_model("llama").save_pretrained(tmp_path / "backbone")
    model.tokenizer.save_pretrained(tmp_path / "backbone")
    for name, numbers in (("test", range(3)), ("dev", range(2, 5))):
        rows = [{"question": f"Who is {i}?", "target": "Ann", "ret_passages": ["Ann did."]} for i in numbers]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "mine.txt").write_text("{context}\n{question}")
    arguments = ["--model", "backbone", "--data", "test.jsonl", "--dev", "dev.jsonl", "--prompt", "mine.txt"]
    placed = [str(tmp_path / one) if (tmp_path / one).exists() else one for one in arguments]
    result = CliRunner().invoke(app, [*placed, "--max-new-tokens", "3", "--json"], catch_exceptions=False)
    found = json.loads(result.stdout)
    assert "text, mine.txt" in [row["way"] for row in found["words"]]
    assert {row["n_dev"] for row in found["words"]} == {3}
    assert found["instructed"]["n"] == found["results"][0]["n"] == 2

    alone = CliRunner().invoke(app, [*placed, "--instruction", "", "--max-new-tokens", "3", "--json"])
    only = json.loads(alone.stdout)
    assert only["instructed"]["way"] == "text, mine.txt"
    assert only["instructed"]["n"] == 3
    assert "words" not in only

    same = [str(tmp_path / "dev.jsonl") if one.endswith("test.jsonl") else one for one in placed]
    refused = CliRunner().invoke(app, same)
    assert "too few questions to choose the best words on" in str(refused.exception)
