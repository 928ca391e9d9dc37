"""The type of functions that callers pass in to follow progress."""

from collections.abc import Callable

OnProgress = Callable[[int, int], None]
"""Called with the number done, and the number of all."""
