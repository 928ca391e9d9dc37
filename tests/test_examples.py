"""Test the reading of questions: both formats, and every bad line named."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spring_rag.data.examples import RagExample, digest, load_examples, load_lines
from spring_rag.errors import DataError

AUTHORS = {"question": "Who?", "target": ["Ann", "Anna"], "ret_passages": ["Ann did.", "Bob did not."]}
FLASHRAG = {"id": "test_0", "question": "Who?", "golden_answers": ["Ann"], "metadata": {"hop": 2}}


def write(path: Path, *lines: object) -> Path:
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8"
    )
    return path


def test_both_formats(tmp_path: Path) -> None:
    file = write(tmp_path / "data.jsonl", AUTHORS, "", {**AUTHORS, "target": "Ann"}, FLASHRAG, "")
    assert load_examples(file).examples == [
        RagExample("Who?", ("Ann", "Anna"), ("Ann did.", "Bob did not.")),
        RagExample("Who?", ("Ann",), ("Ann did.", "Bob did not.")),
        RagExample("Who?", ("Ann",), ()),
    ]


BAD = {
    "{": "not JSON",
    "[1]": "expected an object, got list",
    '{"target": "x"}': '"question" must be',
    '{"question": " ", "target": "x"}': '"question" must be',
    '{"question": 3, "target": "x"}': '"question" must be',
    '{"question": "q"}': '"target" must be',
    '{"question": "q", "target": null}': '"target" must be',
    '{"question": "q", "target": []}': '"target" holds no answer',
    '{"question": "q", "target": [" "]}': '"target" holds no answer',
    '{"question": "q", "target": ["x", 1]}': '"target" must be',
    '{"question": "q", "golden_answers": {}}': '"golden_answers" must be',
    '{"question": "q", "target": "x", "ret_passages": "p"}': '"ret_passages" must be a list',
    '{"question": "q \\ud83d", "target": "x"}': '"question" holds half a character',
    '{"question": "q", "target": ["x", "\\ud83d"]}': '"target" holds half a character',
    '{"question": "q", "target": "x", "ret_passages": ["p", "\\ude00 p"]}': '"ret_passages" holds half a character',
    "[" * 100_000: "not JSON",
    '{"question": "q", "target": "x", "id": ' + "1" * 5000 + "}": "not JSON",
}


@pytest.mark.parametrize(("line", "reason"), BAD.items(), ids=range(len(BAD)))
def test_bad_line_is_named(line: str, reason: str, tmp_path: Path) -> None:
    file = write(tmp_path / "data.jsonl", AUTHORS, line, AUTHORS)
    with pytest.raises(DataError) as error:
        load_examples(file)
    assert "1 bad line" in str(error.value)
    assert f"line 2: {reason}" in str(error.value)
    loaded = load_examples(file, skip_bad=True)
    assert len(loaded.examples) == 2
    assert [bad.number for bad in loaded.bad] == [2]


def test_many_bad_lines_are_all_counted(tmp_path: Path) -> None:
    file = write(tmp_path / "data.jsonl", *["{"] * 1010, AUTHORS)
    with pytest.raises(DataError, match="1010 bad lines") as error:
        load_examples(file)
    assert "line 1000:" in str(error.value)
    assert "line 1001:" not in str(error.value)
    assert "and 10 more" in str(error.value)


def test_files_without_examples(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no examples"):
        load_examples(write(tmp_path / "empty.jsonl", "", " "))
    with pytest.raises(DataError, match="holds no examples"):
        load_examples(write(tmp_path / "bad.jsonl", "{"), skip_bad=True)
    with pytest.raises(DataError, match="can't be read"):
        load_examples(tmp_path / "missing.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "caf\xe9", "target": "x"}')
    with pytest.raises(DataError, match="UTF-8"):
        load_examples(tmp_path / "latin.jsonl")


@settings(deadline=None)
@given(
    st.lists(
        st.builds(RagExample, *[st.text(min_size=1).filter(str.strip)], st.just(("a",)), st.just(())),
        min_size=1,
    )
)
def test_texts_come_back_verbatim(examples: list[RagExample]) -> None:
    lines = [json.dumps({"question": e.question, "target": "a"}, ensure_ascii=False) for e in examples]
    assert load_lines(lines).examples == examples


def test_line_separators_inside_a_text_are_text(tmp_path: Path) -> None:
    question = "one\u2028two\x85three\x0cfour"
    file = tmp_path / "data.jsonl"
    file.write_bytes(json.dumps({"question": question, "target": "a"}, ensure_ascii=False).encode() + b"\r\n")
    assert load_examples(file).examples[0].question == question


def test_digest_knows_texts_and_order() -> None:
    first, second = RagExample("a", ("b",), ("c",)), RagExample("a", ("b", "c"))
    assert digest([first, second]) == digest([first, second])
    assert len({digest([first, second]), digest([second, first]), digest([first]), digest([second])}) == 4
