"""Test what reaches the terminal: no control sequence from a document, and no error because of its encoding."""

import json
import logging
import sys
import warnings
from io import BytesIO, TextIOWrapper

import pytest
from rich.table import Table

from spring_rag.cli.console import (
    clean,
    forgive_encodings,
    note,
    print_json,
    say,
    show,
    show_log,
    show_warnings_in_one_line,
)

HOSTILE = "a\x1b[2Jb\x1b]0;title\x07c\x9b31md\u202ee\rf\x7f"
COMMANDS = set("\x1b\x07\x9b\u202e\r\x7f")


def test_only_line_ends_and_tabs_stay_of_control_characters() -> None:
    assert clean("a\tb\nc é ⟨x⟩ 漢") == "a\tb\nc é ⟨x⟩ 漢"
    assert clean(HOSTILE) == "a␛[2Jb␛]0;title␇c�31md�ef␡"
    assert not COMMANDS & set(clean(HOSTILE))


def test_all_that_is_printed_is_clean(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Table("answer")
    table.add_row(HOSTILE)
    say(HOSTILE)
    show(table)
    note(HOSTILE)
    print_json({"answer": HOSTILE})
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    show_warnings_in_one_line()
    print(warnings.formatwarning(HOSTILE, UserWarning, "file", 1), file=sys.stderr)
    logger = logging.getLogger("spring_rag")
    monkeypatch.setattr(logger, "handlers", [])
    show_log()
    logger.info(HOSTILE)
    printed = capsys.readouterr()
    assert not COMMANDS & set(printed.out + printed.err)
    assert printed.out.count("title") == 3
    assert printed.err.count("title") == 3
    assert json.loads(printed.out.splitlines()[-1]) == {"answer": HOSTILE}


def test_a_stream_of_ascii_takes_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    written = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(written, encoding="ascii"))
    forgive_encodings()
    say("Gödel ⟨x⟩")
    print_json({"name": "Gödel"})
    sys.stdout.flush()
    shown, encoded = written.getvalue().decode("ascii").splitlines()
    assert shown == r"G\xf6del \u27e8x\u27e9"
    assert json.loads(encoded) == {"name": "Gödel"}
