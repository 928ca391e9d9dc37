"""What callers may pass in, to hear how far something has come."""

from collections.abc import Callable

OnProgress = Callable[[int, int], None]
"""Called with how many are done, and of how many."""
