"""Write the page's parts as HTML. Every text that isn't ours is escaped, so that a document can't run as part of the page."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape
from typing import TYPE_CHECKING

from spring_rag.playground.ways import Reply, ShownPrompt

if TYPE_CHECKING:
    from chroma_spring_rag import Passage

STYLE = """
.replies { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(240px, 1fr)); }
.reply, .passage, .prompt { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 10px 12px; }
.reply b, .passage b { color: var(--body-text-color); }
.reply .text, .passage .text, .prompt { white-space: pre-wrap; overflow-wrap: anywhere; }
.passage { margin-bottom: 8px; max-height: 14em; overflow-y: auto; }
.passage.cited { background: var(--color-accent-soft); border-color: var(--color-accent); }
.small { color: var(--body-text-color-subdued); font-size: 85%; }
.error { color: var(--error-text-color, #b91c1c); }
.slot { background: var(--color-accent); border-radius: 4px; color: white; padding: 0 6px; }
.bar { background: var(--border-color-primary); border-radius: 4px; height: 10px; margin-top: 4px; }
.bar div { background: var(--color-accent); border-radius: 4px; height: 10px; }
"""


def replies_html(replies: Sequence[Reply]) -> str:
    """Return a card for each way that answers."""
    return f'<div class="replies">{"".join(map(_reply, replies))}</div>'


def _reply(reply: Reply) -> str:
    if reply.error:
        state, text = "no answer", f'<span class="error">{escape(reply.error)}</span>'
    else:
        text = escape(reply.text) or ("…" if reply.generated is None else "(nothing)")
        waiting = "waiting" if not reply.seconds else f"{reply.seconds:.1f} s"
        state = waiting if reply.generated is None else f"{waiting}, {reply.generated} tokens"
    return (
        f'<div class="reply"><b>{escape(reply.way.label)}</b> <span class="small">{state}</span>'
        f'<div class="text">{text}</div></div>'
    )


def passages_html(passages: Sequence[Passage], cited: Collection[int] = ()) -> str:
    """Return the retrieved passages, closest first; those whose number (from 1) is in `cited` are highlighted."""
    return "".join(_passage(number, each, number in cited) for number, each in enumerate(passages, 1))


def _passage(number: int, passage: Passage, cited: bool) -> str:
    score = "" if passage.score is None else f"score {passage.score:.3f}"
    return (
        f'<div class="passage{" cited" if cited else ""}"><b>[{number}] {escape(passage.source)}</b> '
        f'<span class="small">{score}</span><div class="text">{escape(passage.text)}</div></div>'
    )


def prompt_html(prompt: ShownPrompt) -> str:
    """Return the whole prompt with its slot marked."""
    slot = f"{prompt.virtual} virtual tokens" if prompt.virtual else "empty slot"
    left_out = f'<p class="small">{prompt.dropped} passages found no room</p>' if prompt.dropped else ""
    return (
        f'{left_out}<div class="prompt">{escape(prompt.context)}<span class="slot">{slot}</span>'
        f"{escape(prompt.suffix)}</div>"
    )


def answerable_html(probability: float) -> str:
    """Return a bar that shows how likely the passages hold the answer."""
    percent = f"{100 * probability:.0f}"
    return (
        f"<div>The passages hold the answer: <b>{percent} %</b>"
        f'<div class="bar"><div style="width: {percent}%"></div></div></div>'
    )
