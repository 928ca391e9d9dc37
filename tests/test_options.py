"""Test options that several commands share, and dataclasses whose fields are options."""

from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from spring_rag.cli.options import Numbers, grouped, parse_numbers
from spring_rag.cli.train import train
from spring_rag.recipe import TrainingRecipe


@dataclass(frozen=True)
class Soup:
    """Fields that tell how to be options, and one that doesn't."""

    cook: Annotated[str, typer.Option("--cook", help="Who stirs.")]
    salt: int = field(default=1, metadata={"help": "Pinches.", "min": 0, "names": ("-s", "--salt")})
    kind: Literal["hot", "cold"] = field(default="hot", metadata={"help": "How it is served."})
    secret: dict[str, int] = field(default_factory=dict)


def invoke(command: Any, *arguments: str) -> Any:
    app = typer.Typer(rich_markup_mode=None)
    app.command()(command)
    return CliRunner().invoke(app, list(arguments))


def test_numbers_are_whole() -> None:
    assert parse_numbers("50, 0,1,50") == [0, 1, 50]
    for wrong in ("", "1,", "-1", "1.5", "all"):
        with pytest.raises(ValueError, match="whole numbers"):
            parse_numbers(wrong)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--heat", "nan"], "Invalid value for '--heat'"),
        (["--heat", "inf"], "Invalid value for '--heat'"),
        (["--weight", "nan"], "nan is no number"),
        (["--weight", "-inf"], "-inf is no number"),
        (["--name", "a\udcff"], "isn't text in UTF-8"),
        (["--name", "\ud800"], "isn't text in UTF-8"),
        (["--more", "fine", "--more", "a\udcff"], "isn't text in UTF-8"),
    ],
)
def test_what_is_no_number_or_no_text_is_refused(arguments: list[str], said: str) -> None:
    @grouped
    def command(
        *,
        heat: Annotated[float, typer.Option(min=0)] = 1.0,
        weight: Annotated[float, typer.Option()] = 1.0,
        name: Annotated[str, typer.Option()] = "",
        more: Annotated[list[str] | None, typer.Option()] = None,
    ) -> None:
        pytest.fail(f"{heat} {weight} {name} {more} was taken")

    done = invoke(command, *arguments)
    assert done.exit_code == 2, done.stderr
    assert said in done.stderr


def test_text_in_a_locale_that_is_not_utf8_is_decoded() -> None:
    seen: list[str] = []

    @grouped
    def command(*, name: Annotated[str, typer.Option()]) -> None:
        seen.append(name)

    as_ascii = "café".encode().decode("ascii", "surrogateescape")
    assert invoke(command, "--name", as_ascii).exit_code == 0
    assert seen == ["café"]


def test_numbers_as_an_option() -> None:
    seen, default = [], Numbers([1])

    def command(k: Annotated[Numbers, typer.Option("--k", parser=parse_numbers)] = default) -> None:
        seen.append(k)

    for arguments, expected in (([], [1]), (["--k", "3,0"], [0, 3])):
        assert invoke(command, *arguments).exit_code == 0
        assert seen.pop() == expected
    wrong = invoke(command, "--k", "3,x")
    assert wrong.exit_code == 2
    assert "Invalid value for '--k'" in wrong.stderr
    assert "isn't a list of whole numbers" in wrong.stderr


def test_a_dataclass_is_taken_whole() -> None:
    seen = []

    @grouped
    def command(
        bowl: Annotated[str, typer.Argument()],
        *,
        soup: Soup,
        quick: Annotated[bool, typer.Option("--quick")] = False,
    ) -> None:
        seen.append((bowl, soup, quick))

    done = invoke(command, "blue", "--cook", "Ann", "-s", "3", "--kind", "cold", "--quick")
    assert done.exit_code == 0, done.stderr
    assert seen == [("blue", Soup("Ann", 3, "cold"), True)]
    for wrong in ([], ["--cook", "Ann", "--salt", "-1"], ["--cook", "Ann", "--kind", "warm"]):
        assert invoke(command, "blue", *wrong).exit_code == 2
    shown = invoke(command, "--help").stdout
    assert "Pinches." in shown
    assert "secret" not in shown


def test_every_choice_of_the_recipe_is_an_option_of_train() -> None:
    shown = " ".join(invoke(train, "--help").stdout.split())
    for each in fields(TrainingRecipe):
        if each.name != "template":
            assert f"--{each.name.replace('_', '-')} " in shown
            assert " ".join(each.metadata["help"].split()) in shown


def test_options_become_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command hands on what its options said, and the recipe's own defaults."""
    seen = []
    given = {
        "num_tokens": 7,
        "learning_rate": 0.5,
        "scheduler": "cosine",
        "k_schedule": "uniform",
        "max_steps": 3,
    }

    @grouped
    def command(*, recipe: TrainingRecipe) -> None:
        seen.append(recipe)

    options = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert invoke(command, *options).exit_code == 0
    assert seen == [replace(TrainingRecipe(), **given)]
