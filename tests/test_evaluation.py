"""Test scores, the sweep over k on a real tiny model, and the report."""

import io
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from spring_rag.data.examples import RagExample
from spring_rag.errors import DataError
from spring_rag.evaluation import (
    Run,
    ScoredAnswer,
    Sweep,
    WordsWay,
    contains,
    exact_match,
    f1,
    score_table,
    side_by_side,
    sweep,
    telling_examples,
)
from spring_rag.evaluation.datasets import Dataset
from spring_rag.evaluation.study import study
from spring_rag.model import SpringModel
from spring_rag.prompt import Prompt, RagPrompt, RagTemplate
from spring_rag.tokens import VirtualTokens


@pytest.mark.parametrize(
    ("answer", "accepted", "scores"),
    [
        ("the Paris.", ["Paris"], (1, 1, 1)),
        ("Paris", ["London", "paris"], (1, 1, 1)),
        ("It is in Paris", ["Paris"], (0, 0.4, 1)),
        ("Paris France", ["Paris", "France Paris"], (0, 1, 1)),
        ("party", ["art"], (0, 0, 0)),
        ("", ["Paris"], (0, 0, 0)),
        ("!", ["the"], (1, 1, 0)),
        ("Paris", ["the"], (0, 0, 0)),
        ("new new york", ["new york york"], (0, 2 / 3, 0)),
    ],
)
def test_scores(answer: str, accepted: list[str], scores: tuple[float, float, float]) -> None:
    assert (exact_match(answer, accepted), f1(answer, accepted), contains(answer, accepted)) == pytest.approx(
        scores
    )


@settings(deadline=None)
@given(st.text(), st.lists(st.text(), min_size=1))
def test_scores_agree_with_each_other(answer: str, accepted: list[str]) -> None:
    assert 0 <= exact_match(answer, accepted) <= f1(answer, accepted) <= 1
    assert exact_match(accepted[-1], accepted) == 1


EXAMPLES = [
    RagExample(f"Who is {i}?", ("Ann",), tuple(f"passage {j}" for j in range(i % 4))) for i in range(7)
]


@pytest.fixture(scope="module")
def model(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, make_tokens: Callable[..., VirtualTokens]
) -> SpringModel:
    return SpringModel(llama, tokenizer, tokens=make_tokens(6))


def test_sweep_answers_as_the_model_does(model: SpringModel) -> None:
    template = RagTemplate(question="Q: {question}\nA:")
    told = RagTemplate(question="Q: {question}\nA:", instruction="Brief.\n")
    steps: list[tuple[int, int]] = []
    result = sweep(
        model,
        EXAMPLES,
        [0, 6],
        template=template,
        words=WordsWay("told", told),
        max_new_tokens=5,
        batch_size=3,
        timed=4,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps == [(done, 21) for done in (3, 6, 9, 12, 15, 18, 21)]
    assert [run.k for run in result.runs] == [0, 6]
    assert result.instructed is not None
    for run, layout in zip((*result.runs, result.instructed), (template, template, told), strict=True):
        assert run.answers_per_second is not None
        assert run.answers_per_second > 0
        for example, answer in zip(EXAMPLES, run.answers, strict=True):
            prompt = RagPrompt(question=example.question, passages=example.passages, template=layout)
            expected = model.generate([prompt], num_tokens=run.k, max_new_tokens=5)[0]
            assert answer.text == expected.text.strip()
            assert answer.num_tokens == expected.usage.generated
    assert result.runs[0].answers != result.runs[1].answers


def stopping_after(answers: int) -> Callable[[int, int], None]:
    """A report of progress at which somebody presses Ctrl-C."""

    def tell(done: int, _: int) -> None:
        if done >= answers:
            raise KeyboardInterrupt

    return tell


def test_what_was_answered_before_an_interruption_is_scored(model: SpringModel) -> None:
    arguments = {"max_new_tokens": 3, "batch_size": 2}
    whole = sweep(model, EXAMPLES, [0, 6], **arguments)
    part = sweep(model, EXAMPLES, [0, 6], progress=stopping_after(6), **arguments)
    assert part.interrupted
    assert not whole.interrupted
    assert len(part.examples) == 3
    places = [EXAMPLES.index(example) for example in part.examples]
    for run, same in zip(part.runs, whole.runs, strict=True):
        assert run.answers == tuple(same.answers[place] for place in places)
    assert {row["n"] for row in part.to_dict()["results"]} == {3}


def test_ways_that_were_not_finished_are_left_out_beside_those_that_were(model: SpringModel) -> None:
    words = WordsWay("told", RagTemplate(instruction="Brief.\n"), stop=("\n",))
    part = sweep(
        model, EXAMPLES, [0, 6], words=words, max_new_tokens=2, progress=stopping_after(15), batch_size=1
    )
    assert part.instructed is None
    assert part.examples == tuple(EXAMPLES)
    assert [len(run.answers) for run in part.runs] == [7, 7]


class Interrupting(RagTemplate):
    """A layout at which somebody presses Ctrl-C."""

    def render(self, *_: object) -> Prompt:
        raise KeyboardInterrupt


def test_an_interruption_before_any_answer_is_one(model: SpringModel) -> None:
    with pytest.raises(KeyboardInterrupt):
        sweep(model, EXAMPLES, [0], max_new_tokens=2, progress=lambda *_: None, template=Interrupting())


@pytest.mark.parametrize(
    ("counts", "after", "passages", "questions"),
    [((), 4, (None,), 2), ((1, 2), 4, (1,), 2), ((1, 2), 16, (1,), 7), ((), 16, (None,), 7)],
)
def test_a_study_shows_what_it_has(
    model: SpringModel, counts: tuple[int, ...], after: int, passages: tuple[int | None, ...], questions: int
) -> None:
    sets = [Dataset("first", tuple(EXAMPLES)), Dataset("second", tuple(EXAMPLES[:2]))]
    found = study(model, sets, [0, 6], counts, progress=stopping_after(after), max_new_tokens=2, batch_size=2)
    assert found.interrupted
    assert found.passages == passages
    assert [dataset.name for dataset in found.datasets] == ["first"]
    assert found.to_dict()["n"] == len(found.overall.main.examples) == questions


def test_json_of_a_sweep(model: SpringModel) -> None:
    result = sweep(model, EXAMPLES, [0, 1], max_new_tokens=2)
    rows = result.to_dict()["results"]
    assert [row["k"] for row in rows] == [0, 1]
    assert set(rows[0]) == {
        "k",
        "exact_match",
        "f1",
        "contains",
        "answer_tokens",
        "cut",
        "n",
        "answers_per_second",
    }
    assert rows[0]["n"] == 7
    assert rows[0]["answers_per_second"] is None
    assert "instructed" not in result.to_dict()
    with pytest.raises(DataError, match="no questions"):
        sweep(model, [], [0])


def a_run(k: int, texts: list[str], instruction: str = "") -> Run:
    answers = tuple(
        ScoredAnswer(t, 3, exact_match(t, ["Ann"]), f1(t, ["Ann"]), contains(t, ["Ann"])) for t in texts
    )
    words = WordsWay("brief", RagTemplate(instruction=instruction)) if instruction else None
    return Run(k, answers, 1.5, words=words)


def test_means_and_report() -> None:
    questions = tuple(RagExample(f"[bold]Question {i}[/bold]", ("Ann",)) for i in range(3))
    result = Sweep(
        questions,
        (a_run(0, ["Ann", "It is Ann", "no"]), a_run(5, ["Ann", "Ann", "It\nis Ann [red]"])),
        a_run(0, ["Ann", "no", "no"], "Be brief.\n"),
        {"retrieved": 0.5},
    )
    found = result.to_dict()
    assert found["retrieved"] == 0.5
    assert found["results"][0]["exact_match"] == 0.3333
    assert found["results"][1]["exact_match"] == 0.6667
    assert found["results"][0]["answers_per_second"] == 1.5
    assert found["instructed"]["instruction"] == "Be brief.\n"
    assert found["instructed"]["way"] == "brief"
    assert telling_examples(result, 2) == [1, 2]

    console = Console(file=io.StringIO(), width=120)
    console.print(score_table(result))
    table = console.file.getvalue()
    assert table.index("k = 0 ") < table.index("in words (brief)") < table.index("k = 5")
    assert "66.7%" in table
    assert "answers/s" in table

    console = Console(file=io.StringIO(), width=120)
    console.print(side_by_side(result, 2))
    panel = console.file.getvalue()
    assert "[bold]Question 2[/bold]" in panel
    assert "✗ It is Ann [red]" in panel
    assert "expected: Ann" in panel


def test_a_title_is_no_markup() -> None:
    written = io.StringIO()
    Console(file=written, width=100).print(
        score_table(Sweep((EXAMPLES[0],), (a_run(0, ["Ann"]),)), "[/b] of [red]x")
    )
    assert "[/b] of [red]x" in written.getvalue()


def test_a_table_without_times_has_no_column_for_them() -> None:
    run = replace(a_run(0, ["Ann"]), answers_per_second=None)
    console = Console(file=io.StringIO(), width=120)
    console.print(score_table(Sweep((RagExample("Who?", ("Ann",)),), (run,))))
    assert "answers/s" not in console.file.getvalue()
    assert "tokens/answer" in console.file.getvalue()
