"""Read from a backbone's config how long a prompt may be; used by inference and training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_LENGTH_NAMES = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "seq_length",
    "n_ctx",
)


def context_length(config: PreTrainedConfig) -> int | None:
    """Return the number of tokens that a model was built for; None if its config doesn't say."""
    text = config.get_text_config(decoder=True)
    lengths = [value for name in _LENGTH_NAMES if isinstance(value := getattr(text, name, None), int)]
    if not lengths:
        return None
    # YaRN checkpoints give the length before stretching, others the length after it.
    stretched = [
        (rope.get("original_max_position_embeddings") or 0) * (rope.get("factor") or 1)
        for rope in _ropes(config)
    ]
    return max(lengths[0], *map(int, stretched))


def position_switch(config: PreTrainedConfig) -> int | None:
    """Return the length beyond which a model changes the positions of all tokens, including those it has already read; None if there is none.

    Phi-3 and its kin have such a length: with longrope, since their factors change there, and with plain positions too, since
    transformers then starts again in any case.
    """
    text = config.get_text_config(decoder=True)
    ropes = _ropes(config)
    kinds = {rope.get("rope_type", "default") for rope in ropes}
    if "longrope" not in kinds and kinds != {"default"}:
        return None
    own = getattr(text, "original_max_position_embeddings", None)
    lengths = [own, *(rope.get("original_max_position_embeddings") for rope in ropes)]
    return min((length for length in lengths if length is not None), default=None)


def longest_decides_positions(config: PreTrainedConfig) -> bool:
    """Return whether a batch's longest row can decide how positions are rotated in all rows, as in Phi-3's long variants."""
    return bool(_ropes_by_length(config))


def batch_switch(config: PreTrainedConfig) -> int | None:
    """Return the length up to which a batch's longest row has no effect on positions; None if it never has one."""
    text = config.get_text_config(decoder=True)
    switches = [
        text.max_position_embeddings
        if rope["rope_type"] == "dynamic"
        else rope.get("original_max_position_embeddings") or text.original_max_position_embeddings
        for rope in _ropes_by_length(config)
    ]
    return min(switches, default=None)


def positions_settle(config: PreTrainedConfig) -> bool:
    """Return whether positions are rotated alike for all lengths beyond `batch_switch`."""
    return all(rope["rope_type"] == "longrope" for rope in _ropes_by_length(config))


def _ropes_by_length(config: PreTrainedConfig) -> list[dict[str, Any]]:
    return [rope for rope in _ropes(config) if rope.get("rope_type") in ("dynamic", "longrope")]


def _ropes(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """Return the rotary embeddings' parameters: one set for all layers, or one for each type of layer."""
    rope = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    return [kind for kind in rope.values() if isinstance(kind, dict)] or [rope]
