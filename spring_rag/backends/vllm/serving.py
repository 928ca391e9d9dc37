"""Starting vLLM so that it takes virtual tokens: its flags, its chat template, its version."""

import hashlib
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from spring_rag.backends.vllm.layouts import RAW
from spring_rag.errors import BackendError, PromptError
from spring_rag.files import cache_folder, replace_files
from spring_rag.loading import load_tokenizer
from spring_rag.templates import apply_template

MINIMUM_VERSION = (0, 32)
"""Of vLLM. What older ones do with embeddings inside a chat message was not tried."""

_MODULE = "vllm.entrypoints.openai.api_server"

_FIND_VERSION = """
import importlib.metadata as metadata
names = metadata.packages_distributions().get("vllm", [])
print(metadata.version(names[0]) if names else "")
"""
"""Asks for the package that holds the module: the CPU build goes by another name. vLLM itself would take half a minute to say it."""

_JOINED = """\
{%- set joined = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message.content is string or message.content is none -%}
{%- set joined.messages = joined.messages + [message] -%}
{%- else -%}
{%- set text = namespace(all="") -%}
{%- for part in message.content -%}{%- set text.all = text.all + part.text -%}{%- endfor -%}
{%- set joined.messages = joined.messages + [dict(message, content=text.all)] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = joined.messages -%}
"""

_PLAIN = """\
{{- bos_token | default("") -}}
{%- for message in messages -%}{{- message.content -}}{%- endfor -%}
"""

_KNOWS_RAW = f"""\
{{%- if messages and messages[0].name is defined and messages[0].name == {RAW!r} -%}}
{{%- for message in messages -%}}
{{%- if message.content is string -%}}{{{{- message.content -}}}}
{{%- else -%}}{{%- for part in message.content -%}}{{{{- part.text -}}}}{{%- endfor -%}}
{{%- endif -%}}
{{%- endfor -%}}
{{%- else -%}}
"""

# An empty expression keeps the template's white space beside it from being taken for the block's.
_NOTHING = '{{ "" }}'


def serving_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """A chat template that concatenates content parts, and writes prompts that are rendered already as they are.

    Chats without the name `RAW` look as the tokenizer's own template lays them out; where it has none their texts follow one another.
    """
    own = tokenizer.chat_template
    if isinstance(own, dict):  # several by name
        own = own.get("default")
    if not own:
        return f"{_KNOWS_RAW}{_JOINED}{_PLAIN}{{%- endif -%}}"
    prepared = "" if _concatenates(tokenizer) else _JOINED
    return f"{_KNOWS_RAW}{prepared}{_NOTHING}{own.removesuffix(chr(10))}{_NOTHING}{{% endif %}}"


def _concatenates(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer's own template writes a list of text parts as it writes their joined text."""

    def chat(content: object) -> str:
        return apply_template([{"role": "user", "content": content}], tokenizer, add_generation_prompt=True)

    parts = [{"type": "text", "text": text} for text in ("one\n", "two")]
    try:
        return chat(parts) == chat("one\ntwo")
    except PromptError:
        return False


def write_template(model: str, arguments: Mapping[str, Any] | None = None) -> Path:
    """Write the template for a model into the user's cache folder.

    Args:
        model: as `spring_rag.loading.find` takes it; only its tokenizer is read.
        arguments: as `spring_rag.loading.find` takes them.

    Returns:
        The file, named by its content.

    Raises:
        BackendError: the tokenizer can't be read.
    """
    text = serving_template(load_tokenizer(model, arguments))
    folder = cache_folder("chat-templates")
    name = f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.jinja"
    replace_files(folder, {name: text.encode()})
    return folder / name


def serving_command(python: str, model: str, template: Path | None, flags: Sequence[str]) -> list[str]:
    """The line that starts vLLM; `flags` are vLLM's own, and win over ours where they say the same."""
    ours = {
        "--enable-prompt-embeds": (),
        # Whoever reaches the port may send embeddings: other machines only where someone says so.
        "--host": ("127.0.0.1",),
        "--chat-template-content-format": ("openai",),
        "--chat-template": (str(template),) if template is not None else None,
    }
    given = {flag.partition("=")[0].replace("_", "-") for flag in flags if flag.startswith("--")}
    command = [python, "-m", _MODULE, "--model", model]
    for flag, values in ours.items():
        if values is not None and flag not in given:
            command += [flag, *values]
    return [*command, *flags]


def check_version(python: str) -> str:
    """The version of vLLM that a Python has.

    Raises:
        BackendError: no such Python, no vLLM in it, or one that is too old.
    """
    expected = ".".join(map(str, MINIMUM_VERSION))
    try:
        found = subprocess.run(
            [python, "-c", _FIND_VERSION], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        msg = f"can't run {python!r} to look for vLLM: {error}; name the Python that has vLLM with --python"
        raise BackendError(msg) from error
    version = found.strip()
    if not version:
        msg = f"{python!r} has no vLLM; install vllm {expected} or newer (it likes an environment of its own) and name that with --python"
        raise BackendError(msg)
    numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdecimal())
    if numbers < MINIMUM_VERSION:
        msg = f"{python!r} has vLLM {version}; virtual tokens inside chat messages were tried from {expected} on: install a newer one"
        raise BackendError(msg)
    return version
