"""Load a backbone from a folder, a GGUF or the Hub: the model and its tokenizer by the same arguments."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from spring_rag.errors import BackendError, MissingExtraError, UnsupportedBackboneError
from spring_rag.gguf import GgufName, converted, gguf_name

SHARED = frozenset(
    {
        "cache_dir",
        "code_revision",
        "force_download",
        "local_files_only",
        "proxies",
        "revision",
        "subfolder",
        "token",
        "trust_remote_code",
    }
)
"""Arguments of transformers that say where to find a backbone; model, config and tokenizer get all of them."""

_DOWNLOAD = frozenset({"cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token"})
"""The arguments in `SHARED` that the Hub's own client takes."""


@dataclass(frozen=True, slots=True)
class BackboneSource:
    """Where a backbone's files are, in transformers' own format.

    Args:
        place: folder or Hub id.
        model_id: the backbone's name: as it was given, or a GGUF's resolved path or `owner/name:file.gguf`.
        arguments: arguments that find the files there, for model, config and tokenizer alike.
        is_gguf: whether the folder was made of a GGUF.
    """

    place: str
    model_id: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    is_gguf: bool = False

    def config(self) -> PreTrainedConfig:
        """Load the backbone's config. Raises the errors of transformers."""
        config: PreTrainedConfig = AutoConfig.from_pretrained(self.place, **self.arguments)
        return self._named(config)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the backbone's tokenizer. Raises the errors of transformers."""
        tokenizer = AutoTokenizer.from_pretrained(self.place, **self.arguments)
        assert isinstance(tokenizer, PreTrainedTokenizerBase)
        return tokenizer

    def download(self, name: str) -> Path:
        """Download one file of a Hub repository. Raises the errors of the Hub's client."""
        return _download(self.place, name, self.arguments)

    def model(self, **model_kwargs: Any) -> tuple[PreTrainedModel, Mapping[str, Any]]:
        """Load the backbone; return it with transformers' report on its weights.

        Raises:
            UnsupportedBackboneError: it is no causal language model, nor one with an image encoder.
            Exception: any error of transformers.
        """
        auto = _auto_class(self.config())
        if self.is_gguf and isinstance(model_kwargs.get("quantization_config"), GgufConfig):
            del model_kwargs["quantization_config"]  # the folder is unpacked already
        loaded: Any = auto.from_pretrained(
            self.place, output_loading_info=True, **self.arguments, **model_kwargs
        )
        hf_model, report = loaded
        self._named(hf_model.config)
        return hf_model, report

    def _named(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """Name a config after the GGUF, and not after a folder in the cache."""
        if self.is_gguf:
            config.name_or_path = self.model_id
        return config


def _auto_class(config: PreTrainedConfig) -> Any:
    """Return the class that loads a model: for some with an image encoder (Llava, Mistral 3) it isn't that of causal language models.

    Raises:
        UnsupportedBackboneError: the model is neither.
    """
    kind = type(config)
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in (
        getattr(config, "auto_map", None) or {}
    ):
        return AutoModelForCausalLM
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not config.is_encoder_decoder:
        return AutoModelForImageTextToText
    name = (config.architectures or [config.model_type])[0]
    what = "it is an encoder with a decoder" if config.is_encoder_decoder else "it writes no text by itself"
    msg = f"{name} can't take virtual tokens: {what}; expected a causal language model, as Llama, Qwen or Mistral"
    raise UnsupportedBackboneError(msg)


def split_arguments(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide keyword arguments into those that say where to find a backbone, which `find` takes, and all others."""
    where = {key: value for key, value in arguments.items() if key in SHARED or key == "gguf_file"}
    return where, {key: value for key, value in arguments.items() if key not in where}


def find(backbone: str | Path, arguments: Mapping[str, Any] | None = None) -> BackboneSource:
    """Find a backbone; one that is a GGUF is converted first, unless the user's cache has it.

    Args:
        backbone: folder, Hub id, `model.gguf`, a folder that holds exactly one GGUF and no other weights, or
            `owner/name:file.gguf`.
        arguments: those of `SHARED`, and transformers' `gguf_file`; None counts as not given. Code in a backbone's files
            is run only with `trust_remote_code=True`, and transformers never asks.

    Raises:
        MissingExtraError: it is a GGUF, and the package `gguf` isn't installed.
        BackendError: the folder or GGUF doesn't exist, or can't be read; the error says why.
    """
    name, given = _named(backbone, arguments)
    gguf = gguf_name(name, given.pop("gguf_file", None), given.get("subfolder"))
    if gguf is None:
        return BackboneSource(name, name, given)
    file, model_id = _on_disk(gguf, given)
    return BackboneSource(str(converted(file, model_id)), model_id, is_gguf=True)


def find_gguf(backbone: str | Path, arguments: Mapping[str, Any] | None = None) -> tuple[Path, str]:
    """Find a backbone that is a GGUF; one on the Hub is downloaded.

    Args:
        backbone: `model.gguf`, a folder that holds exactly one GGUF and no other weights, or `owner/name:file.gguf`.
        arguments: those that `find` takes.

    Returns:
        The file, and the backbone's name.

    Raises:
        BackendError: it is no GGUF, or doesn't exist; the error says why.
    """
    name, given = _named(backbone, arguments)
    gguf = gguf_name(name, given.pop("gguf_file", None), given.get("subfolder"))
    if gguf is None:
        msg = (
            f"llama.cpp reads a GGUF, and {name!r} names none; expected model.gguf, a folder that holds one and no other weights, "
            "or owner/name:file.gguf"
        )
        raise BackendError(msg)
    return _on_disk(gguf, given)


def _named(backbone: str | Path, arguments: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """Return a backbone's name, with folders resolved, and the arguments that were given.

    Raises:
        BackendError: the folder or file doesn't exist.
    """
    name = os.fspath(backbone)
    if os.path.isdir(name):
        # A resolved path is found from every working directory, and is never taken for a name on the Hub.
        name = str(Path(name).resolve())
    elif (os.path.isabs(name) or name.startswith((".", "~"))) and not os.path.exists(
        os.path.expanduser(name)
    ):
        msg = f"there is no folder or file {name!r} to load the backbone from"
        raise BackendError(msg)
    given: dict[str, Any] = {"trust_remote_code": False}
    given |= {key: value for key, value in (arguments or {}).items() if value is not None}
    return name, given


def _on_disk(gguf: GgufName, arguments: Mapping[str, Any]) -> tuple[Path, str]:
    """Return a GGUF's file, downloaded if necessary, and its name."""
    if gguf.repo_id is None:
        return Path(gguf.file), gguf.file
    model_id = f"{gguf.repo_id}:{gguf.file}"
    return _downloaded(gguf, model_id, arguments), model_id


def load_tokenizer(
    backbone: str | Path, arguments: Mapping[str, Any] | None = None
) -> PreTrainedTokenizerBase:
    """Load a backbone's tokenizer without its model.

    Args:
        backbone: folder, Hub id or GGUF, as for `find`.
        arguments: those that `find` takes.

    Raises:
        MissingExtraError: it is a GGUF, and the package `gguf` isn't installed.
        BackendError: it can't be loaded; the error says why.
    """
    try:
        return find(backbone, arguments).tokenizer()
    except (BackendError, MissingExtraError):
        raise
    except Exception as error:  # folders and the Hub fail with errors of a dozen kinds
        msg = f"can't read the tokenizer of {os.fspath(backbone)!r}: {' '.join(str(error).split())}"
        raise BackendError(msg) from error


def _downloaded(gguf: GgufName, model_id: str, arguments: Mapping[str, Any]) -> Path:
    assert gguf.repo_id is not None
    try:
        # Its name has the subfolder already.
        return _download(gguf.repo_id, gguf.file, {**arguments, "subfolder": None})
    except Exception as error:  # each library of the Hub's client has its own errors
        msg = f"can't load the GGUF {model_id!r} from the Hub: {' '.join(str(error).split())}"
        raise BackendError(msg) from error


def _download(repo_id: str, name: str, arguments: Mapping[str, Any]) -> Path:
    return Path(
        hf_hub_download(repo_id, name, **{key: arguments[key] for key in _DOWNLOAD & arguments.keys()})
    )
