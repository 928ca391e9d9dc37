"""Numbers of tokens under the names that frameworks look for."""

from collections import Counter
from collections.abc import Iterable

from spring_rag.backends.base import Usage


def token_counts(usages: Iterable[Usage]) -> dict[str, int]:
    """Add up the tokens of some answers: of their prompts, virtual ones included, of parts of these, and of the answers."""
    total: Counter[str] = Counter()
    for usage in usages:
        total.update(
            prompt_tokens=usage.context + usage.virtual + usage.suffix,
            context_tokens=usage.context,
            virtual_tokens=usage.virtual,
            completion_tokens=usage.generated,
        )
    return dict(total)
