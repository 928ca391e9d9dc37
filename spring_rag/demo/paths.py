"""Where the demo's files lie in the installed package."""

from pathlib import Path

_HERE = Path(__file__).resolve().parent

TOKENS = _HERE / "tokens"
"""Virtual tokens of the default backbone."""

SKILLS = _HERE / "skills"
"""Its further skills: a folder for each, by task."""

DOCUMENTS = _HERE / "documents"
QUESTIONS = _HERE / "questions.jsonl"
