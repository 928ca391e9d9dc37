"""Test files that would bring a command down: devices, and JSON that is nested too deeply."""

from pathlib import Path

import pytest
from cli_parts import fails

from spring_rag.data.examples import load_examples
from spring_rag.errors import DataError
from spring_rag.files import parse_json, read_text


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/tty", "/dev/null"])
def test_devices_are_refused(device: str) -> None:
    if not Path(device).exists():
        pytest.skip(f"there is no {device}")
    with pytest.raises(OSError, match="A device; expected a file"):
        read_text(Path(device))
    with pytest.raises(DataError, match="A device; expected a file"):
        load_examples(device)


@pytest.mark.parametrize("text", ["[" * 100_000, b"[" * 100_000, "nope", "1" * 5000])
def test_bad_json_is_one_kind_of_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match="."):
        parse_json(text)


def test_a_filter_that_is_nested_too_deeply(tmp_path: Path) -> None:
    said = fails("ask", "Why?", "--db", tmp_path, "--where", '{"a":' * 50_000, code=2)
    assert "isn't JSON: nested too deeply" in said


def test_an_output_folder_whose_config_is_nested_too_deeply(tmp_path: Path, make_tokens) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="config.json of something else"):
        make_tokens(2).save_pretrained(tmp_path)
