"""The toy's questions as prompts, and a comparison of answers."""

import json

from toy_parts import ANSWERABLE, text_of

from spring_rag import RagPrompt


def toy_prompts(count, passages=4):
    """Prompts whose passages are the question's own document and its neighbours."""
    questions = ANSWERABLE[:count]
    texts = [text_of(each).strip() for each in questions]
    return [
        RagPrompt(each.question, [texts[(i + j) % count] for j in range(passages)])
        for i, each in enumerate(questions)
    ]


def same(found, expected):
    """Nothing, or a message that shows the first answer that differs."""
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        if (one.text, one.token_ids, one.usage, one.finish_reason) != (
            other.text,
            other.token_ids,
            other.usage,
            other.finish_reason,
        ):
            return json.dumps([number, str(one), str(other)], indent=1, ensure_ascii=False)
    return None
