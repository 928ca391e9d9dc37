import asyncio
import inspect
import pickle
import re
import shutil
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.load import dumpd, load
from langchain_core.messages import (
    AIMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import ConfigurableField
from langchain_parts import TURNS_ONLY_TEMPLATE, make_spring_model, spring_model
from thinking_parts import FAMILIES, tokenizer_of, writing

from langchain_spring_rag import (
    ChatSpring,
    SpringLLM,
    format_passages,
    rag_prompt,
    spliced,
    with_virtual_tokens,
    without_virtual_tokens,
)
from langchain_spring_rag.messages import to_prompt
from spring_rag.encoding import encode
from spring_rag.errors import BackendError, PromptError, PromptTooLongError, TokensError
from spring_rag.model import SpringModel
from spring_rag.prompt import SLOT_MARKER, Message, Prompt, Slot, Text
from spring_rag.tokens import VirtualTokens

__all__ = ["make_spring_model", "spring_model"]  # fixtures

PASSAGES = ["Hale and Sons built the lighthouse.", "It was lit in 1887."]
QUESTION = "Who built the lighthouse?"
VALUES = {"context": format_passages([Document(each) for each in PASSAGES]), "question": QUESTION}
CHAT = with_virtual_tokens(
    ChatPromptTemplate.from_messages([("system", "{context}"), ("human", "{question}")])
)
CHAT_AS_CORE = Prompt(
    messages=(
        Message("system", (Text(VALUES["context"]),)),
        Message("user", (Slot(), Text(QUESTION))),
    )
)
MAX_TOKENS = 8


@pytest.fixture(scope="module")
def llm(spring_model):
    return SpringLLM(model=spring_model, max_tokens=MAX_TOKENS)


@pytest.fixture(scope="module")
def chat(spring_model):
    return ChatSpring(model=spring_model, max_tokens=MAX_TOKENS)


@pytest.fixture(scope="module")
def saved(spring_model, make_tokens, tmp_path_factory):
    """Folders of a backbone and of virtual tokens."""
    folder = tmp_path_factory.mktemp("saved")
    spring_model.backend.hf_model.save_pretrained(folder / "backbone")
    spring_model.tokenizer.save_pretrained(folder / "backbone")
    spring_model.backend.tokens().save_pretrained(folder / "tokens")
    return folder


def expected(model, prompt=CHAT_AS_CORE, **settings):
    settings = {"max_new_tokens": MAX_TOKENS, **settings}
    return model.generate([prompt], **settings)[0]


def answer(model, **settings):
    return model.answer(QUESTION, PASSAGES, **{"max_new_tokens": MAX_TOKENS, **settings})


class TestSameAnswers:
    @pytest.mark.parametrize("ask", [answer, lambda model, **settings: expected(model, **settings).text])
    def test_the_virtual_tokens_matter(self, spring_model, ask):
        texts = [ask(spring_model, num_tokens=k) for k in (0, 3, 6)] + [ask(spring_model, tokens="other")]
        assert all(texts)
        assert len(set(texts)) == 4

    @pytest.mark.parametrize("num_tokens", [None, 0, 3])
    async def test_the_llm_answers_as_the_core(self, llm, spring_model, num_tokens):
        chain = rag_prompt() | llm.bind(num_tokens=num_tokens)
        right = answer(spring_model, num_tokens=num_tokens)
        assert chain.invoke(VALUES) == right
        assert await chain.ainvoke(VALUES) == right
        assert "".join(chain.stream(VALUES)) == right
        assert "".join([piece async for piece in chain.astream(VALUES)]) == right
        assert chain.batch([VALUES, VALUES]) == [right, right]
        assert await chain.abatch([VALUES, VALUES]) == [right, right]

    @pytest.mark.parametrize("num_tokens", [None, 0, 3])
    async def test_the_chat_model_answers_as_the_core(self, chat, spring_model, num_tokens):
        chain = CHAT | chat.bind(num_tokens=num_tokens)
        right = expected(spring_model, num_tokens=num_tokens).text.strip()
        assert chain.invoke(VALUES).content == right
        assert (await chain.ainvoke(VALUES)).content == right
        assert "".join(chunk.content for chunk in chain.stream(VALUES)) == right
        assert "".join([chunk.content async for chunk in chain.astream(VALUES)]) == right
        assert [each.content for each in chain.batch([VALUES, VALUES])] == [right, right]
        assert [each.content for each in await chain.abatch([VALUES, VALUES])] == [right, right]

    def test_a_batch_is_one_batch(self, llm, spring_model, monkeypatch):
        sizes = []
        generate = spring_model.backend.generate
        monkeypatch.setattr(
            spring_model.backend,
            "generate",
            lambda found, settings: sizes.append(len(found)) or generate(found, settings),
        )
        (rag_prompt() | llm).batch([VALUES] * 5)
        assert sizes == [5]

    def test_without_slot_the_plain_backbone_answers(self, llm, chat, spring_model):
        assert llm.invoke("Rephrase this.") == expected(spring_model, "Rephrase this.").text.strip()
        plain = expected(spring_model, Prompt(messages=(Message("user", (Text("Rephrase this."),)),)))
        assert chat.invoke("Rephrase this.").content == plain.text.strip()
        assert plain.usage.virtual == 0

    def test_a_string_prompt_on_the_chat_model(self, chat, spring_model):
        prompt = Prompt(messages=(Message("user", rag_prompt_parts()),))
        assert (rag_prompt() | chat).invoke(VALUES).content == expected(spring_model, prompt).text.strip()
        assert (
            chat.invoke(rag_prompt().format(**VALUES)).usage_metadata["input_token_details"]["virtual"] == 6
        )

    def test_a_chat_prompt_on_the_llm(self, llm, spring_model):
        parts = (Text(f"System: {VALUES['context']}\nHuman: "), Slot(), Text(QUESTION))
        assert (CHAT | llm).invoke(VALUES) == expected(spring_model, Prompt(parts=parts)).text.strip()

    def test_a_formatted_prompt_keeps_its_slot(self, llm, spring_model):
        text = rag_prompt().format(**VALUES)
        assert llm.invoke(text) == llm.generate([text]).generations[0][0].text == answer(spring_model)

    @pytest.mark.filterwarnings("ignore:a text holds the marker")
    def test_text_cannot_forge_a_slot(self, llm, chat):
        plain = PromptTemplate.from_template("{context}{question}")
        for model in (llm, chat):
            for given_input in (SLOT_MARKER, plain.invoke({"context": SLOT_MARKER, "question": "?"})):
                result = model.generate_prompt([model._convert_input(given_input)])
                generation = result.generations[0][0]
                usage = (
                    generation.message.usage_metadata
                    if model is chat
                    else generation.generation_info["usage_metadata"]
                )
                assert usage["input_token_details"]["virtual"] == 0
        assert llm.generate([SLOT_MARKER]).llm_output["token_usage"]["virtual_tokens"] == 0


def rag_prompt_parts():
    return (Text(VALUES["context"]), Slot(), Text(f"Question: {QUESTION}\nAnswer:"))


class TestSettings:
    CASES = (
        {"num_tokens": 2},
        {"tokens": "other", "num_tokens": 1},
        {"max_tokens": 3},
        {"temperature": 1.5, "seed": 3},
        {"temperature": 1.5, "top_p": 0.5, "seed": 3},
        {"temperature": 1.5, "top_k": 3, "seed": 4},
    )

    @pytest.mark.parametrize("settings", CASES)
    def test_at_construction_per_call_bound_and_configured(self, spring_model, llm, chat, settings):
        core = {
            ("max_new_tokens" if name == "max_tokens" else name): value for name, value in settings.items()
        }
        for cls, default, prompt, right in (
            (SpringLLM, llm, rag_prompt(), answer(spring_model, **core)),
            (ChatSpring, chat, CHAT, expected(spring_model, **core).text.strip()),
        ):
            fields = {name: ConfigurableField(id=name) for name in settings}
            models = [
                cls(**{"model": spring_model, "max_tokens": MAX_TOKENS, **settings}),
                default.bind(**settings),
                default.configurable_fields(**fields).with_config(configurable=settings),
            ]
            texts = [text_of((prompt | model).invoke(VALUES)) for model in models]
            texts.append(text_of(default.invoke(prompt.invoke(VALUES), **settings)))
            texts.append("".join(map(text_of, (prompt | models[2]).stream(VALUES))))
            assert texts == [right] * 5

    def test_names_of_other_models(self, spring_model):
        others = {
            "max_new_tokens": 3,
            "temperature": None,
            "pipeline_kwargs": {"top_k": 5, "do_sample": False},
            "repetition_penalty": 1.0,
        }
        for cls, prompt in ((SpringLLM, rag_prompt()), (ChatSpring, CHAT)):
            model = cls(model=spring_model, **others)
            assert (model.max_tokens, model.temperature, model.top_k) == (3, 0.0, 5)
            per_call = cls(model=spring_model).invoke(prompt.invoke(VALUES), max_completion_tokens=3)
            assert text_of(per_call) == text_of(model.invoke(prompt.invoke(VALUES)))
            assert "".join(
                map(text_of, cls(model=spring_model).stream(prompt.invoke(VALUES), max_new_tokens=3))
            ) == text_of(per_call)
            with pytest.raises(ValueError, match="repetition_penalty=1.3 isn't supported"):
                cls(model=spring_model, repetition_penalty=1.3)
            with pytest.raises(ValueError, match="repetition_penalty=1.3 isn't supported"):
                model.invoke("Hi", repetition_penalty=1.3)

    def test_stop(self, spring_model, llm, chat):
        for cls, default, prompt, whole in (
            (SpringLLM, llm, rag_prompt(), answer(spring_model)),
            (ChatSpring, chat, CHAT, expected(spring_model).text.strip()),
        ):
            stop = re.search("[!-~]", whole[1:])[0]
            right = whole[: whole.index(stop)].strip()
            for model in (
                cls(model=spring_model, max_tokens=MAX_TOKENS, stop=stop),
                default.bind(stop=[stop]),
                cls(model=spring_model, max_tokens=MAX_TOKENS, stop=["nothing"]).bind(stop=[stop]),
            ):
                assert text_of((prompt | model).invoke(VALUES)) == right
                assert "".join(map(text_of, (prompt | model).stream(VALUES))) == right
        message = chat.invoke(CHAT.invoke(VALUES), stop=[stop])
        assert message.response_metadata["finish_reason"] == "stop"

    def test_mistakes_are_named(self, spring_model, llm, chat):
        with pytest.raises(ValueError, match="num_token"):
            ChatSpring(model=spring_model, num_token=3)
        with pytest.raises(ValueError, match="temperature is -1"):
            ChatSpring(model=spring_model, temperature=-1)
        for model in (llm, chat):
            with pytest.raises(ValueError, match=r"takes no max_token in a call; it takes num_tokens"):
                model.invoke("Hi", max_token=3)
            with pytest.raises(TokensError, match="from 0 to 6"):
                model.invoke("Hi", num_tokens=7)
            with pytest.raises(TokensError, match="nobody"):
                model.invoke("Hi", tokens="nobody")

    def test_loading_by_name(self, saved, spring_model):
        first = ChatSpring(model=saved / "backbone", virtual_tokens=saved / "tokens", dtype="float32")
        second = SpringLLM(
            model=str(saved / "backbone"), virtual_tokens=str(saved / "tokens"), dtype="float32"
        )
        assert first.spring_model is second.spring_model
        assert (rag_prompt() | second.bind(max_tokens=MAX_TOKENS)).invoke(VALUES) == answer(spring_model)

    def test_tokens_trained_anew_into_the_same_folder_are_loaded(self, saved, tmp_path):
        folder = tmp_path / "tokens"
        shutil.copytree(saved / "tokens", folder)
        named = {"model": saved / "backbone", "virtual_tokens": folder, "dtype": "float32"}
        first = ChatSpring(**named)
        assert ChatSpring(**named).spring_model is first.spring_model
        tokens = VirtualTokens.from_pretrained(folder)
        VirtualTokens(tokens.matrix.flip(0), backbone=tokens.backbone).save_pretrained(folder)
        second = ChatSpring(**named)
        attached = second.spring_model.backend.tokens(None), first.spring_model.backend.tokens(None)
        assert attached[0].digest != attached[1].digest == tokens.digest
        assert first._configured(None, {"num_tokens": 2}).spring_model is first.spring_model

    def test_what_else_a_backbone_is_loaded_with_tells_caches_apart(self, saved):
        one, other = (
            ChatSpring(model=saved / "backbone", device="cpu", model_kwargs={"attn_implementation": way})
            for way in ("eager", "sdpa")
        )
        assert one._identifying_params != other._identifying_params

    def test_what_cannot_be_loaded(self, saved, tmp_path):
        with pytest.raises(BackendError, match="backbone"):
            ChatSpring(model=str(tmp_path / "missing"))
        with pytest.raises(TokensError):
            ChatSpring(model=str(saved / "backbone"), virtual_tokens=str(tmp_path / "missing"))


def text_of(output):
    return output if isinstance(output, str) else output.content


class TestMetadata:
    def test_usage_and_finish_reason(self, llm, chat, spring_model):
        right = expected(spring_model)
        message = (CHAT | chat).invoke(VALUES)
        chunks = list((CHAT | chat).stream(VALUES))
        for found in (message, sum(chunks[1:], start=chunks[0])):
            assert found.response_metadata["finish_reason"] == right.finish_reason
            assert found.response_metadata["model_name"] == chat.model_name
            assert found.usage_metadata == {
                "input_tokens": right.usage.context + 6 + right.usage.suffix,
                "output_tokens": right.usage.generated,
                "total_tokens": right.usage.context + 6 + right.usage.suffix + right.usage.generated,
                "input_token_details": {
                    "context": right.usage.context,
                    "virtual": 6,
                    "suffix": right.usage.suffix,
                },
            }
        result = llm.generate([rag_prompt().format(**VALUES)] * 2)
        info = result.generations[0][0].generation_info
        assert info["usage_metadata"]["input_token_details"]["virtual"] == 6
        assert result.llm_output["token_usage"]["virtual_tokens"] == 12
        assert result.llm_output["token_usage"]["total_tokens"] == 2 * info["usage_metadata"]["total_tokens"]

    def test_callbacks(self, llm, chat):
        class Seen(BaseCallbackHandler):
            def __init__(self):
                self.tokens, self.ends = [], []

            def on_llm_new_token(self, token, **kwargs):
                self.tokens.append(token)

            def on_llm_end(self, response, **kwargs):
                self.ends.append(response)

        for model, prompt in ((llm, rag_prompt()), (chat, CHAT)):
            seen = Seen()
            text = "".join(map(text_of, (prompt | model).stream(VALUES, {"callbacks": [seen]})))
            assert "".join(seen.tokens) == text
            assert seen.ends[0].generations[0][0].text == text
        usage = UsageMetadataCallbackHandler()
        (CHAT | chat).invoke(VALUES, {"callbacks": [usage]})
        assert usage.usage_metadata[chat.model_name]["output_tokens"] > 0

    def test_traces_name_the_model(self, llm, chat):
        for model, kind in ((llm, "llm"), (chat, "chat")):
            found = model._get_ls_params(stop=["x"])
            assert (found["ls_provider"], found["ls_model_type"], found["ls_stop"]) == (
                "spring_rag",
                kind,
                ["x"],
            )
            assert found["ls_model_name"] == model.model_name
            assert found["ls_max_tokens"] == MAX_TOKENS

    def test_counting_tokens(self, chat):
        assert chat.get_num_tokens("Hello there") == len(
            chat.spring_model.tokenizer("Hello there")["input_ids"]
        )

    def test_serialising(self, saved):
        model = ChatSpring(
            model=str(saved / "backbone"), virtual_tokens=str(saved / "tokens"), num_tokens=3, stop=["x"]
        )
        written = dumpd(model)
        assert written["kwargs"]["num_tokens"] == 3
        loaded = load(written, allowed_objects=[ChatSpring], valid_namespaces=["langchain_spring_rag"])
        assert loaded == model
        assert loaded.asdict() == model.asdict()

    def test_a_loaded_object_is_not_serialised(self, chat):
        assert dumpd(chat)["type"] == "not_implemented"

    def test_pickling(self, saved, chat):
        for cls, prompt in ((SpringLLM, rag_prompt()), (ChatSpring, CHAT)):
            model = cls(
                model=saved / "backbone", virtual_tokens=saved / "tokens", max_tokens=MAX_TOKENS, num_tokens=3
            )
            copied = pickle.loads(pickle.dumps(model))
            assert copied.spring_model is model.spring_model, "it was loaded twice"
            assert copied == model
            chain = pickle.loads(pickle.dumps(prompt | model))
            assert text_of(chain.invoke(VALUES)) == text_of((prompt | model).invoke(VALUES))
        with pytest.raises(
            TypeError, match="made from a loaded SpringModel can't be pickled; make it from names"
        ):
            pickle.dumps(chat)


class TestCache:
    @pytest.mark.parametrize("kind", ["llm", "chat"])
    def test_keys_hold_digest_and_k(self, kind, spring_model, monkeypatch):
        cls, prompt = {"llm": (SpringLLM, rag_prompt()), "chat": (ChatSpring, CHAT)}[kind]
        cached = cls(model=spring_model, max_tokens=MAX_TOKENS, cache=InMemoryCache())
        calls = []
        generate = SpringModel.generate
        monkeypatch.setattr(
            SpringModel, "generate", lambda *args, **kwargs: calls.append(kwargs) or generate(*args, **kwargs)
        )
        settings = [
            {},
            {"num_tokens": 0},
            {"num_tokens": 3},
            {"tokens": "other"},
            {"max_tokens": 2},
            {"stop": ["e"]},
        ]
        first = [text_of(cached.invoke(prompt.invoke(VALUES), **each)) for each in settings]
        assert len(calls) == len(settings)
        again = [text_of(cached.invoke(prompt.invoke(VALUES), **each)) for each in settings]
        assert text_of(cached.invoke(prompt.invoke(VALUES), num_tokens=6)) == first[0]
        assert (again, len(calls)) == (first, len(settings))

    def test_another_set_of_the_same_name_is_another_key(self, make_spring_model, make_tokens):
        model = make_spring_model()
        for cls, prompt in ((SpringLLM, rag_prompt()), (ChatSpring, CHAT)):
            cached = cls(model=model, max_tokens=MAX_TOKENS, cache=InMemoryCache())
            before = text_of((prompt | cached).invoke(VALUES))
            with pytest.warns(UserWarning, match="don't record"):
                model.add_tokens("default", make_tokens(6, seed=7 if cls is SpringLLM else 8))
            assert text_of((prompt | cached).invoke(VALUES)) != before


class TestChats:
    def test_templates_that_want_turns(self, make_spring_model):
        model = make_spring_model(TURNS_ONLY_TEMPLATE)
        chat = ChatSpring(model=model, max_tokens=MAX_TOKENS)
        merged = Prompt(
            messages=(Message("user", (Text(VALUES["context"] + "\n\n"), Slot(), Text(QUESTION))),)
        )
        assert (CHAT | chat).invoke(VALUES).content == expected(model, merged).text.strip()
        with pytest.raises(PromptError, match="alternate"):
            chat.invoke([AIMessage("first")])

    def test_roles(self, chat, spring_model):
        messages = [
            SystemMessage("a"),
            ChatMessage("b", role="human"),
            AIMessage([{"type": "text", "text": "c"}]),
        ]
        core = Prompt(
            messages=tuple(
                Message(r, (Text(t),)) for r, t in zip(["system", "user", "assistant"], "abc", strict=True)
            )
        )
        assert chat.invoke(messages).content == expected(spring_model, core).text.strip()

    @pytest.mark.parametrize(
        ("message", "problem"),
        [
            (HumanMessage([{"type": "image_url", "image_url": {"url": "x"}}]), "image_url"),
            (ToolMessage("4", tool_call_id="1"), "no place for them"),
            (AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}]), "no place for them"),
            (HumanMessage([*spliced("a", "b"), *spliced("c")]), "one slot"),
        ],
    )
    def test_what_cannot_be_answered(self, chat, message, problem):
        with pytest.raises(PromptError, match=problem):
            chat.invoke([message])

    def test_no_chat_template(self, make_spring_model):
        with pytest.raises(PromptError, match="no chat template"):
            ChatSpring(model=make_spring_model(None)).invoke("Hi")

    def test_tools_and_schemas_are_refused(self, chat, llm, make_spring_model):
        def add(a: int, b: int) -> int:
            """Add."""
            return a + b

        with pytest.raises(NotImplementedError, match="no place for them"):
            chat.bind_tools([add])
        with pytest.raises(NotImplementedError, match="no place for them"):
            chat.invoke("Hi", tools=[{"name": "add"}])
        knowing = ChatSpring(model=make_spring_model("{% if tools %}{{ tools }}{% endif %}"))
        with pytest.raises(NotImplementedError, match="can't be read"):
            knowing.bind_tools([add])
        for model in (chat, llm):
            with pytest.raises(NotImplementedError, match="JsonOutputParser"):
                model.with_structured_output({"title": "x"})
        assert chat.bind_tools([]).invoke("Hi").content == chat.invoke("Hi").content


class TestFallbacks:
    @pytest.mark.parametrize(
        "given",
        [
            CHAT.invoke(VALUES),
            CHAT.invoke(VALUES).to_messages(),
            rag_prompt().invoke(VALUES),
            rag_prompt().format(**VALUES),
            [SystemMessage(spliced(VALUES["context"])), ("human", QUESTION)],
        ],
    )
    def test_another_model_gets_no_slot(self, given, chat):
        seen = []

        class Other(FakeListChatModel):
            def _call(self, messages, *args, **kwargs):
                seen.extend(messages)
                return super()._call(messages, *args, **kwargs)

        other = without_virtual_tokens(Other(responses=["ok"]))
        too_many = chat.bind(num_tokens=999)
        assert too_many.with_fallbacks([other]).invoke(given).content == "ok"
        assert VALUES["context"] in "".join(message.text for message in seen)
        for message in seen:
            assert "⟦" not in message.text
            assert all(part["type"] == "text" for part in message.content if isinstance(part, dict))


class TestTogether:
    def test_threads_get_the_answers_they_would_get_alone(self, llm, chat, spring_model):
        cases = [(k, name) for k in range(4) for name in (None, "other")] * 4
        right = [answer(spring_model, num_tokens=k, tokens=name) for k, name in cases]
        right_chat = [expected(spring_model, num_tokens=k, tokens=name).text.strip() for k, name in cases]
        text, messages = rag_prompt().invoke(VALUES), CHAT.invoke(VALUES)
        with ThreadPoolExecutor(32) as pool:
            found = list(pool.map(lambda case: llm.invoke(text, num_tokens=case[0], tokens=case[1]), cases))
            found_chat = list(
                pool.map(
                    lambda case: chat.invoke(messages, num_tokens=case[0], tokens=case[1]).content, cases
                )
            )
        assert found == right
        assert found_chat == right_chat

    async def test_prompts_from_threads_and_tasks_are_gathered(self, chat, spring_model, monkeypatch):
        """A chat model of LangChain has no batch of its own."""
        sizes: list[int] = []
        run = spring_model.backend._gathering._run
        monkeypatch.setattr(
            spring_model.backend._gathering,
            "_run",
            lambda found, *rest: sizes.append(len(found)) or run(found, *rest),
        )
        right = [expected(spring_model).text.strip()] * 32
        sizes.clear()
        chain = CHAT | chat | text_of
        assert chain.batch([VALUES] * 32) == right
        assert chain.batch([VALUES] * 32, {"max_concurrency": 64}) == right
        assert await chain.abatch([VALUES] * 32) == right
        assert sum(sizes) == 96
        assert len(sizes) <= 24, sizes

    async def test_one_bad_prompt_spoils_no_other(self, llm, chat, spring_model):
        long = {"context": "word " * 2000, "question": "?"}
        inputs = [VALUES, long, VALUES]
        for chain in (rag_prompt() | llm, CHAT | chat):
            for outputs in (
                chain.batch(inputs, return_exceptions=True),
                await chain.abatch(inputs, return_exceptions=True),
            ):
                assert text_of(outputs[0]) == text_of(outputs[2]) == text_of(chain.invoke(VALUES))
                assert isinstance(outputs[1], PromptTooLongError)
            with pytest.raises(PromptTooLongError):
                chain.batch(inputs)

    def test_a_closed_stream_stops_the_backbone(self, llm, chat, spring_model):
        for model, prompt in ((llm, rag_prompt()), (chat, CHAT)):
            stream = (prompt | model.bind(max_tokens=400)).stream(VALUES)
            next(stream)
            stream.close()
            self._assert_free(spring_model)

    async def test_a_cancelled_async_stream_stops_the_backbone(self, llm, chat, spring_model):
        for model, prompt in ((llm, rag_prompt()), (chat, CHAT)):
            started = asyncio.Event()

            chain = prompt | model.bind(max_tokens=400)

            async def read(chain=chain, started=started):
                async for _ in chain.astream(VALUES):
                    started.set()

            task = asyncio.create_task(read())
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(self._assert_free, spring_model)

    @staticmethod
    def _assert_free(model):
        deadline = time.monotonic() + 60
        while any(thread.name == "spring-rag-stream" for thread in threading.enumerate()):
            assert time.monotonic() < deadline, "the stream still runs"
            time.sleep(0.01)
        assert model.generate("Hi", max_new_tokens=1)


class TestDocstrings:
    @pytest.mark.parametrize("cls", [ChatSpring, SpringLLM])
    async def test_the_examples_run(self, cls, saved, capsys):
        sections = re.findall(
            r"^(\w+):\n(.*?)(?=^\w+:\n|\Z)", inspect.cleandoc(cls.__doc__), re.DOTALL | re.MULTILINE
        )
        assert [title for title, _ in sections] == [
            "Setup",
            "Instantiate",
            "Invoke",
            "Stream",
            "Async",
            "Batch",
        ]
        names: dict[str, object] = {}
        for _, body in sections[1:]:
            code = textwrap.dedent(re.search(r"```python\n(.*?)```", body, re.DOTALL)[1])
            code = code.replace("mistralai/Mistral-7B-Instruct-v0.1", str(saved / "backbone"))
            code = code.replace("max_tokens=64", f"max_tokens={MAX_TOKENS}")
            code = code.replace('"mistral-7b-instruct"', repr(str(saved / "tokens")))
            code = "async def example():\n" + textwrap.indent(code + "globals().update(locals())\n", "    ")
            exec(code, names)
            await names["example"]()
        assert text_of(names["answer"]) == text_of(names["answers"][0])
        assert capsys.readouterr().out.count(text_of(names["answer"])) == 2


WHERE = HumanMessage("Where?")


@pytest.fixture(scope="module")
def thinker():
    tokenizer = tokenizer_of("qwen-3")
    prompt = replace(to_prompt([WHERE]), thinking=True)
    written = FAMILIES["qwen-3"].written
    return ChatSpring(
        model=SpringModel(writing(tokenizer, written, len(encode(prompt, tokenizer).ids)), tokenizer)
    )


class TestThinking:
    def test_thoughts_are_a_reasoning_block(self, thinker):
        answer = thinker.invoke([WHERE], thinking=True)
        assert answer.content == "Oslo"
        assert [(b["type"], b.get("reasoning") or b.get("text")) for b in answer.content_blocks] == [
            ("reasoning", "hm"),
            ("text", "Oslo"),
        ]

    def test_streamed(self, thinker):
        chunks = list(thinker.stream([WHERE], thinking=True))
        assert "".join(chunk.text for chunk in chunks) == "Oslo"
        whole = chunks[0]
        for chunk in chunks[1:]:
            whole += chunk
        assert whole.content_blocks == thinker.invoke([WHERE], thinking=True).content_blocks
        assert len(chunks) > 4

    def test_they_may_come_back_in_the_history(self, thinker):
        answer = thinker.invoke([WHERE], thinking=True)
        assert to_prompt([WHERE, answer]).messages[1].text == "Oslo"

    def test_it_is_asked_not_to_think_unless_told(self, thinker):
        def prompt(**fields):
            chosen = thinker.model_copy(update=fields)
            return thinker.spring_model.tokenizer.decode(
                encode(chosen._prompt([WHERE]), thinker.spring_model.tokenizer).ids
            )

        assert prompt().endswith("</think>\n\n")
        assert prompt(thinking=None).endswith("assistant\n")
        assert prompt(chat_template_kwargs={"enable_thinking": True}).endswith("assistant\n")

    def test_a_cache_tells_them_apart(self, thinker):
        keys = {
            thinker._get_llm_string(),
            thinker._get_llm_string(thinking=True),
            thinker._get_llm_string(chat_template_kwargs={"a": 1}),
        }
        assert len(keys) == 3

    def test_what_no_template_may_be_given_is_refused(self, thinker):
        with pytest.raises(PromptError, match="hold tokenize"):
            thinker.invoke([WHERE], chat_template_kwargs={"tokenize": True})
