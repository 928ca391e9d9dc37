"""Test `spring-rag serve`: the command that starts vLLM, and the chat template that it gets. For real servers see tests/vllm."""

import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from toy_parts import BACKBONE
from transformers import AutoTokenizer

from spring_rag.backends.vllm.layouts import RAW
from spring_rag.backends.vllm.serving import check_version, serving_command, serving_template
from spring_rag.errors import BackendError

SERVE = [sys.executable, "-c", "from spring_rag.cli import main; main()", "serve"]
DATA = os.environ.get("SPRING_RAG_DATA")

CHAT = [
    {"role": "system", "content": "Be brief.\n"},
    {"role": "user", "content": " a\n\nb "},
    {"role": "assistant", "content": "c"},
    {"role": "user", "content": "d"},
]
TEMPLATES = {
    "concatenating": "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
    "strings only": "{% for m in messages %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endfor %}\n",
    "takes the system message off": "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}"
    "{% set messages = messages[1:] %}{% endif %}{{ s }}\n  {% for m in messages %}\n{{ m.role + m.content | trim }}\n  {% endfor %}",
    "line breaks at both ends": "\n{% for m in messages %}{{ m.content + '!' }}{% endfor %}  \n",
}


def in_parts(chat):
    """What vLLM's `openai` content format makes of messages."""
    return [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in chat]


class TestTemplate:
    @pytest.mark.parametrize("name", TEMPLATES)
    def test_chats_look_as_the_own_template_lays_them_out(self, tokenizer, monkeypatch, name):
        monkeypatch.setattr(tokenizer, "chat_template", TEMPLATES[name])
        expected = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
        served = serving_template(tokenizer)
        found = tokenizer.apply_chat_template(
            in_parts(CHAT), chat_template=served, tokenize=False, add_generation_prompt=True
        )
        assert found == expected

    def test_parts_follow_one_another(self, tokenizer, monkeypatch):
        monkeypatch.setattr(tokenizer, "chat_template", TEMPLATES["strings only"])
        parts = [{"role": "user", "content": [{"type": "text", "text": text} for text in ("a\n", "\nb")]}]
        text = tokenizer.apply_chat_template(parts, chat_template=serving_template(tokenizer), tokenize=False)
        assert text == "[INST] a\n\nb [/INST]"

    @pytest.mark.parametrize("own", [None, *TEMPLATES.values()])
    def test_raw_messages_stand_as_they_are(self, tokenizer, monkeypatch, own):
        monkeypatch.setattr(tokenizer, "chat_template", own)
        content = [{"type": "text", "text": text} for text in (" <s>[1] a\n\n", "<prompt_embeds>")]
        text = tokenizer.apply_chat_template(
            [{"role": "user", "name": RAW, "content": content}],
            chat_template=serving_template(tokenizer),
            tokenize=False,
            add_generation_prompt=True,
        )
        assert text == " <s>[1] a\n\n<prompt_embeds>"

    def test_without_an_own_template(self, tokenizer):
        assert tokenizer.chat_template is None
        text = tokenizer.apply_chat_template(
            in_parts(CHAT[1:2]), chat_template=serving_template(tokenizer), tokenize=False
        )
        assert text == "<s> a\n\nb "

    @pytest.mark.skipif(DATA is None, reason="SPRING_RAG_DATA is not set")
    @pytest.mark.parametrize("name", ["llama-2", "mistral-7b-v0.1"])
    def test_real_tokenizers(self, name):
        tokenizer = AutoTokenizer.from_pretrained(Path(DATA, "tokenizers", name))
        template = serving_template(tokenizer)
        if tokenizer.chat_template:
            chat = CHAT[1:]
            expected = tokenizer.apply_chat_template(chat, tokenize=False)
            assert (
                tokenizer.apply_chat_template(in_parts(chat), chat_template=template, tokenize=False)
                == expected
            )


class TestCommand:
    def test_flags(self):
        found = serving_command("python", "m", Path("t.jinja"), ["--port", "1", "--tensor-parallel-size=2"])
        assert found[:5] == ["python", "-m", "vllm.entrypoints.openai.api_server", "--model", "m"]
        assert found[5:] == [
            "--enable-prompt-embeds",
            "--host",
            "127.0.0.1",
            "--chat-template-content-format",
            "openai",
            "--chat-template",
            "t.jinja",
            "--port",
            "1",
            "--tensor-parallel-size=2",
        ]

    def test_the_users_own_win(self):
        flags = ["--enable_prompt_embeds", "--chat-template=mine.jinja"]
        found = serving_command("python", "m", Path("t.jinja"), flags)
        assert found.count("--enable-prompt-embeds") == 0
        assert "t.jinja" not in found
        assert "127.0.0.1" not in serving_command("python", "m", None, ["--host=0.0.0.0"])


def serve(*arguments, **environment):
    return subprocess.run(
        [*SERVE, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=120,
    )


@pytest.fixture
def python_with(tmp_path):
    """A program that answers as a Python that has some version of vLLM, and prints how it was started otherwise."""

    def make(version):
        path = tmp_path / "python"
        path.write_text(f'#!/bin/sh\nif [ "$1" = -c ]; then echo "{version}"; else echo "started: $@"; fi\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return make


class TestServe:
    def test_print_only_prints(self, tmp_path):
        done = serve("--model", BACKBONE, "--print", "--port", 8001, XDG_CACHE_HOME=str(tmp_path))
        assert done.returncode == 0, done.stderr
        line = shlex.split(done.stdout)
        assert line[-2:] == ["--port", "8001"]
        template = Path(line[line.index("--chat-template") + 1])
        assert template.is_relative_to(tmp_path)
        assert RAW in template.read_text()
        assert list(template.parent.iterdir()) == [template]

    def test_starts_it(self, python_with, tmp_path):
        python = python_with("0.40.1+cpu")
        done = serve("--model", BACKBONE, "--python", python, "--seed", 3, XDG_CACHE_HOME=str(tmp_path))
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("started: -m vllm.entrypoints.openai.api_server --model")
        assert done.stdout.strip().endswith("--seed 3")
        assert shlex.split(done.stderr)[0] == str(python)

    @pytest.mark.parametrize(
        ("version", "says"), [("", "has no vLLM; install"), ("0.9.2", "has vLLM 0.9.2;.*from 0.32 on")]
    )
    def test_missing_or_too_old(self, python_with, version, says):
        with pytest.raises(BackendError, match=says):
            check_version(str(python_with(version)))

    def test_no_vllm_here(self):
        done = serve("--model", BACKBONE)
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert "has no vLLM" in done.stderr

    def test_no_such_python(self):
        with pytest.raises(BackendError, match="can't run './nowhere'.*--python"):
            check_version("./nowhere")

    def test_no_such_model(self):
        done = serve("--model", "./nowhere", "--print")
        assert done.returncode == 1
        assert done.stderr.startswith("error: there is no folder or file './nowhere'")
