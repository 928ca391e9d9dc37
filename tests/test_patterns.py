"""The shapes of public RAG apps: whether virtual tokens reach the backbone in each. `docs/patterns.md` holds the table."""

import re
from pathlib import Path

import pytest

PATTERNS = Path(__file__).parent.parent / "docs" / "patterns.md"
