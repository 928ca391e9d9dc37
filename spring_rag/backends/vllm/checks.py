"""What a backend on servers may be told, before it asks any of them."""

from collections.abc import Sequence
from typing import get_args

import httpx
import torch

from spring_rag.backends.vllm.forms import Wish
from spring_rag.errors import BackendError


def check_arguments(urls: Sequence[str], api_key: str, concurrency: int, form: str, timeout: float) -> None:
    """Make sure that arguments of `VLLMBackend` can mean something.

    Raises:
        BackendError: no address of a server, or a key that no header can carry.
        ValueError: a number or a form that there isn't.
    """
    if not urls or not all(map(_is_address, urls)):
        msg = f"base_url is {urls!r}; expected the address of vLLM's API, as 'http://localhost:8000/v1', or several of them"
        raise BackendError(msg)
    if not (api_key.isascii() and api_key.isprintable()):
        msg = "the API key holds what no key can: expected printable ASCII, without line ends (api_key, --api-key, VLLM_API_KEY)"
        raise BackendError(msg)
    if concurrency < 1:
        msg = f"concurrency is {concurrency}; it must be at least 1"
        raise ValueError(msg)
    if not timeout > 0:
        msg = f"timeout is {timeout}; it must be a number of seconds above 0"
        raise ValueError(msg)
    if form not in get_args(Wish):
        msg = f"form is {form!r}; expected 'auto', 'light' or 'exact'"
        raise ValueError(msg)


def embeddings_dtype(name: str | torch.dtype) -> torch.dtype:
    """The dtype in which embeddings are sent; "auto" is float32.

    Raises:
        BackendError: no dtype of floats.
    """
    if isinstance(name, torch.dtype):
        return name
    found = torch.float32 if name == "auto" else getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        msg = f"dtype is {name!r}; expected 'auto', 'float32', 'bfloat16' or 'float16'"
        raise BackendError(msg)
    return found


def _is_address(url: str) -> bool:
    try:
        return httpx.URL(url).scheme in ("http", "https") and bool(httpx.URL(url).host)
    except httpx.InvalidURL:
        return False
