"""A chat template with tools, and calls in its form."""

TEMPLATE = """\
{%- if tools %}<s>system
{%- for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor %}{{ '\\n' }}{% endif %}
{%- for message in messages %}<s>{{ message.role }}
{%- if message.role == 'tool' %} {{ message.name }} {{ message.tool_call_id }}{% endif %}{{ '\\n' }}{{ message.content }}
{%- for call in message.tool_calls or [] %}{{ '\\n<tool_call>\\n{"name": "' }}{{ call.function.name }}{{ '", "arguments": ' }}
{{- call.function.arguments | tojson }}{{ '}\\n</tool_call>' }}{% endfor %}</s>{{ '\\n' }}{% endfor %}
{%- if add_generation_prompt %}<s>assistant{{ '\\n' }}{% endif %}"""
"""As Qwen's and Hermes' write calls."""


def call(name: str, arguments: str) -> str:
    """A call as the template writes it."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'
