"""Test the table of all causal families: it is complete, without wrong answers or gradients, and equals that of a fresh trial."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers

SCRIPTS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(SCRIPTS))
families = importlib.import_module("families")
TABLE: dict[str, Any] = json.loads(families.RESULTS.read_text())
ROWS: dict[str, dict[str, str]] = TABLE["families"]

# Each way to answer and to train, each reason to refuse, and what today's users run.
SAMPLE = [
    "llama", "qwen3", "gemma3_text", "gpt_oss", "smollm3", "llama4_text", "qwen3_next", "qwen3_5_text", "lfm2", "granitemoehybrid",
    "gpt_neo", "mamba", "bert", "gemma3n_text", "cpmant",
]  # fmt: skip

same_transformers = pytest.mark.skipif(
    transformers.__version__ != TABLE["transformers"],
    reason="the table is of another version of transformers",
)


@same_transformers
def test_every_family_has_its_row() -> None:
    assert sorted(ROWS) == families.FAMILIES


def test_no_family_answers_or_trains_wrongly_without_a_word() -> None:
    for family, row in ROWS.items():
        assert row["inference"] in {"in batches", "one by one", "refused", "not built"}, family
        assert row["training"] in {
            "context once", "context once, one by one", "whole sequence", "refused", "not built",
        }, family  # fmt: skip
        fastest = row["inference"] == "in batches" and row["training"] == "context once"
        assert bool(row["reason"]) is not fastest, family


def test_todays_models_answer_and_train() -> None:
    for family in (
        "qwen3_5_text", "qwen3_next", "lfm2", "granitemoehybrid", "gpt_oss", "smollm3", "gemma3_text", "llama4_text", "nemotron_h",
        "falcon_h1",
    ):  # fmt: skip
        assert ROWS[family]["inference"] in {"in batches", "one by one"}, family
        assert ROWS[family]["training"].startswith(("context once", "whole sequence")), family


def test_the_page_is_made_of_the_table() -> None:
    assert families.PAGE.read_text() == families.page(TABLE)


def _tried_again(family: str) -> None:
    found = families.examine_apart(family)
    for column in ("inference", "training"):
        assert found[column] == ROWS[family][column], found["reason"]


@same_transformers
@pytest.mark.parametrize("family", SAMPLE)
def test_a_fresh_trial_gives_the_row(family: str) -> None:
    _tried_again(family)


@same_transformers
@pytest.mark.families
@pytest.mark.parametrize("family", [family for family in ROWS if family not in SAMPLE])
def test_every_fresh_trial_gives_the_row(family: str) -> None:
    _tried_again(family)
