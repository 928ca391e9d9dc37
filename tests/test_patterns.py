"""The shapes of public RAG apps: whether virtual tokens reach the backbone in each. `docs/patterns.md` holds the table."""

from pathlib import Path

PATTERNS = Path(__file__).parent.parent / "docs" / "patterns.md"
