"""Test the commands' options for a prompt's layout."""

import pytest
import typer

from spring_rag.cli.model_options import TemplateOptions
from spring_rag.errors import PromptError
from spring_rag.prompt import RagTemplate


def test_the_chat_template_is_told_what_the_options_say() -> None:
    trained = RagTemplate(
        chat=True, thinking=None, chat_template_kwargs={"date_string": "26 Jul 2024", "a": 1}
    )
    assert not TemplateOptions().given
    assert TemplateOptions().told(trained) == trained
    options = TemplateOptions(thinking=True, chat_template_kwargs='{"a": 2}')
    assert options.given
    expected = {"date_string": "26 Jul 2024", "a": 2}
    assert options.told(trained) == RagTemplate(chat=True, thinking=True, chat_template_kwargs=expected)
    assert TemplateOptions(thinking=False).given


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("{", typer.BadParameter, "isn't JSON"),
        ("[1]", typer.BadParameter, "isn't a JSON object such as"),
        ('{"tools": []}', PromptError, "hold tools, which says how a chat is rendered"),
    ],
)
def test_what_is_no_object_is_refused(text: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        TemplateOptions(chat_template_kwargs=text).told(RagTemplate())
