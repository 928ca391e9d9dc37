"""Read examples, find answers in passages, and make training data: passages for questions, and questions for passages."""

from spring_rag.data.attach import Attached, Retriever, attach
from spring_rag.data.make import MAKE_PROMPT, Made, Pair, make_pairs

__all__ = ["MAKE_PROMPT", "Attached", "Made", "Pair", "Retriever", "attach", "make_pairs"]
