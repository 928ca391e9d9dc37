"""Where the demo's files lie in the installed package."""

from pathlib import Path

_HERE = Path(__file__).resolve().parent

BACKBONE = _HERE / "backbone"
TOKENS = _HERE / "tokens"
DOCUMENTS = _HERE / "documents"
QUESTIONS = _HERE / "questions.jsonl"
