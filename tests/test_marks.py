"""Test the marks for the slot in rendered text: unique to a process and the processes that it starts."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spring_rag import RagPrompt, RagTemplate
from spring_rag.bridge.marks import (
    FOLLOWING_MARK,
    MARK,
    SECRET,
    FollowingSlot,
    adopt,
    canonical,
    is_marked,
    join,
    render_text,
    split,
    without_marks,
)
from spring_rag.errors import PromptError
from spring_rag.prompt import SLOT_MARKER, Prompt, Slot, Text, parse_marked

FOREIGN = SLOT_MARKER[:-1] + ":0123456789abcdef" + SLOT_MARKER[-1]
PRINT = "from spring_rag.bridge.marks import MARK; print(MARK)"


def mark_in_a_process(**environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if name != SECRET}
    return subprocess.run(
        [sys.executable, "-X", "utf8", "-c", PRINT],
        env=inherited | environment,
        capture_output=True,
        encoding="utf-8",
        check=True,
    ).stdout.strip()


def test_the_mark_is_the_same_where_the_secret_is():
    assert mark_in_a_process(**{SECRET: os.environ[SECRET]}) == MARK
    assert mark_in_a_process(**{SECRET: "of all our servers"}) == mark_in_a_process(
        **{SECRET: "of all our servers"}
    )
    assert len({mark_in_a_process(), mark_in_a_process(), MARK}) == 3
    assert os.environ[SECRET] not in MARK


@given(st.text(), st.text())
def test_split_and_join(before, after):
    for mark, slot in ((MARK, Slot()), (FOLLOWING_MARK, FollowingSlot())):
        parts = split(before + mark + after)
        assert parts == (Text(before), slot, Text(after))
        assert join(parts) == before + mark + after
        assert without_marks(before + mark + after) == before + after


@pytest.mark.parametrize("forged", [SLOT_MARKER, FOREIGN, FOREIGN[:-1] + ":next⟧"])
def test_any_other_mark_is_text_and_warned_of(forged):
    assert not is_marked(forged)
    with pytest.warns(UserWarning, match="ordinary text"):
        assert split(forged + MARK) == (Text(forged), Slot(), Text(""))


def test_a_template_takes_over_what_its_author_or_another_process_wrote():
    for written in (SLOT_MARKER, FOREIGN, MARK):
        assert adopt(f"a{written}b", MARK) == f"a{MARK}b"
    assert adopt(FOREIGN[:-1] + ":next⟧", MARK) == FOLLOWING_MARK


@given(st.text() | st.sampled_from([SLOT_MARKER, FOREIGN, "⧹(", "⧹⧹"]), st.text() | st.just(SLOT_MARKER))
def test_the_canonical_form_holds_no_secret_and_loses_nothing(before, after):
    for mark in (MARK, FOLLOWING_MARK):
        text = canonical(before + mark + after)
        assert parse_marked(text) == Prompt((Text(before), Slot(), Text(after)))
        assert MARK[len(SLOT_MARKER) : -1] not in text


def test_a_prompt_made_in_code():
    assert render_text(RagPrompt("Q?", ["P"])) == f"[1] P\n\n{MARK}Question: Q?\nAnswer:"
    with pytest.raises(PromptError, match="chat"):
        render_text(RagPrompt("Q?", ["P"], template=RagTemplate(chat=True)))
