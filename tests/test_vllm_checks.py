"""What a backend on servers may be told, found out before any server is asked."""

import pytest
import torch

from spring_rag import SpringModel
from spring_rag.backends.vllm.checks import check_arguments, embeddings_dtype
from spring_rag.errors import BackendError

URL = "http://localhost:8000/v1"


@pytest.mark.parametrize("url", ["localhost:8000", "", [], "http://", "http://[::1", "http://a b:x/v1"])
def test_no_address(llama, tokenizer, tmp_path, url):
    llama.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(BackendError, match="base_url is .*http://localhost:8000/v1"):
        SpringModel.from_pretrained(tmp_path, base_url=url)


@pytest.mark.parametrize("key", ["ключ", "two\nlines", "é"])
def test_a_key_that_no_header_takes(llama, tokenizer, tmp_path, key):
    llama.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(BackendError, match="printable ASCII") as caught:
        SpringModel.from_pretrained(tmp_path, base_url=URL, api_key=key)
    assert key not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"concurrency": 0}, "concurrency is 0; it must be at least 1"),
        ({"timeout": 0.0}, "timeout is 0.0; it must be a number of seconds above 0"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"form": "heavy"}, "form is 'heavy'; expected 'auto', 'light' or 'exact'"),
    ],
)
def test_numbers_and_forms_that_there_aren_t(wrong, says):
    right = {"urls": [URL], "api_key": "key", "concurrency": 1, "form": "auto", "timeout": 1.0}
    check_arguments(**right)
    with pytest.raises(ValueError, match=says):
        check_arguments(**{**right, **wrong})


def test_dtypes():
    assert embeddings_dtype("auto") == torch.float32
    assert embeddings_dtype("bfloat16") == embeddings_dtype(torch.bfloat16) == torch.bfloat16
    for wrong in ("int8", "heavy"):
        with pytest.raises(BackendError, match=f"dtype is '{wrong}'; expected 'auto', 'float32'"):
            embeddings_dtype(wrong)
