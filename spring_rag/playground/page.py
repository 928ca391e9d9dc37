"""Build and serve the page, with Gradio."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from spring_rag.errors import SpringError
from spring_rag.extras import extra
from spring_rag.playground.cards import STYLE, answerable_html, passages_html, prompt_html, replies_html
from spring_rag.playground.ways import Way, answer_ways, shown_prompt, told_by_skills

with extra("playground"):
    import gradio as gr

if TYPE_CHECKING:
    from chroma_spring_rag import ChromaQA

MOST_PASSAGES = 20
MOST_NEW_TOKENS = 512
_TITLE = "spring-rag playground"
_FONT = ("ui-sans-serif", "system-ui", "sans-serif")
_FONT_MONO = ("ui-monospace", "Consolas", "monospace")


def build(qa: ChromaQA, ways: Sequence[Way]) -> gr.Blocks:
    """Build the page for one collection and one backbone.

    Args:
        qa: retrieves the passages, and has the backbone.
        ways: the ways to compare; all are selected at first.
    """
    by_label = {way.label: way for way in ways}

    def ask(
        question: str, chosen: list[str], top_k: int, max_new_tokens: int
    ) -> Iterator[tuple[str, str, str, str]]:
        """Yield the HTML of the replies, the bar, the passages and the prompt, after every piece of text."""
        if not question.strip():
            msg = "The question is empty."
            raise gr.Error(msg, print_exception=False)
        if not chosen:
            msg = "Choose at least one way to answer."
            raise gr.Error(msg, print_exception=False)
        picked = [by_label[label] for label in chosen]
        try:
            found = qa.retrieve(question, top_k=int(top_k))
            texts = [passage.text for passage in found]
            prompt = prompt_html(shown_prompt(qa.model, question, texts, picked[-1], int(max_new_tokens)))
            told = told_by_skills(qa.model, question, texts)
        except SpringError as error:
            raise gr.Error(str(error), print_exception=False) from error
        bar = answerable_html(told.answerable) if told and told.answerable is not None else ""
        passages = passages_html(found, told.citations if told else ())
        for replies in answer_ways(qa.model, question, texts, picked, int(max_new_tokens)):
            yield replies_html(replies), bar, passages, prompt

    page = gr.Blocks(title=_TITLE, analytics_enabled=False)
    with page:
        gr.Markdown(
            f"# {_TITLE}\nThe same frozen model over the same passages, with and without virtual tokens."
        )
        question = gr.Textbox(label="Question", placeholder="Ask your documents", autofocus=True)
        with gr.Row():
            chosen = gr.CheckboxGroup(list(by_label), value=list(by_label), label="Answer by", scale=3)
            top_k = gr.Slider(1, MOST_PASSAGES, value=qa.top_k, step=1, label="Passages")
            most = gr.Slider(1, MOST_NEW_TOKENS, value=48, step=1, label="Most tokens")
        button = gr.Button("Ask", variant="primary")
        bar = gr.HTML(elem_id="answerable")
        replies = gr.HTML(elem_id="replies")
        with gr.Accordion("Passages", open=True):
            passages = gr.HTML(elem_id="passages")
        with gr.Accordion("The prompt of the last way, as the backbone reads it", open=False):
            prompt = gr.HTML(elem_id="prompt")
        gr.on(
            [button.click, question.submit],
            ask,
            [question, chosen, top_k, most],
            [replies, bar, passages, prompt],
            show_progress="minimal",
        )
    return page


def launch(page: gr.Blocks, host: str, port: int, *, block: bool = True) -> str:
    """Serve the page; return its address at once or, with `block`, after the page is stopped.

    Raises:
        OSError: the page can't listen at this address.
    """
    try:
        _, address, _ = page.queue().launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=not block,
            share=False,
            quiet=True,
            css=STYLE,
            theme=gr.themes.Default(font=_FONT, font_mono=_FONT_MONO),
            footer_links=[],
        )
    except OSError as error:
        msg = f"the page can't listen at {host}:{port}, which something else may use; name another port"
        raise OSError(msg) from error
    return str(address)
