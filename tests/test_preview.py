"""Test the preview of training data before a run."""

import pytest
from transformers import PreTrainedTokenizerFast

from spring_rag.errors import DataError
from spring_rag.training import TrainingRecipe, preview


def test_nothing_to_look_at(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="there is nothing to preview: the data holds no examples"):
        preview([], tokenizer, TrainingRecipe())
