"""How long a prompt a backbone can read, as its config tells; inference and training ask here."""

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
    """Most tokens that a model was built for, if its config says so."""
    text = config.get_text_config(decoder=True)
    lengths = [value for name in _LENGTH_NAMES if isinstance(value := getattr(text, name, None), int)]
    if not lengths:
        return None
    # YaRN checkpoints state the length before stretching; others the length after it.
    stretched = [
        (rope.get("original_max_position_embeddings") or 0) * (rope.get("factor") or 1)
        for rope in _ropes(config)
    ]
    return max(lengths[0], *map(int, stretched))


def position_switch(config: PreTrainedConfig) -> int | None:
    """The length over which a model gives all tokens other positions, also those that it read before; None if there is none.

    Phi-3 and its kin have such a length: with longrope, since their factors change there, and with plain positions too, since
    transformers then begins anew in any case.
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
    """Whether the longest row of a batch says how positions are rotated in all of them, as Phi-3's long variants do.

    Then an answer depends on its neighbours, who must not be chosen by chance.
    """
    return any(rope.get("rope_type") in ("dynamic", "longrope") for rope in _ropes(config))


def _ropes(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """The rotary embeddings' parameters: those of all layers, or one for each type of layer."""
    rope = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    return [kind for kind in rope.values() if isinstance(kind, dict)] or [rope]
