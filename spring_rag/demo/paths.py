"""Paths of the demo's files in the installed package."""

from pathlib import Path

_HERE = Path(__file__).resolve().parent

TOKENS = _HERE / "tokens"
"""Virtual tokens of the default backbone."""

SKILLS = _HERE / "skills"
"""Further skills of the default backbone: one folder for each, named by its task."""

DOCUMENTS = _HERE / "documents"
QUESTIONS = _HERE / "questions.jsonl"
