"""Chat templates with tools that have the structure of today's families', and what their backbones write when they call one."""

from dataclasses import dataclass

SEARCH, ARGUMENTS = "search", {"query": "who?", "limit": 3}

_JSON = '{"name": "search", "arguments": {"query": "who?", "limit": 3}}'
_EACH = "{% for c in m.tool_calls or [] %}{% set f = c.function %}"
_CHATML = ("<|im_start|>", "<|im_end|>")
_THINK = ("<think>", "</think>")
_TAGGED = "{{ '\n<tool_call>\n{\"name\": \"' + f.name + '\", \"arguments\": ' + f.arguments | tojson + '}\n</tool_call>' }}"


@dataclass(frozen=True)
class Family:
    """A family's chat template.

    Attributes:
        template: as short as shows where the real one has tools, calls and results.
        special: special tokens, which decoding leaves out.
        written: what its backbone writes behind the generation prompt to call `search`.
        thoughts: what of that is thought.
        text: what of that is said before the call.
        added: other added tokens.
        again: what the next prompt holds of it, if not all that follows the thoughts.
    """

    template: str
    special: tuple[str, ...]
    written: str
    thoughts: str | None = None
    text: str = ""
    added: tuple[str, ...] = ()
    again: str = ""

    @property
    def shown(self) -> str:
        """What the next prompt holds of the answer."""
        return self.again or (self.written[self.written.index(self.text) :] if self.text else self.written)


def _chatml(calls: str, before: str = "", prompt: str = "", tool: str = "tool") -> str:
    """A template of ChatML's kind."""
    return (
        "{% if tools %}{{ '<|im_start|>system\n' }}{% for t in tools %}{{ t | tojson }}{% endfor %}{{ '<|im_end|>\n' }}{% endif %}"
        "{% for m in messages %}{{ '<|im_start|>' + ('" + tool + "' if m.role == 'tool' else m.role) + '\n' }}"
        "{% if m.role == 'assistant' %}" + before + "{% endif %}{{ m.content }}" + calls + "{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}" + prompt + "{% endif %}"
    )  # fmt: skip


_DEEPSEEK = (
    "{% set ns = namespace(first=true) %}{{ bos_token }}{% for t in tools or [] %}{{ t.function.name }}{{ t.function.parameters | tojson }}"
    "{% endfor %}{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}{% elif m.role == 'tool' %}"
    "{{ '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' }}{% elif m.tool_calls %}{{ '<｜Assistant｜>' }}{% set ns.first = true %}"
    "{% for c in m.tool_calls %}{% if ns.first %}{{ (m.content or '') + '<｜tool▁calls▁begin｜>' }}{% set ns.first = false %}{% endif %}"
    "CALL{% endfor %}{{ '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}{% else %}{{ '<｜Assistant｜>' + m.content + '<｜end▁of▁sentence｜>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt and messages[-1].role != 'tool' %}{{ '<｜Assistant｜>' }}{% endif %}"
)
_DEEPSEEK_TOKENS = (
    "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>", "<｜tool▁sep｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>",
)  # fmt: skip
_KIMI_TOKENS = (
    "<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>", "<|im_end|>", "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>",
)  # fmt: skip
_KIMI_CALL = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.search:0<|tool_call_argument_begin|>"
    '{"query": "who?", "limit": 3}<|tool_call_end|><|tool_calls_section_end|>'
)
_KIMI_K3_CALL = (
    '<|open|>tools<|sep|><|open|>call tool="search" index="1"<|sep|><|open|>argument key="query" type="string"<|sep|>who?<|close|>argument<|sep|>'
    '<|open|>argument key="limit" type="number"<|sep|>3<|close|>argument<|sep|><|close|>call<|sep|><|close|>tools<|sep|>'
)

FAMILIES = {
    "qwen-2.5": Family(
        _chatml(_EACH + _TAGGED + "{% endfor %}", tool="user"),
        _CHATML,
        f"<tool_call>\n{_JSON}\n</tool_call><|im_end|>",
    ),
    "qwen-3": Family(
        _chatml(
            _EACH + _TAGGED + "{% endfor %}",
            "{% if m.reasoning_content is string %}{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{% endif %}",
            "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}",
        ),
        _CHATML,
        f"<think>\nhm\n</think>\n\nLet me look.\n<tool_call>\n{_JSON}\n</tool_call><|im_end|>",
        "hm",
        "Let me look.",
        _THINK,
    ),
    "qwen-3.5": Family(
        _chatml(
            _EACH
            + "{{ '\n\n' if m.content }}{{ '<tool_call>\n<function=' + f.name + '>\n' }}{% for k, v in f.arguments.items() %}{{ '<parameter=' + k + '>\n' }}"
            "{{ v | tojson if v is mapping or v is sequence and v is not string else v | string }}{{ '\n</parameter>\n' }}{% endfor %}"
            "{{ '</function>\n</tool_call>' }}{% endfor %}",
            "{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}",
            "{{ '<think>\n\n</think>\n\n' if enable_thinking is defined and not enable_thinking else '<think>\n' }}",
        ),
        _CHATML,
        "hm\n</think>\n\n<tool_call>\n<function=search>\n<parameter=query>\nwho?\n</parameter>\n<parameter=limit>\n3\n</parameter>\n"
        "</function>\n</tool_call><|im_end|>",
        "hm",
        added=_THINK,
        again="</think>\n\n<tool_call>\n<function=search>\n<parameter=query>\nwho?\n</parameter>\n<parameter=limit>\n3\n</parameter>\n</function>\n</tool_call>",
    ),
    "smollm-3": Family(
        "{{ '<|im_start|>system\n' }}{% if xml_tools or python_tools %}{% for t in xml_tools[:] %}{{ t | string }}{% endfor %}"
        "{{ 'For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags' }}{% endif %}"
        "{{ '<|im_end|>\n' }}{% for m in messages %}{% set content = m.content if m.content is string else '' %}"
        "{{ '<|im_start|>' + ('user' if m.role == 'tool' else m.role) + '\n' + content.lstrip('\n') + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% if enable_thinking is defined and not enable_thinking %}"
        "{{ '<think>\n\n</think>\n' }}{% endif %}{% endif %}",
        _CHATML,
        f"<think>\nhm\n</think>\n<tool_call>{_JSON}</tool_call><|im_end|>",
        "hm",
        added=(*_THINK, "<tool_call>", "</tool_call>"),
        again=f"<|im_start|>assistant\n<tool_call>\n{_JSON}\n</tool_call><|im_end|>",
    ),
    "lfm2": Family(
        "{{ bos_token }}{% if tools %}{{ '<|im_start|>system\nList of tools: <|tool_list_start|>' }}{{ tools | tojson }}{{ '<|tool_list_end|><|im_end|>\n' }}"
        "{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'tool' %}"
        "{{ '<|tool_response_start|>' + m.content + '<|tool_response_end|>' }}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        (
            *_CHATML,
            "<|tool_list_start|>",
            "<|tool_list_end|>",
            "<|tool_call_start|>",
            "<|tool_call_end|>",
            "<|tool_response_start|>",
            "<|tool_response_end|>",
        ),
        '<|tool_call_start|>[search(query="who?", limit=3)]<|tool_call_end|><|im_end|>',
    ),
    "lfm2.5": Family(
        _chatml(
            "{% if m.tool_calls %}{{ '<|tool_call_start|>[' }}"
            + _EACH
            + "{{ ', ' if not loop.first }}{{ f.name + '(' }}{% for k, v in f.arguments.items() %}{{ ', ' if not loop.first }}"
            "{{ k + '=' + (\"'\" + v + \"'\" if v is string else v | tojson if v is mapping else v | string) }}{% endfor %}{{ ')' }}{% endfor %}"
            "{{ ']<|tool_call_end|>' }}{% endif %}",
            "{% if m.thinking or m.reasoning_content %}{{ '<think>' + (m.thinking or m.reasoning_content) + '</think>' }}{% endif %}",
        ),
        (*_CHATML, "<|tool_call_start|>", "<|tool_call_end|>"),
        '<think>hm</think>Let me look.<|tool_call_start|>[search(query="who?", limit=3)]<|tool_call_end|><|im_end|>',
        "hm",
        "Let me look.",
        _THINK,
        again="Let me look.<|tool_call_start|>[search(query='who?', limit=3)]<|tool_call_end|><|im_end|>",
    ),
    "gpt-oss": Family(
        "{% set last = namespace(name=none) %}{{ '<|start|>developer<|message|># Tools\n\nnamespace functions {\n' }}{% for t in tools or [] %}"
        "{{ '// ' + t.function.description + '\ntype ' + t.function.name + ' = (_: any) => any;\n' }}{% endfor %}{{ '}<|end|>' }}"
        "{% for m in messages %}{% if m.role == 'assistant' %}{% if 'tool_calls' in m %}{% set f = m.tool_calls[0].function %}"
        "{% if m.content %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.content + '<|end|>' }}{% endif %}"
        "{{ '<|start|>assistant to=functions.' + f.name + '<|channel|>commentary json<|message|>' }}{{ f.arguments | tojson }}{{ '<|call|>' }}"
        "{% set last.name = f.name %}{% else %}{% if 'thinking' in m %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}"
        "{% endif %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
        "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{% endif %}{% elif m.role == 'tool' %}"
        "{{ '<|start|>functions.' + last.name + ' to=assistant<|channel|>commentary<|message|>' }}{{ m.content | tojson }}{{ '<|end|>' }}"
        "{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}",
        ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|constrain|>", "<|call|>"),
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary to=functions.search <|constrain|>json<|message|>"
        '{"query": "who?", "limit": 3}<|call|>',
        "hm",
        again='<|start|>assistant to=functions.search<|channel|>commentary json<|message|>{"query": "who?", "limit": 3}<|call|>',
    ),
    "mistral-7b": Family(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{% if tools and loop.first %}{{ '[AVAILABLE_TOOLS] ' }}{{ tools | tojson }}"
        "{{ '[/AVAILABLE_TOOLS]' }}{% endif %}{{ '[INST] ' + m.content + '[/INST]' }}{% elif m.tool_calls %}{{ '[TOOL_CALLS] [' }}"
        "{% for c in m.tool_calls %}{% set out = c.function | tojson %}{{ out[:-1] }}{% if c.id | length != 9 %}{{ raise_exception('9!') }}{% endif %}"
        "{{ ', \"id\": \"' + c.id + '\"}' }}{{ ', ' if not loop.last else ']' + eos_token }}{% endfor %}{% elif m.role == 'assistant' %}"
        "{{ ' ' + m.content + eos_token }}{% else %}{{ '[TOOL_RESULTS] {\"content\": ' + m.content + ', \"call_id\": \"' + m.tool_call_id + '\"}[/TOOL_RESULTS]' }}"
        "{% endif %}{% endfor %}",
        (
            "[INST]",
            "[/INST]",
            "[TOOL_CALLS]",
            "[AVAILABLE_TOOLS]",
            "[/AVAILABLE_TOOLS]",
            "[TOOL_RESULTS]",
            "[/TOOL_RESULTS]",
        ),
        f"[TOOL_CALLS] [{_JSON}]</s>",
        again=f'[TOOL_CALLS] [{_JSON[:-1]}, "id": ',
    ),
    "mistral-small-3.2": Family(
        "{{ bos_token }}{% set asked = messages | selectattr('role', 'equalto', 'user') | list %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% if tools and m == asked[-1] %}{{ '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}{{ '[INST]' + m.content + '[/INST]' }}"
        "{% elif m.tool_calls %}{% for c in m.tool_calls %}{% if c.id | length != 9 %}{{ raise_exception('9!') }}{% endif %}"
        "{{ '[TOOL_CALLS]' + c.function.name + '[CALL_ID]' + c.id + '[ARGS]' + c.function.arguments | tojson }}{% endfor %}{{ eos_token }}"
        "{% elif m.role == 'assistant' %}{{ m.content + eos_token }}{% else %}"
        "{{ '[TOOL_RESULTS]' + m.tool_call_id + '[TOOL_CONTENT]' + m.content + '[/TOOL_RESULTS]' }}{% endif %}{% endfor %}",
        (
            "[INST]",
            "[/INST]",
            "[TOOL_CALLS]",
            "[CALL_ID]",
            "[ARGS]",
            "[TOOL_RESULTS]",
            "[TOOL_CONTENT]",
            "[/TOOL_RESULTS]",
        ),
        '[TOOL_CALLS]search[CALL_ID]x1y2z3x1y[ARGS]{"query": "who?", "limit": 3}</s>',
        again="[TOOL_CALLS]search[CALL_ID]",
    ),
    "devstral": Family(
        "{{ bos_token }}{% if tools %}{{ '[AVAILABLE_TOOLS]' }}{{ tools | tojson }}{{ '[/AVAILABLE_TOOLS]' }}{% endif %}{% for m in messages %}"
        "{% if m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}{% elif m.role == 'assistant' %}{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{{ '[TOOL_CALLS]' + c.function.name + '[ARGS]' }}{{ c.function.arguments | tojson }}{% endfor %}{{ eos_token }}{% else %}"
        "{{ '[TOOL_RESULTS]' + m.tool_call_id + '[TOOL_CONTENT]' + m.content + '[/TOOL_RESULTS]' }}{% endif %}{% endfor %}",
        (
            "[INST]",
            "[/INST]",
            "[TOOL_CALLS]",
            "[ARGS]",
            "[TOOL_RESULTS]",
            "[TOOL_CONTENT]",
            "[/TOOL_RESULTS]",
        ),
        '[TOOL_CALLS]search[ARGS]{"query": "who?", "limit": 3}</s>',
    ),
    "llama-3.1": Family(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}{{ '<|start_header_id|>ipython<|end_header_id|>\n\n' }}{{ m.content | tojson }}"
        "{{ '<|eot_id|>' }}{% elif m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one at a time') }}{% endif %}"
        "{% set f = m.tool_calls[0].function %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
        "{{ '{\"name\": \"' + f.name + '\", \"parameters\": ' }}{{ f.arguments | tojson }}{{ '}<|eot_id|>' }}{% else %}"
        "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}{% if loop.first %}{% for t in tools or [] %}{{ t | tojson(indent=4) }}{% endfor %}"
        "{% endif %}{{ m.content | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>"),
        '<|python_tag|>{"name": "search", "parameters": {"query": "who?", "limit": 3}}<|eot_id|>',
        again='\n\n{"name": "search", "parameters": {"query": "who?", "limit": 3}}<|eot_id|>',
    ),
    "llama-4": Family(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}{{ '<|header_start|>ipython<|header_end|>\n\n' }}{{ m.content | tojson }}{{ '<|eot|>' }}"
        "{% elif 'tool_calls' in m %}{{ '<|header_start|>assistant<|header_end|>\n\n<|python_start|>' + m.content + '<|python_end|>' }}"
        "{% for c in m.tool_calls %}{{ '{\"name\": \"' + c.function.name + '\", \"parameters\": ' }}{{ c.function.arguments | tojson }}{{ '}' }}{% endfor %}"
        "{{ '<|eot|>' }}{% else %}{{ '<|header_start|>' + m.role + '<|header_end|>\n\n' }}{% if loop.first %}{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
        "{% endif %}{{ m.content + '<|eot|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|header_start|>assistant<|header_end|>\n\n' }}{% endif %}",
        ("<|header_start|>", "<|header_end|>", "<|eot|>", "<|python_start|>", "<|python_end|>"),
        '<|python_start|>{"name": "search", "parameters": {"query": "who?", "limit": 3}}<|python_end|><|eot|>',
        again='<|python_end|>{"name": "search", "parameters": {"query": "who?", "limit": 3}}<|eot|>',
    ),
    "granite-3.3": Family(
        "{% if tools %}{{ '<|start_of_role|>system<|end_of_role|>You have tools. Respond only with <|tool_call|> followed by a JSON list of tools used.'"
        " + '<|end_of_text|>\n<|start_of_role|>available_tools<|end_of_role|>' }}{{ tools | tojson }}{{ '<|end_of_text|>\n' }}{% endif %}"
        "{% for m in messages %}{{ '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}",
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<|tool_call|>"),
        f"<|tool_call|>[{_JSON}]<|end_of_text|>",
    ),
    "granite-4": Family(
        "{% if tools %}{{ '<|start_of_role|>system<|end_of_role|>' }}{% for t in tools %}{{ t | tojson }}{% endfor %}{{ '<|end_of_text|>\n' }}{% endif %}"
        "{% for m in messages %}{{ '<|start_of_role|>' + ('user' if m.role == 'tool' else m.role) + '<|end_of_role|>' }}"
        "{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' if m.role == 'tool' else m.content }}"
        + _EACH
        + _TAGGED
        + "{% endfor %}"
        "{{ '<|end_of_text|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}",
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
        f"<tool_call>\n{_JSON}\n</tool_call><|end_of_text|>",
        added=("<tool_call>", "</tool_call>"),
    ),
    "gemma-4": Family(
        "{% macro value(v) %}{% if v is string %}{{ '<|\"|>' + v + '<|\"|>' }}{% elif v is boolean %}{{ 'true' if v else 'false' }}"
        "{% elif v is mapping %}{{ '{' }}{% for k, e in v | dictsort %}{{ ',' if not loop.first }}{{ k + ':' }}{{ value(e) }}{% endfor %}{{ '}' }}"
        "{% elif v is sequence %}{{ '[' }}{% for e in v %}{{ ',' if not loop.first }}{{ value(e) }}{% endfor %}{{ ']' }}{% else %}{{ v }}{% endif %}{% endmacro %}"
        "{{ bos_token + '<|turn>system\n' }}{% if enable_thinking | default(false) %}{{ '<|think|>' }}{% endif %}{% for t in tools or [] %}"
        "{{ '<|tool>declaration:' + t.function.name + '{description:<|\"|>' + t.function.description + '<|\"|>}<tool|>' }}{% endfor %}{{ '<turn|>\n' }}"
        "{% for m in messages %}{{ '<|turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}{% for c in m.tool_calls or [] %}"
        "{{ '<|tool_call>call:' + c.function.name }}{{ value(c.function.arguments) }}{{ '<tool_call|>' }}{% endfor %}"
        "{% for part in m.content.split('<channel|>') %}{{ part.split('<|channel>')[0] | trim }}{% endfor %}{{ '<turn|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|turn>model\n' }}{% if not enable_thinking | default(false) %}{{ '<|channel>thought\n<channel|>' }}{% endif %}{% endif %}",
        (
            "<|turn>",
            "<turn|>",
            "<|channel>",
            "<channel|>",
            "<|think|>",
            "<|tool_call>",
            "<tool_call|>",
            '<|"|>',
            "<|tool>",
            "<tool|>",
        ),
        '<|channel>thought\nhm\n<channel|><|tool_call>call:search{limit:3,query:<|"|>who?<|"|>}<tool_call|><turn|>',
        "hm",
        again='<|turn>model\n<|tool_call>call:search{limit:3,query:<|"|>who?<|"|>}<tool_call|><turn|>',
    ),
    "phi-4-mini": Family(
        "{% for m in messages %}{% if m['role'] == 'system' and 'tools' in m and m['tools'] is not none %}"
        "{{ '<|system|>' + m['content'] + '<|tool|>' + m['tools'] + '<|/tool|><|end|>' }}{% else %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}".replace(
            "m[", "message["
        )
        .replace(" m in", " message in")
        .replace("in m ", "in message "),
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        f"<|tool_call|>[{_JSON}]<|/tool_call|><|end|>",
        added=("<|tool|>", "<|/tool|>", "<|tool_call|>", "<|/tool_call|>"),
    ),
    "phi-4-mini-served": Family(
        "{{ '<|system|>\n' }}{% for t in tools or [] %}{{ t | tojson(indent=4) }}{% endfor %}{{ '<|end|>' }}{% for m in messages %}{{ '<|' + m.role + '|>' }}"
        "{% if m.content %}{{ '\n' + m.content }}{% else %}{% for c in m.tool_calls %}{{ '\n{\"name\": \"' + c.function.name + '\", \"arguments\": ' }}"
        "{{ c.function.arguments }}{{ '}' }}{% endfor %}{% endif %}{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        f"{_JSON}<|end|>",
    ),
    "deepseek-v3": Family(
        _DEEPSEEK.replace(
            "CALL",
            "{{ '<｜tool▁call▁begin｜>' + c.type + '<｜tool▁sep｜>' + c.function.name + '\n```json\n' + c.function.arguments | tojson + '\n```' + '<｜tool▁call▁end｜>' }}",
        ),
        _DEEPSEEK_TOKENS,
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>search\n```json\n{"query": "who?", "limit": 3}\n```<｜tool▁call▁end｜>'
        "<｜tool▁calls▁end｜><｜end▁of▁sentence｜>",
    ),
    "deepseek-v3.1": Family(
        "{% set ns = namespace(asked=false) %}{{ bos_token }}{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}"
        "{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}{% set ns.asked = true %}{% elif m.role == 'tool' %}"
        "{{ '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' }}{% elif m.tool_calls %}{% if ns.asked %}{{ '<｜Assistant｜></think>' }}{% endif %}"
        "{{ '    ' }}{% for c in m.tool_calls %}{% if loop.first %}{{ (m.content or '') + '<｜tool▁calls▁begin｜>' }}{% endif %}"
        "{{ '<｜tool▁call▁begin｜>' + c.function.name + '<｜tool▁sep｜>' + c.function.arguments + '<｜tool▁call▁end｜>' }}{% endfor %}"
        "{{ '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}{% set ns.asked = false %}{% else %}"
        "{% if ns.asked %}{{ '<｜Assistant｜>\n</think>' }}{% endif %}{{ m.content + '<｜end▁of▁sentence｜>' }}{% set ns.asked = false %}{% endif %}{% endfor %}"
        "{% if add_generation_prompt and ns.asked %}{{ '<｜Assistant｜>' + ('<think>' if thinking else '</think>') }}{% endif %}",
        _DEEPSEEK_TOKENS,
        'hm</think>Let me look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>search<｜tool▁sep｜>{"query": "who?", "limit": 3}<｜tool▁call▁end｜>'
        "<｜tool▁calls▁end｜><｜end▁of▁sentence｜>",
        "hm",
        "Let me look.",
        _THINK,
    ),
    "glm-4.5": Family(
        "[gMASK]<sop>{% for t in tools or [] %}{{ '<|system|>\n' }}{{ t | tojson }}{% endfor %}{% for m in messages %}{% if m.role == 'assistant' %}"
        "{{ '<|assistant|>\n<think>' + (m.reasoning_content or '') + '</think>' }}{% if m.content.strip() %}{{ '\n' + m.content.strip() }}{% endif %}"
        + _EACH
        + "{{ '\n<tool_call>' + f.name + '\n' }}{% for k, v in f.arguments.items() %}{{ '<arg_key>' + k + '</arg_key>\n<arg_value>' }}"
        "{{ v if v is string else v | tojson }}{{ '</arg_value>\n' }}{% endfor %}{{ '</tool_call>' }}{% endfor %}{% elif m.role == 'tool' %}"
        "{{ '<|observation|>\n<tool_response>\n' + m.content + '\n</tool_response>' }}{% else %}{{ '<|' + m.role + '|>\n' + m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{{ '\n<think></think>' if enable_thinking is defined and not enable_thinking }}{% endif %}",
        ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
        "\n<think>hm</think>\nLet me look.\n<tool_call>search\n<arg_key>query</arg_key>\n<arg_value>who?</arg_value>\n<arg_key>limit</arg_key>\n"
        "<arg_value>3</arg_value>\n</tool_call><|observation|>",
        "hm",
        "Let me look.",
        (*_THINK, "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
        again="</think>\nLet me look.\n<tool_call>search\n<arg_key>query</arg_key>",
    ),
    "kimi-k2": Family(
        "{% if tools %}{{ '<|im_system|>tool_declare<|im_middle|>' }}{{ tools | tojson }}{{ '<|im_end|>' }}{% endif %}{% for m in messages %}"
        "{{ '<|im_' + ('system' if m.role in ['system', 'tool'] else m.role) + '|>' + m.role + '<|im_middle|>' }}"
        "{% if m.role == 'assistant' %}{{ '<think>' + (m.reasoning_content or '') + '</think>' }}{% endif %}"
        "{% if m.role == 'tool' %}{{ '## Return of ' + m.tool_call_id + '\n' }}{% endif %}{{ m.content }}{% if m.tool_calls %}"
        "{{ '<|tool_calls_section_begin|>' }}{% for c in m.tool_calls %}{{ '<|tool_call_begin|>' + c.id + '<|tool_call_argument_begin|>' }}"
        "{{ c.function.arguments if c.function.arguments is string else c.function.arguments | tojson }}{{ '<|tool_call_end|>' }}{% endfor %}"
        "{{ '<|tool_calls_section_end|>' }}{% endif %}{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_assistant|>assistant<|im_middle|>' }}{% endif %}",
        _KIMI_TOKENS,
        f"<think>hm</think>Let me look.{_KIMI_CALL}<|im_end|>",
        "hm",
        "Let me look.",
        _THINK,
        again=f"</think>Let me look.{_KIMI_CALL}<|im_end|>",
    ),
    "kimi-k2-first": Family(
        "{% if tools %}{{ '<|im_system|>tool_declare<|im_middle|>' }}{{ tools | tojson }}{{ '<|im_end|>' }}{% endif %}{% for m in messages %}"
        "{{ '<|im_' + ('system' if m.role in ['system', 'tool'] else m.role) + '|>' + m.role + '<|im_middle|>' }}"
        "{% if m.role == 'tool' %}{{ '## Return of ' + m.tool_call_id + '\n' }}{% endif %}{{ m.content }}{% if m.tool_calls %}"
        "{{ '<|tool_calls_section_begin|>' }}{% for c in m.tool_calls %}{{ '<|tool_call_begin|>functions.' + c.function.name + ':' + loop.index0 | string }}"
        "{{ '<|tool_call_argument_begin|>' + c.function.arguments | tojson + '<|tool_call_end|>' }}{% endfor %}{{ '<|tool_calls_section_end|>' }}{% endif %}"
        "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_assistant|>assistant<|im_middle|>' }}{% endif %}",
        _KIMI_TOKENS,
        f"Let me look.{_KIMI_CALL}<|im_end|>",
        text="Let me look.",
        again=f"Let me look.{_KIMI_CALL}<|im_end|><|im_system|>tool<|im_middle|>## Return of functions.search:0\n",
    ),
    "kimi-k3": Family(
        "{% macro open(tag) %}{{ '<|open|>' + tag + '<|sep|>' }}{% endmacro %}{% macro close(tag) %}{{ '<|close|>' + tag + '<|sep|>' }}{% endmacro %}"
        '{% if thinking is undefined %}{% set thinking = true %}{% endif %}{% if tools %}{{ open(\'message role="system" type="tool-declare"\') }}{{ tools | tojson }}'
        "{{ close('message') + '<|end_of_msg|>' }}{% endif %}{% for m in messages %}{{ open('message role=\"' + m.role + '\"') }}{% if m.role == 'assistant' %}"
        "{% if thinking %}{{ open('think') }}{{ m.reasoning_content or '' }}{{ close('think') }}{% endif %}{{ open('response') }}{{ m.content }}{{ close('response') }}"
        "{% if m.tool_calls %}{{ open('tools') }}{% for c in m.tool_calls %}{{ open('call tool=\"' + c.function.name + '\" index=\"' + loop.index | string + '\"') }}"
        "{% for k, v in c.function.arguments.items() %}{{ open('argument key=\"' + k + '\" type=\"' + ('string' if v is string else 'number') + '\"') }}"
        "{{ v if v is string else v | tojson }}{{ close('argument') }}{% endfor %}{{ close('call') }}{% endfor %}{{ close('tools') }}{% endif %}"
        "{% else %}{{ m.content }}{% endif %}{{ close('message') + '<|end_of_msg|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ open('message role=\"assistant\"') }}{{ open('think' if thinking else 'response') }}{% endif %}",
        ("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"),
        f"hm<|close|>think<|sep|><|open|>response<|sep|>Let me look.<|close|>response<|sep|>{_KIMI_K3_CALL}<|close|>message<|sep|><|end_of_msg|>",
        "hm",
        "Let me look.",
        again=f"Let me look.<|close|>response<|sep|>{_KIMI_K3_CALL}<|close|>message<|sep|>",
    ),
}

REFUSED = {
    "gemma-3": (
        "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + '<end_of_turn>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        ("<start_of_turn>", "<end_of_turn>"),
    ),
}
"""Templates that have no place for tools."""
