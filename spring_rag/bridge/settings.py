"""Settings of an answer under the names that other models have for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_OTHER_NAMES = {
    "max_new_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "stop_sequences": "stop",
}
_HOLDERS = ("pipeline_kwargs", "generate_kwargs")
_NEVER_NONE = ("max_tokens", "temperature", "top_p", "top_k")
# What other models can do and a backbone here can't, with the values that ask for nothing of it.
_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (None, 1),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "n": (None, 1),
    "return_full_text": (None, False),
    "logprobs": (None, False),
    "parallel_tool_calls": (None, True),
    "strict": (None, False),
}
_SETTINGS = {*_OTHER_NAMES, *_NEVER_NONE, *_WITHOUT_EFFECT, "stop", "seed", "do_sample"}
_OURS = "max_tokens, temperature, top_p, top_k, stop, seed, num_tokens and tokens"


def in_our_words(given: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the settings among the arguments of a model or a call to our names, and leave all other arguments as they are.

    None for a setting that always has a value leaves it as it is.

    Raises:
        ValueError: a setting that asks for what a backbone can't do, or two values for one setting.
    """
    if misplaced := sorted(_SETTINGS & set(given.get("model_kwargs") or ())):
        msg = f"model_kwargs load the backbone; {', '.join(misplaced)} in them would be lost: give settings as arguments of their own"
        raise ValueError(msg)
    found: dict[str, Any] = {}
    for name, value in _flat(given):
        if name in _WITHOUT_EFFECT:
            if value not in _WITHOUT_EFFECT[name]:
                msg = f"{name}={value!r} isn't supported; an answer is decoded by {_OURS}"
                raise ValueError(msg)
            continue
        ours = _OTHER_NAMES.get(name, name)
        if ours in _NEVER_NONE and value is None:
            continue
        if ours in found and found[ours] != value:
            msg = f"{name}={value!r} and {ours}={found[ours]!r} are the same setting; give {ours} only"
            raise ValueError(msg)
        found[ours] = value
    if "do_sample" in found:
        sample = found.pop("do_sample")
        if sample and not found.get("temperature"):
            msg = "do_sample=True needs a temperature above 0: temperature=… alone says both"
            raise ValueError(msg)
        if sample is False:
            found["temperature"] = 0.0
    return found


def _flat(given: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Put the arguments that stand in a dict of their own beside the others."""
    flat: list[tuple[str, Any]] = []
    for name, value in given.items():
        flat += (value or {}).items() if name in _HOLDERS else [(name, value)]
    return flat
