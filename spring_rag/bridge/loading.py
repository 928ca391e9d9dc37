"""Models by name: those that name the same backbone and virtual tokens share one, also where a framework's model is unpickled."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from spring_rag.model import SpringModel
from spring_rag.tokens import VirtualTokens

_loaded: WeakValueDictionary[str, SpringModel] = WeakValueDictionary()
_loading = threading.Lock()


def load_shared(backbone: Any, **arguments: Any) -> SpringModel:
    """Load a model as `SpringModel.from_pretrained` does, but once for all who use it under the same arguments. Raises what that raises."""
    written = _written(arguments.get("tokens"))
    key = json.dumps([backbone, arguments, written], sort_keys=True, default=_known_by)
    with _loading:
        model = _loaded.get(key)
        if model is None:
            model = SpringModel.from_pretrained(backbone, **arguments)
            _loaded[key] = model
    return model


def _written(tokens: Any) -> list[int]:
    """When the files of virtual tokens were written: those that were trained anew into the same folder are others."""
    if not isinstance(tokens, str | os.PathLike) or not os.path.exists(tokens):
        return []
    path = Path(tokens)
    return [
        each.stat().st_mtime_ns for each in (sorted(path.glob("*.safetensors")) if path.is_dir() else [path])
    ]


def _known_by(value: object) -> str:
    return f"{value.digest} {value!r}" if isinstance(value, VirtualTokens) else repr(value)


def not_pickled(model: object, instead: str) -> TypeError:
    """The error for a framework's model that was made from a loaded object, which no other process has."""
    msg = f"a {type(model).__name__} made from a loaded SpringModel can't be pickled; make it from names, {instead}, which are loaded again"
    return TypeError(msg)
