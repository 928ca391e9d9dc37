"""Test what is read from a tokenizer's chat template: its arguments, its date, its end, and its digest."""

import copy
from datetime import datetime

import pytest
from thinking_parts import FAMILIES, LLAMA, ONE_OF_TWO, PLAIN, letters, tokenizer_of

from spring_rag import templates
from spring_rag.encoding import encode
from spring_rag.errors import PromptError
from spring_rag.prompt import Message, Prompt, RagPrompt, RagTemplate, Text
from spring_rag.templates import apply_template, prints_date, template_arguments, template_digest

CHAT = [{"role": "user", "content": "a"}]


def written(tokenizer, **arguments):
    return apply_template(CHAT, tokenizer, arguments, add_generation_prompt=True)


class TestThinking:
    @pytest.mark.parametrize("name", FAMILIES)
    def test_none_leaves_it_to_the_template(self, name):
        tokenizer = tokenizer_of(name)
        assert template_arguments(RagTemplate(thinking=None), tokenizer) == {}

    def test_an_effort_that_the_template_refuses_is_not_given(self):
        tokenizer = letters(ONE_OF_TWO)
        assert template_arguments(RagTemplate(thinking=False), tokenizer) == {}
        assert template_arguments(RagTemplate(thinking=True), tokenizer) == {"reasoning_effort": "high"}

    def test_a_template_without_a_switch_is_given_none(self):
        for thinking in (False, True):
            assert template_arguments(RagTemplate(thinking=thinking), letters(PLAIN)) == {}

    def test_a_template_that_changes_is_asked_again(self):
        tokenizer = tokenizer_of("qwen-3")
        assert template_arguments(RagTemplate(), tokenizer) == {"enable_thinking": False}
        tokenizer.chat_template = PLAIN
        assert template_arguments(RagTemplate(), tokenizer) == {}


class TestArguments:
    def test_they_reach_the_template(self):
        tokenizer = letters("{{ greeting }}{% for m in messages %}{{ m.content }}{% endfor %}")
        template = RagTemplate(chat=True, chat_template_kwargs={"greeting": "Hi. "})
        assert tokenizer.decode(encode(RagPrompt("q", [], template), tokenizer).ids).startswith("Hi. ")
        prompt = Prompt(messages=(Message("user", (Text("q"),)),), chat_template_kwargs={"greeting": "Ho. "})
        assert tokenizer.decode(encode(prompt, tokenizer).ids) == "Ho. q"

    @pytest.mark.parametrize("kind", [RagTemplate, lambda **given: Prompt(parts=(Text("a"),), **given)])
    def test_what_no_template_may_say_is_refused(self, kind):
        with pytest.raises(
            PromptError, match="hold chat_template, tokenize, which says how a chat is rendered"
        ):
            kind(chat_template_kwargs={"tokenize": True, "chat_template": "{{ 1 }}"})
        with pytest.raises(PromptError, match="must be what JSON can hold"):
            kind(chat_template_kwargs={"a": object()})
        with pytest.raises(PromptError, match="must be Mapping"):
            kind(chat_template_kwargs=["a"])
        with pytest.raises(PromptError, match="thinking of a"):
            kind(thinking="no")

    def test_a_template_keeps_them(self):
        given = {"date_string": "26 Jul 2024", "list": [1]}
        template = RagTemplate(chat=True, thinking=None, chat_template_kwargs=given)
        given["list"].append(2)
        assert template.chat_template_kwargs["list"] == [1]
        assert RagTemplate.from_dict(template.to_dict()) == template
        assert len({template, RagTemplate.from_dict(template.to_dict())}) == 1
        assert hash(template.render("q", ["p"])) == hash(template.render("q", ["p"]))

    def test_a_template_of_an_earlier_version_leaves_thinking_to_the_chat_template(self):
        earlier = RagTemplate(chat=True).to_dict()
        del earlier["thinking"], earlier["chat_template_kwargs"]
        assert RagTemplate.from_dict(earlier) == RagTemplate(chat=True, thinking=None)
        assert RagTemplate.from_dict({**earlier, "chat": False}) == RagTemplate()


class TestDate:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [("gpt-oss", "Current date: 2024-07-26\n"), ("smollm-3", "Today Date: 26 July 2024\n")],
    )
    @pytest.mark.parametrize("given", ["26 Jul 2024", "2024-07-26", "July 26, 2024"])
    def test_it_is_pinned_in_the_templates_own_format(self, name, expected, given):
        assert expected in written(tokenizer_of(name), date_string=given)

    def test_llamas_gets_it_as_it_is(self):
        assert "Today Date: 26 Jul 2024\n" in written(letters(LLAMA), date_string="26 Jul 2024")

    def test_what_is_no_date_is_written_as_it_is(self):
        assert "Current date: it's \\ today\n" in written(
            tokenizer_of("gpt-oss"), date_string="it's \\ today"
        )

    def test_nothing_else_of_the_template_changes(self):
        now = datetime.now()
        for template in (
            "\n  {{ strftime_now('%Y %% %d') }}\n{% for m in messages %}{{ m.content }}{% endfor %}\n",
            LLAMA,
        ):
            tokenizer = letters(template)
            assert written(tokenizer, date_string=f"{now:%d %b %Y}") == written(tokenizer)

    def test_templates_that_print_it_are_found(self):
        assert [name for name in FAMILIES if prints_date(tokenizer_of(name), {})] == ["gpt-oss", "smollm-3"]
        assert prints_date(letters(LLAMA), {})
        assert not prints_date(letters(PLAIN), {})


class TestEnd:
    def test_a_template_without_end_is_an_error(self, monkeypatch):
        monkeypatch.setattr(templates, "_MOST_SECONDS", 0.2)
        tokenizer = letters(
            "{% for i in range(99999) %}{% for j in range(99999) %}{% set x = i * j %}{% endfor %}{% endfor %}"
        )
        for _ in range(2):  # the second time at once
            with pytest.raises(PromptError, match=r"with the roles user: it isn't done after 0\.2 seconds"):
                written(tokenizer)
            monkeypatch.setattr(templates, "threading", None)

    def test_a_text_beyond_all_memory_is_an_error(self):
        with pytest.raises(PromptError, match="chat template refuses"):
            written(letters("{{ 'a' * 10 ** 15 }}"))


class TestDigest:
    def test_it_changes_with_the_template(self):
        tokenizer = letters(PLAIN)
        assert template_digest(tokenizer) == template_digest(copy.deepcopy(tokenizer))
        assert template_digest(tokenizer) != template_digest(letters(PLAIN + " "))
        assert template_digest(letters("")) is None

    def test_of_several_templates_it_is_the_default_ones(self):
        several = letters(PLAIN)
        several.chat_template = {"default": PLAIN, "tool_use": LLAMA}
        assert template_digest(several) == template_digest(letters(PLAIN))
        several.chat_template = {"rag": PLAIN}
        with pytest.raises(PromptError, match="several chat templates and no default one"):
            template_digest(several)
