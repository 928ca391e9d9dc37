"""Test SpringLLM: every method of a LlamaIndex language model gives the same answers as SpringModel."""

import asyncio
import inspect
import pickle
import re
import textwrap
from concurrent.futures import ThreadPoolExecutor

import llama_index.core
import pytest
from llama_index.core import Settings
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate
from llama_index_parts import FACTS, QUESTION, SLOT, chroma_index, shown_prompt, spring_model
from thinking_parts import FAMILIES, tokenizer_of, writing

from llama_index.llms.spring_rag import (
    NumberedPassages,
    SpringLLM,
    render_text,
    upgrade_engine,
    with_virtual_tokens,
)
from llama_index.llms.spring_rag.responses import completions
from spring_rag import Prompt, RagPrompt, RagTemplate, Slot, SpringModel
from spring_rag.backends.base import Generation, Usage
from spring_rag.encoding import encode
from spring_rag.errors import PromptError, PromptTooLongError
from spring_rag.prompt import SLOT_MARKER, Message, Text
from spring_rag.rendering import render
from spring_rag.stream import Stream

RAG = RagPrompt(QUESTION, FACTS[:2])
MESSAGES = [
    ChatMessage(role="system", content=f"Facts: {FACTS[0]}"),
    ChatMessage(role="user", content=QUESTION),
]
CHAT = Prompt(messages=(Message("system", (Text(f"Facts: {FACTS[0]}"),)), Message("user", (Text(QUESTION),))))


@pytest.fixture(scope="module")
def model(tokenizer, make_tokens):
    """A plain text backbone with tokens."""
    model = spring_model(tokenizer, make_tokens(6), chat=False)
    with pytest.warns(UserWarning, match="don't record their backbone"):
        model.add_tokens("other", make_tokens(3, seed=1))
    return model


@pytest.fixture(scope="module")
def chat_model(tokenizer, make_tokens):
    tokens = make_tokens(6, template=RagTemplate(chat=True))
    return spring_model(tokenizer, tokens, chat=True)


@pytest.fixture
def llm(model):
    return SpringLLM(model=model, max_tokens=12)


@pytest.fixture
def chat_llm(chat_model):
    return SpringLLM(model=chat_model, max_tokens=12)


def expected(model, prompt, **settings):
    return model.generate([prompt], **{"max_new_tokens": 12, **settings})[0]


async def collected(generator):
    return [each async for each in await generator]


async def test_complete_in_every_form(llm, model):
    text = render_text(RAG)
    wanted = expected(model, RAG).text.strip()
    assert wanted
    assert wanted != expected(model, RAG, num_tokens=0).text.strip(), "the tokens change nothing"
    streamed = list(llm.stream_complete(text))
    astreamed = await collected(llm.astream_complete(text))
    assert llm.complete(text).text == wanted
    assert (await llm.acomplete(text)).text == wanted
    for responses in (streamed, astreamed):
        assert "".join(each.delta for each in responses) == wanted
        assert responses[-1].text == wanted
        assert len(responses) > 2


async def test_chat_in_every_form(chat_llm, chat_model):
    wanted = expected(chat_model, CHAT).text.strip()
    streamed = list(chat_llm.stream_chat(MESSAGES))
    astreamed = await collected(chat_llm.astream_chat(MESSAGES))
    assert chat_llm.chat(MESSAGES).message.content == wanted
    assert (await chat_llm.achat(MESSAGES)).message.content == wanted
    for responses in (streamed, astreamed):
        assert "".join(each.delta for each in responses) == wanted
        assert responses[-1].message.content == wanted
        assert responses[-1].message.role is MessageRole.ASSISTANT


async def test_predict_in_every_form(llm, chat_llm):
    template = with_virtual_tokens(PromptTemplate("{context_str}\n\nQ: {query_str}\nA:"))
    values = {"context_str": FACTS[0], "query_str": QUESTION}
    prompt = Prompt(parts=(Text(f"{FACTS[0]}\n\n"), Slot(), Text(f"Q: {QUESTION}\nA:")))
    for each, wanted_prompt in ((llm, prompt), (chat_llm, Prompt(messages=(Message("user", prompt.parts),)))):
        wanted = expected(each.model, wanted_prompt).text.strip()
        assert each.predict(template, **values) == wanted
        assert await each.apredict(template, **values) == wanted
        assert "".join(each.stream(template, **values)) == wanted
        assert "".join(await collected(each.astream(template, **values))) == wanted


def test_settings_at_construction_and_per_call(model):
    text = render_text(RAG)
    llm = SpringLLM(
        model=model, max_tokens=9, num_tokens=2, tokens="other", temperature=0.8, top_p=0.9, top_k=20, seed=3
    )
    settings = {"num_tokens": 2, "tokens": "other", "temperature": 0.8, "top_p": 0.9, "top_k": 20, "seed": 3}
    assert llm.complete(text).text == expected(model, RAG, max_new_tokens=9, **settings).text.strip()
    per_call = {
        "num_tokens": 5,
        "tokens": None,
        "temperature": 0.0,
        "max_tokens": 5,
        "stop": ["e"],
        "seed": None,
    }
    wanted = expected(model, RAG, num_tokens=5, max_new_tokens=5, stop=["e"]).text.strip()
    assert llm.complete(text, **per_call).text == wanted
    assert list(llm.stream_complete(text, **per_call))[-1].text == wanted


def test_names_of_other_models(model):
    llm = SpringLLM(model=model, max_new_tokens=5, temperature=None, generate_kwargs={"top_k": 7})
    assert (llm.max_tokens, llm.temperature, llm.top_k) == (5, 0.0, 7)
    short = llm.complete(render_text(RAG), max_new_tokens=3, temperature=None).text
    assert short == expected(model, RAG, max_new_tokens=3).text.strip()
    with pytest.raises(ValueError, match="repetition_penalty=1.3 isn't supported"):
        SpringLLM(model=model, repetition_penalty=1.3)
    with pytest.raises(ValueError, match="repetition_penalty=1.3 isn't supported"):
        llm.complete("a", repetition_penalty=1.3)


def test_usage_and_finish_reason(llm, model):
    generation = expected(model, RAG)
    response = llm.complete(render_text(RAG))
    prompt_tokens = generation.usage.context + 6 + generation.usage.suffix
    assert response.additional_kwargs == {
        "finish_reason": generation.finish_reason,
        "prompt_tokens": prompt_tokens,
        "context_tokens": generation.usage.context,
        "virtual_tokens": 6,
        "completion_tokens": generation.usage.generated,
    }
    assert list(llm.stream_complete(render_text(RAG)))[-1].additional_kwargs == response.additional_kwargs
    counter = TokenCountingHandler(tokenizer=str.split)
    SpringLLM(model=model, max_tokens=12, callback_manager=CallbackManager([counter])).complete(
        render_text(RAG)
    )
    assert counter.prompt_llm_token_count == prompt_tokens
    assert counter.completion_llm_token_count == generation.usage.generated


def test_metadata_is_true(llm, chat_llm, model, tokenizer, make_tokens):
    assert llm.metadata.context_window == 4096 - 6
    assert SpringLLM(model=model, num_tokens=2).metadata.context_window == 4096 - 2
    assert llm.metadata.num_output == 12
    assert not llm.metadata.is_chat_model
    assert chat_llm.metadata.is_chat_model
    assert llm.metadata.model_name == model.backend.model_id or llm.metadata.model_name == "unknown"
    assert SpringLLM(model=spring_model(tokenizer, None, chat=True)).metadata.is_chat_model
    # Tokens that were trained on texts get texts, though the backbone could chat.
    trained_on_texts = SpringLLM(model=spring_model(tokenizer, make_tokens(2), chat=True))
    assert not trained_on_texts.metadata.is_chat_model
    assert SpringLLM(model=trained_on_texts.model, is_chat_model=True).metadata.is_chat_model


def test_a_full_window_fits_and_one_token_more_does_not(tokenizer, make_tokens):
    llm = SpringLLM(model=spring_model(tokenizer, make_tokens(6), chat=False, positions=96), max_tokens=12)
    room = llm.metadata.context_window - llm.metadata.num_output
    text = "1" * room
    while len(tokenizer(text)["input_ids"]) > room:
        text = text[:-1]
    prompt = render_text(Prompt(parts=(Slot(), Text(text))))
    assert len(tokenizer(text)["input_ids"]) == room
    assert llm.complete(prompt).additional_kwargs["virtual_tokens"] == 6
    with pytest.raises(PromptTooLongError):
        llm.complete(prompt + "1")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_tokens": 7}, "from 0 to 6"),
        ({"tokens": "nobody"}, "nobody"),
        ({"temperature": -1.0}, "temperature"),
        ({"is_chat_model": True}, "no chat template"),
        ({"num_token": 3}, "takes no num_token; its settings are num_tokens, tokens"),
        ({"model_kwargs": {}}, "takes no model_kwargs.*goes to SpringLLM.from_pretrained"),
    ],
)
def test_wrong_settings_fail_at_construction(model, settings, message):
    with pytest.raises(ValueError, match=message):
        SpringLLM(model=model, **settings)


@pytest.mark.parametrize(
    "settings", [{"beams": 4}, {"num_tokens": 7}, {"tokens": "nobody"}, {"max_tokens": 0}]
)
def test_wrong_settings_fail_at_the_call(llm, settings):
    with pytest.raises(ValueError):
        llm.complete("a", **settings)
    with pytest.raises(ValueError):
        llm.stream_complete("a", **settings)


async def test_errors_reach_asynchronous_callers(llm):
    for call in (llm.acomplete, llm.astream_complete):
        with pytest.raises(PromptTooLongError):
            await call("a" * 20000)


def test_complete_of_a_chat_model_is_a_users_message(chat_llm, chat_model):
    chat_llm.complete("Hello")
    assert chat_model.prompts[-1] == Prompt(messages=(Message("user", (Text("Hello"),)),), thinking=False)
    chat_llm.complete("Hello", formatted=True)
    assert chat_model.prompts[-1] == Prompt(parts=(Text("Hello"),))
    own = SpringLLM(model=chat_model, max_tokens=2, completion_to_prompt=lambda text: f"<<{text}>>")
    own.complete("Hello")
    assert shown_prompt(chat_model.prompts[-1]) == "<<Hello>>"


def test_chat_without_a_chat_template(llm, model):
    llm.chat(MESSAGES)
    assert shown_prompt(model.prompts[-1]) == f"system: Facts: {FACTS[0]}\nuser: {QUESTION}\nassistant: "
    own = SpringLLM(model=model, max_tokens=2, messages_to_prompt=lambda messages: messages[-1].content)
    own.chat(MESSAGES)
    assert shown_prompt(model.prompts[-1]) == QUESTION


def test_slot_in_one_of_several_messages(chat_llm, chat_model):
    template = with_virtual_tokens(
        ChatPromptTemplate.from_messages([("system", "{context_str}"), ("user", "Q: {query_str}")])
    )
    messages = template.format_messages(context_str="C", query_str="Q?")
    response = chat_llm.chat(messages)
    assert shown_prompt(chat_model.prompts[-1]) == f"[system] C\n[user] {SLOT}Q: Q?"
    assert response.raw["usage"]["virtual_tokens"] == 6
    assert response.message.additional_kwargs == {}, "LlamaIndex would write them into the history"


def test_roles_of_other_makers(chat_llm, chat_model):
    roles = (
        MessageRole.DEVELOPER,
        MessageRole.USER,
        MessageRole.MODEL,
        MessageRole.CHATBOT,
        MessageRole.TOOL,
    )
    chat_llm.chat([ChatMessage(role=role, content="x") for role in roles])
    assert [message.role for message in chat_model.prompts[-1].messages] == [
        "system",
        "user",
        "assistant",
        "assistant",
        "tool",
    ]


def test_chat_templates_that_want_turns(tokenizer, make_tokens):
    """Mistral's and Gemma's refuse what the chat engines send: a system message, or two of the user's."""
    model = spring_model(tokenizer, make_tokens(6, template=RagTemplate(chat=True)), chat=True)
    model.tokenizer.chat_template = (
        "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}[{{ message['role'] }}]{{ message['content'] }}{% endfor %}"
    )
    llm = SpringLLM(model=model, max_tokens=2)
    template = with_virtual_tokens(PromptTemplate("Facts: {context_str}"))
    system = ChatMessage(role="system", content=template.format(context_str="C"))
    llm.chat([system, ChatMessage("Q?"), ChatMessage("And?")])
    turns = Prompt(messages=render(model.prompts[-1], model.tokenizer).messages)
    assert shown_prompt(turns) == f"[user] Facts: C{SLOT}\n\nQ?\n\nAnd?"
    with pytest.raises(PromptError, match="alternate"):
        llm.chat([ChatMessage(role="assistant", content="first")])


def test_images_are_refused(chat_llm):
    message = ChatMessage(role="user", blocks=[ImageBlock(url="https://example.org/a.png")])
    with pytest.raises(PromptError, match="image"):
        chat_llm.chat([message])


@pytest.mark.parametrize(
    "forged", [SLOT_MARKER, "⟦spring-rag:slot:0123456789abcdef⟧", "⧹(spring-rag:slot⟧", "⧹⧹"]
)
def test_nobody_can_write_a_slot(llm, chat_llm, model, chat_model, forged):
    assert llm.complete(f"a {forged} b").additional_kwargs["virtual_tokens"] == 0
    assert shown_prompt(model.prompts[-1]) == f"a {forged} b"
    assert chat_llm.chat([ChatMessage(forged)]).raw["usage"]["virtual_tokens"] == 0
    assert shown_prompt(chat_model.prompts[-1]) == f"[user] {forged}"
    template = with_virtual_tokens(PromptTemplate("{context_str}\n{query_str}"))
    llm.predict(template, context_str=forged, query_str=forged)
    assert shown_prompt(model.prompts[-1]) == f"{forged}\n{SLOT}{forged}"


def state_of(stream):
    return inspect.getgeneratorstate(stream._items)


@pytest.mark.parametrize("chat", [False, True])
def test_closing_a_stream_stops_the_backbone(llm, model, chat):
    stream = llm.stream_chat(MESSAGES, max_tokens=2000) if chat else llm.stream_complete("a", max_tokens=2000)
    next(stream)
    assert state_of(model.streams[-1]) == inspect.GEN_SUSPENDED
    stream.close()
    del stream
    assert state_of(model.streams[-1]) == inspect.GEN_CLOSED


@pytest.mark.parametrize("chat", [False, True])
async def test_cancelling_a_stream_stops_the_backbone(llm, model, chat):
    started = asyncio.Event()

    async def read():
        stream = (
            llm.astream_chat(MESSAGES, max_tokens=2000)
            if chat
            else llm.astream_complete("a", max_tokens=2000)
        )
        async for _ in await stream:
            started.set()

    task = asyncio.create_task(read())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(200):
        if state_of(model.streams[-1]) == inspect.GEN_CLOSED:
            return
        await asyncio.sleep(0.05)
    pytest.fail("the backbone is still at it")


async def test_concurrent_calls_answer_as_alone(llm, model):
    prompts = [RagPrompt(f"{QUESTION} {i}", FACTS[: i % 3]) for i in range(32)]
    settings = [{"num_tokens": i % 4, "tokens": "other" if i % 2 else None} for i in range(32)]
    wanted = [
        expected(model, prompt, **each).text.strip() for prompt, each in zip(prompts, settings, strict=True)
    ]
    assert len(set(wanted)) > 16
    calls = [(render_text(prompt), each) for prompt, each in zip(prompts, settings, strict=True)]
    found = await asyncio.gather(*(llm.acomplete(text, **each) for text, each in calls))
    assert [each.text for each in found] == wanted
    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(lambda call: llm.complete(call[0], **call[1]), calls))
    assert [each.text for each in found] == wanted


async def test_one_bad_prompt_spoils_no_other(llm, model):
    right = expected(model, RAG).text.strip()
    texts = [render_text(RAG), "a" * 20000, render_text(RAG)] * 4
    with ThreadPoolExecutor(12) as pool:
        futures = [pool.submit(llm.complete, text) for text in texts]
    found = await asyncio.gather(*(llm.acomplete(text) for text in texts), return_exceptions=True)
    for i, (future, other) in enumerate(zip(futures, found, strict=True)):
        if i % 3 == 1:
            assert isinstance(future.exception(), PromptTooLongError)
            assert isinstance(other, PromptTooLongError)
        else:
            assert future.result().text == other.text == right


async def test_asynchronous_calls_are_gathered(llm, model, monkeypatch):
    sizes: list[int] = []
    run = model.backend._gathering._run
    monkeypatch.setattr(
        model.backend._gathering, "_run", lambda found, *rest: sizes.append(len(found)) or run(found, *rest)
    )
    await asyncio.gather(*(llm.acomplete(render_text(RAG)) for _ in range(32)))
    assert sum(sizes) == 32
    assert len(sizes) <= 8, sizes


def test_serialises_without_its_model(llm):
    saved = llm.to_dict()
    assert saved["class_name"] == "SpringLLM"
    assert "model" not in saved
    assert SpringLLM.from_dict(saved, model=llm.model).max_tokens == 12
    assert llm.to_payload()["model_name"] == llm.metadata.model_name


def test_from_pretrained(llm, model, tmp_path, make_tokens):
    model.backend.hf_model.save_pretrained(tmp_path / "backbone")
    model.tokenizer.save_pretrained(tmp_path / "backbone")
    make_tokens(6).save_pt(tmp_path / "tokens.pt")
    with pytest.warns(UserWarning, match="don't record their backbone"):
        loaded = SpringLLM.from_pretrained(
            tmp_path / "backbone", tokens=tmp_path / "tokens.pt", device="cpu", max_tokens=12
        )
    assert loaded.complete(render_text(RAG)).text == llm.complete(render_text(RAG)).text
    assert loaded.metadata.model_name == str(tmp_path / "backbone")
    copied = pickle.loads(pickle.dumps(loaded))
    assert copied.model is loaded.model, "it was loaded twice"
    assert copied.complete(render_text(RAG)).text == loaded.complete(render_text(RAG)).text
    with pytest.raises(TypeError, match="made from a loaded SpringModel can't be pickled"):
        pickle.dumps(llm)


def test_streamed_pieces_make_up_the_stripped_answer():
    def pieces():
        yield from (" ", "", " a", " ", "\n", "b ", " ")
        yield Generation("  a \nb  ", "stop", Usage(1, 2, 3, 4), ())

    responses = list(completions(Stream(pieces())))
    assert [each.delta for each in responses] == ["a", " \nb", ""]
    assert [each.text for each in responses] == ["a", "a \nb", "a \nb"]
    assert responses[-1].raw["usage"]["prompt_tokens"] == 6


@pytest.mark.parametrize("documented", [SpringLLM, NumberedPassages, upgrade_engine])
def test_docstring_examples(documented, llm, capsys, monkeypatch):
    code = re.search(r"```python\n(.*?)```", inspect.getdoc(documented), re.DOTALL).group(1)
    monkeypatch.setattr(SpringLLM, "from_pretrained", lambda *_, **__: llm)
    monkeypatch.setattr(llama_index.core, "global_tokenizer", llm.model.tokenizer.encode)
    monkeypatch.setattr(Settings, "_llm", llm)
    names = {"index": chroma_index(), "NumberedPassages": NumberedPassages, "upgrade_engine": upgrade_engine}
    exec(textwrap.dedent(code), names)
    if "print" in code:
        printed = capsys.readouterr().out
        assert "virtual tokens: response_synthesizer:text_qa_template" in printed
        assert "left as it was: response_synthesizer:refine_template" in printed


WHERE = ChatMessage(role="user", content="Where?")


@pytest.fixture(scope="module")
def thinker():
    tokenizer = tokenizer_of("gpt-oss")
    prompt = Prompt(messages=(Message("user", (Text("Where?"),)),), thinking=True)
    written = FAMILIES["gpt-oss"].written
    return SpringLLM(
        model=SpringModel(writing(tokenizer, written, len(encode(prompt, tokenizer).ids)), tokenizer),
        thinking=True,
    )


class TestThinking:
    def test_thoughts_are_a_thinking_block(self, thinker):
        answer = thinker.chat([WHERE])
        assert [
            (block.block_type, getattr(block, "content", None) or block.text)
            for block in answer.message.blocks
        ] == [
            ("thinking", "hm"),
            ("text", "Oslo"),
        ]
        assert answer.message.content == "Oslo"
        assert thinker.complete("Where?").text == "Oslo"
        assert thinker.complete("Where?").additional_kwargs["thinking"] == "hm"

    def test_streamed(self, thinker):
        answers = list(thinker.stream_chat([WHERE]))
        assert "".join(answer.delta for answer in answers) == "Oslo"
        assert "".join(answer.additional_kwargs.get("thinking_delta", "") for answer in answers) == "hm"
        assert answers[-1].message.blocks == thinker.chat([WHERE]).message.blocks

    def test_they_may_come_back_in_the_history(self, thinker):
        answer = thinker.chat([WHERE]).message
        shown = thinker._chat_prompt([WHERE, answer, WHERE])
        assert [message.text for message in shown.messages] == ["Where?", "Oslo", "Where?"]

    def test_per_call(self, thinker):
        less = thinker.chat([WHERE], thinking=False, max_tokens=1)
        more = thinker.chat([WHERE], max_tokens=1)
        assert less.raw["usage"]["prompt_tokens"] < more.raw["usage"]["prompt_tokens"]  # "low", not "medium"
