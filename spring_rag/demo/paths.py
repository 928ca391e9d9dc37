"""Where the demo's files lie in the installed package."""

from pathlib import Path

_HERE = Path(__file__).resolve().parent

TOKENS = _HERE / "tokens"
"""Virtual tokens of the default backbone."""

DOCUMENTS = _HERE / "documents"
QUESTIONS = _HERE / "questions.jsonl"
