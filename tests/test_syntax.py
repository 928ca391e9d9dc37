"""Test where templates use variables, in each format."""

import pytest
from banks.env import env

from spring_rag.bridge.syntax import BRACES, F_STRING, JINJA, MUSTACHE, jinja

BANKS = jinja(env)


def used(syntax, template, name):
    return [template[start:end] for start, end in syntax.uses(template, name)]


@pytest.mark.parametrize(
    ("syntax", "template", "expected"),
    [
        (F_STRING, "{{c}} {c!s:>30} {d}", ["{c!s:>30}"]),
        (BRACES, "{{c}} {c} {d}", ["{c}", "{c}"]),
        (MUSTACHE, "{{{c}}} {{& c }} {{c.d}} {{! c }}", ["{{{c}}}", "{{& c }}", "{{c.d}}"]),
        (MUSTACHE, "{{#c}}{{.}}{{/c}} {{^d}}{{c}}{{/d}}", ["{{#c}}{{.}}{{/c}}", "{{^d}}{{c}}{{/d}}"]),
        (MUSTACHE, "{{#endc}}{{c}}{{/endc}}", ["{{#endc}}{{c}}{{/endc}}"]),
        (JINJA, "{# {{ c }} #}{{ c | upper }}{{ 'c' }}", ["{{ c | upper }}"]),
        (
            JINJA,
            "{% if x %}{% for c in d %}{{ c }}{% endfor %}{% endif %}",
            ["{% if x %}{% for c in d %}{{ c }}{% endfor %}{% endif %}"],
        ),
        (JINJA, "{% set x = 1 %}{% if x %}{% else %}{% endif %}{{ c }}", ["{{ c }}"]),
        (JINJA, "{% set x %}{{ c }}{% endset %}{{ x }}", ["{% set x %}{{ c }}{% endset %}"]),
        (BANKS, "{% chat role='user' %}{{ c }}{% endchat %}", ["{{ c }}"]),
    ],
)
def test_uses(syntax, template, expected):
    assert used(syntax, template, "c") == expected


def test_messages():
    template = "{% chat role='system' %}\na\n{% endchat %}\n{% chat role='user' %}b{% endchat %}"
    assert [template[start:end] for start, end in BANKS.messages(template)] == ["a\n", "b"]
    assert F_STRING.messages("abc") == [(0, 3)]


@pytest.mark.parametrize(
    ("syntax", "template", "safe"),
    [
        (F_STRING, "a|{c}", True),
        (JINJA, "a\n|{{- c }}", False),
        (JINJA, "a|\n{{- c }}", True),
        (JINJA, "{{ c -}}|\na", False),
        (BANKS, "a\n|{% if c %}x{% endif %}", True),
        (BANKS, "a\n  |{% if c %}x{% endif %}", False),
        (BANKS, "{% if c %}|\nx{% endif %}", False),
        (MUSTACHE, "{{#c}}|\nx\n{{/c}}", False),
        (MUSTACHE, "{{#c}}\nx|\n{{/c}}", True),
    ],
)
def test_a_text_goes_in_only_where_it_changes_nothing_else(syntax, template, safe):
    offset = template.index("|")
    plain = template.replace("|", "")
    assert syntax.insert(plain, "SLOT", offset) == (template.replace("|", "SLOT") if safe else None)


def test_line_breaks_of_other_systems():
    assert JINJA.normal("a\r\nb\rc") == "a\nb\nc"
    assert F_STRING.normal("a\r\nb") == "a\r\nb"
