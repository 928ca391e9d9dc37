"""Test the toy on a server that `spring-rag serve` started: the same answers as in this process, under load and after a crash."""

import asyncio
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_openai import ChatOpenAI
from llama_index.core import PromptTemplate as LlamaPromptTemplate
from questions import same, toy_prompts
from servers import PYTHON, SMALL, RunningServer, free_port
from tiny import shuffled
from toy_parts import BACKBONE, NAMED, TOKENS

from langchain_spring_rag import ChatSpring, SpringLLM, with_virtual_tokens
from llama_index.llms.spring_rag import SpringLLM as LlamaSpringLLM
from llama_index.llms.spring_rag import with_virtual_tokens as with_llama_virtual_tokens
from llama_index.llms.spring_rag.served import SpringOpenAILike
from spring_rag import RagPrompt, RagTemplate, SpringModel, VirtualTokens
from spring_rag.answering import request
from spring_rag.backends.base import Generation, GenerationSettings
from spring_rag.backends.vllm import VLLMBackend
from spring_rag.errors import BackendError, PromptError
from spring_rag.skills import SKILLS

QUESTIONS = int(os.environ.get("SPRING_RAG_VLLM_QUESTIONS", "24"))
SECONDS = float(os.environ.get("SPRING_RAG_VLLM_SECONDS", "15"))
KS = (0, 1, 10, 50)
BLOCK = 128
"""Tokens of a block of vLLM's cache, on a CPU."""
NEW = 24


@pytest.fixture(scope="module")
def server(logs):
    port = free_port()
    flags = [*SMALL, "--max-model-len", "1024"]
    serve = [sys.executable, "-c", "from spring_rag.cli import main; main()", "serve", "--python", PYTHON]
    named = ["--model", str(BACKBONE), "--served-model-name", "toy", "--port", str(port)]
    started = RunningServer([*serve, *named, *flags], logs / "toy.log", port)
    try:
        started.start()
        started.wait()
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def tokens():
    return VirtualTokens.from_pretrained(TOKENS)


def with_sets(model, tokens):
    model.add_tokens("default", tokens)
    model.add_tokens("other", shuffled(tokens))
    return model


@pytest.fixture(scope="module")
def local(tokens):
    return with_sets(SpringModel.from_pretrained(BACKBONE), tokens)


@pytest.fixture(scope="module")
def remote(server, tokens):
    return with_sets(SpringModel.from_pretrained(BACKBONE, base_url=server.url), tokens)


@pytest.fixture(scope="module")
def asked():
    """Every question with every k and both sets, neighbours on the same context."""
    return list(itertools.product(toy_prompts(QUESTIONS), KS, ("default", "other")))


@pytest.fixture(scope="module")
def expected(local, asked):
    return answers(local, asked)


def answers(model, asked):
    return model.generate(
        [prompt for prompt, _, _ in asked],
        num_tokens=[k for _, k, _ in asked],
        tokens=[name for _, _, name in asked],
        max_new_tokens=NEW,
    )


class TestSameAnswers:
    @pytest.mark.parametrize("form", ["auto", "light", "exact"])
    def test_every_k_and_set_in_every_form(self, server, tokens, asked, expected, form):
        backend = VLLMBackend.from_pretrained(BACKBONE, server.url, form=form)
        found = answers(with_sets(SpringModel.from_backend(backend), tokens), asked)
        assert same(found, expected) is None
        forms = {(k, each.form) for (_, k, _), each in zip(asked, found, strict=True)}
        plain = "ids" if form == "auto" else form
        assert forms == {(0, plain), *((k, "light" if form == "auto" else form) for k in KS[1:])}

    def test_the_prefix_cache_was_in_use(self, server, expected):
        assert server.metric("vllm:prefix_cache_hits_total") > 0

    @pytest.mark.parametrize("forms", [("light", "exact", "light"), ("exact", "light", "exact")])
    def test_the_prefix_cache_keeps_the_forms_apart(self, server, tokens, local, forms):
        # A cache whose keys leave out where embeddings stood gives one form the other's keys and values.
        new = " then ".join(forms)  # contexts that nobody asked about before
        prompts = [RagPrompt(each.question, [new, *each.passages]) for each in toy_prompts(6)]
        expected = local.generate(prompts, max_new_tokens=NEW)
        for form in forms:
            backend = VLLMBackend.from_pretrained(BACKBONE, server.url, form=form)
            found = SpringModel.from_backend(backend, tokens=tokens).generate(prompts, max_new_tokens=NEW)
            assert {each.form for each in found} == {form}
            assert same(found, expected) is None

    def test_skills_say_the_same_and_read_the_context_from_the_cache(self, server, local, remote, tokens):
        for model in (local, remote):
            for task in ("answerable", "cite"):
                model.add_skill(
                    VirtualTokens(
                        tokens.matrix.flip(0)[:8],
                        backbone=tokens.backbone,
                        template=RagTemplate(question=SKILLS[task].line),
                        task=task,
                    )
                )
        for prompt in toy_prompts(3):
            passages = [*prompt.passages, *(f"Beside {prompt.question} stands nothing." for _ in range(11))]
            here = local.ask(prompt.question, passages, max_new_tokens=NEW)
            before = server.metric("vllm:prefix_cache_hits_total")
            there = remote.ask(prompt.question, passages, max_new_tokens=NEW)
            hits = server.metric("vllm:prefix_cache_hits_total") - before
            assert (there.text, there.citations) == (here.text, here.citations)
            assert there.answerable == pytest.approx(here.answerable, abs=1e-4)
            assert there.logprob == pytest.approx(here.logprob, abs=1e-3)
            # Of three requests or more (cite's words may take several) the first computes the context; only whole blocks are kept.
            assert hits >= 2 * (here.usage.context // BLOCK * BLOCK)

    def test_streamed(self, local, remote):
        for prompt, k in zip(toy_prompts(4), KS, strict=True):
            stream = remote.stream(prompt, num_tokens=k, max_new_tokens=NEW)
            pieces, answer = list(stream), stream.generation
            assert same([answer], local.generate(prompt, num_tokens=k, max_new_tokens=NEW)) is None
            assert "".join(pieces) == answer.text

    async def test_async(self, local, remote):
        settings = GenerationSettings(max_new_tokens=NEW)
        requests = [request(remote.backend, prompt, None, None, settings) for prompt in toy_prompts(4)]
        found = await remote.backend.agenerate(requests, settings)
        assert same(found, local.generate(toy_prompts(4), max_new_tokens=NEW)) is None
        *pieces, last = [item async for item in remote.backend.astream(requests[0], settings)]
        assert isinstance(last, Generation)
        assert "".join(pieces) == last.text == found[0].text

    @pytest.mark.parametrize("stop", [[" Peak"], ["the region", "mond"], ["\n"]])
    def test_stop_strings(self, local, remote, stop):
        prompts = toy_prompts(6)
        arguments = {"num_tokens": 0, "max_new_tokens": NEW, "stop": stop}
        assert same(remote.generate(prompts, **arguments), local.generate(prompts, **arguments)) is None

    def test_length(self, local, remote):
        arguments = {"num_tokens": 0, "max_new_tokens": 3}
        found = remote.generate(toy_prompts(2), **arguments)
        assert same(found, local.generate(toy_prompts(2), **arguments)) is None
        assert found[0].finish_reason == "length"

    def test_sampling_repeats_with_a_seed(self, remote):
        prompt = toy_prompts(1)[0]
        arguments = {"num_tokens": 0, "temperature": 1.5, "seed": 7, "max_new_tokens": NEW}
        one, two = (remote.generate(prompt, **arguments)[0] for _ in range(2))
        assert one.text == two.text


class TestForms:
    @pytest.mark.parametrize("control", ["<|end|>", "<|assistant|>\n", "<prompt_embeds>", "<|bos|>"])
    def test_control_strings_in_a_document_go_as_embeddings(self, local, remote, control):
        prompt = RagPrompt("Who built it?", [f"Ada built it.{control}", "It is old."])
        found = remote.generate(prompt, max_new_tokens=NEW)
        assert found[0].form == "exact"
        assert same(found, local.generate(prompt, max_new_tokens=NEW)) is None

    def test_chats_are_light(self, local, remote):
        chat = RagTemplate(chat=True, system="Be brief.")
        prompts = [RagPrompt(each.question, each.passages, chat) for each in toy_prompts(4)]
        found = remote.generate(prompts, max_new_tokens=NEW)
        assert {each.form for each in found} == {"light"}
        assert same(found, local.generate(prompts, max_new_tokens=NEW)) is None

    def test_a_prompt_without_context(self, local, remote):
        prompt = RagPrompt("Who built it?", [])
        assert (
            same(remote.generate(prompt, max_new_tokens=NEW), local.generate(prompt, max_new_tokens=NEW))
            is None
        )

    def test_light_only_refuses_what_text_cant_carry(self, server, tokens):
        backend = VLLMBackend.from_pretrained(BACKBONE, server.url, form="light")
        model = SpringModel.from_backend(backend, tokens=tokens)
        with pytest.raises(PromptError, match="can't be sent as text.*control string"):
            model.generate(RagPrompt("Who?", ["<|end|>"]))


QUESTION = {"context": "Grimmond Peak stands in Hordo.", "question": "In which region is Grimmond Peak?"}
TEXT = PromptTemplate.from_template("[1] {context}\n\nQuestion: {question}\nAnswer:")
CHAT = ChatPromptTemplate.from_messages(
    [("system", "Be brief."), ("human", "[1] {context}\n\nQuestion: {question}")]
)


class TestWrappers:
    @pytest.mark.parametrize("k", [0, 10])
    def test_langchain(self, server, k):
        named = {
            "model": str(BACKBONE),
            "virtual_tokens": str(TOKENS),
            "num_tokens": k,
            "max_tokens": NEW,
        }
        for kind, prompt in ((ChatSpring, CHAT), (SpringLLM, TEXT)):
            here, there = kind(**named), kind(**named, base_url=server.url, api_key="any", timeout=60)
            chain, served = with_virtual_tokens(prompt) | here, with_virtual_tokens(prompt) | there
            wanted = chain.invoke(QUESTION)
            wanted = getattr(wanted, "text", wanted)
            found = [served.invoke(QUESTION), *served.batch([QUESTION] * 3)]
            assert [getattr(each, "text", each) for each in found] == [wanted] * 4
            pieces = [getattr(each, "text", each) for each in served.stream(QUESTION)]
            assert "".join(pieces) == wanted

    def test_llama_index(self, server):
        arguments = {"tokens": TOKENS, "max_tokens": NEW}
        here = LlamaSpringLLM.from_pretrained(BACKBONE, **arguments)
        there = LlamaSpringLLM.from_pretrained(BACKBONE, base_url=server.url, **arguments)
        template = with_llama_virtual_tokens(
            LlamaPromptTemplate("{context_str}\n\nQuestion: {query_str}\nAnswer:")
        )
        values = {"context_str": QUESTION["context"], "query_str": QUESTION["question"]}
        assert there.predict(template, **values) == here.predict(template, **values)

    def test_command(self, server, tmp_path):
        (tmp_path / "a.md").write_text(QUESTION["context"])
        spring_rag = [sys.executable, "-c", "from spring_rag.cli import main; main()"]
        subprocess.run([*spring_rag, "index", tmp_path / "a.md", "--db", tmp_path / "db"], check=True)
        ask = [*spring_rag, "ask", QUESTION["question"], "--db", tmp_path / "db", *NAMED]
        texts = [
            subprocess.run([*ask, *where], check=True, capture_output=True, text=True).stdout
            for where in ([], ["--base-url", server.url])
        ]
        assert texts[0] == texts[1] != ""


class TestWithoutAWrapper:
    """LangChain's and LlamaIndex's own models of the server; only the prompt is ours."""

    @pytest.mark.parametrize("k", [1, 50])
    @pytest.mark.parametrize("prompt", [TEXT, CHAT])
    def test_chat_openai(self, server, local, remote, prompt, k):
        openai = ChatOpenAI(model="toy", base_url=server.url, api_key="none", temperature=0, max_tokens=NEW)
        chain = with_virtual_tokens(prompt, on_vllm=remote, num_tokens=k) | openai
        own = ChatSpring(model=local, num_tokens=k, max_tokens=NEW)
        wanted = (with_virtual_tokens(prompt) | own).invoke(QUESTION) if prompt is CHAT else None
        text = (
            wanted.text
            if wanted
            else (with_virtual_tokens(prompt) | SpringLLM(model=local, num_tokens=k, max_tokens=NEW)).invoke(
                QUESTION
            )
        )
        found = chain.invoke(QUESTION)
        assert found.text.strip() == text
        if wanted:
            assert found.usage_metadata["input_tokens"] == wanted.usage_metadata["input_tokens"]
        assert "".join(piece.text for piece in chain.stream(QUESTION)).strip() == text

    def test_control_strings_are_refused(self, remote):
        prompt = with_virtual_tokens(CHAT, on_vllm=remote)
        with pytest.raises(PromptError, match="control string"):
            prompt.invoke({**QUESTION, "context": "Hordo.<|end|>"})

    def test_open_ai_like(self, server, local, remote):
        llm = SpringOpenAILike(
            model="toy",
            api_base=server.url,
            api_key="none",
            is_chat_model=True,
            max_tokens=NEW,
            temperature=0,
            virtual=remote,
        )
        own = LlamaSpringLLM(model=local, is_chat_model=True, max_tokens=NEW)
        template = with_llama_virtual_tokens(LlamaPromptTemplate("{context_str}\n\nQuestion: {query_str}"))
        values = {"context_str": QUESTION["context"], "query_str": QUESTION["question"]}
        assert llm.predict(template, **values).strip() == own.predict(template, **values)
        plain = LlamaPromptTemplate("Question: {query_str}")
        assert llm.predict(plain, query_str="What is it?").strip() == own.predict(
            plain, query_str="What is it?"
        )
        with pytest.raises(PromptError, match="control string"):
            llm.predict(template, **{**values, "context_str": "<|end|>"})


class TestUnderLoad:
    def test_32_clients(self, server, remote, asked, expected):
        """Each client asks one question after the other, streamed or not, until the time is over."""
        deadline = time.monotonic() + SECONDS
        wrong, done = [], [0] * 32

        def client(number):
            pick = random.Random(number)
            while time.monotonic() < deadline:
                index = pick.randrange(len(asked))
                prompt, k, name = asked[index]
                arguments = {"num_tokens": k, "tokens": name, "max_new_tokens": NEW}
                try:
                    if pick.random() < 0.3:
                        text = "".join(remote.stream(prompt, **arguments))
                    else:
                        text = remote.generate(prompt, **arguments)[0].text
                except Exception as error:
                    wrong.append(repr(error))
                    return
                if text != expected[index].text:
                    wrong.append((text, expected[index].text))
                done[number] += 1

        threads = [threading.Thread(target=client, args=(number,)) for number in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(f"{sum(done)} answers in {SECONDS:.0f} s")
        assert not wrong
        assert sum(done) > 32

    async def test_left_streams_are_dropped_by_the_server(self, server, remote):
        stream = remote.stream(toy_prompts(1)[0], num_tokens=0, max_new_tokens=600, stop=["never"])
        next(stream)
        stream.close()
        deadline = time.monotonic() + 20
        while server.metric("vllm:num_requests_running") and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
        assert server.metric("vllm:num_requests_running") == 0

    def test_killed_and_restarted(self, server, tokens, asked, expected):
        """Runs last: requests in flight get a clear error, and the same client answers again when the server is back."""
        remote = SpringModel.from_pretrained(BACKBONE, base_url=server.url, max_retries=1)
        with_sets(remote, tokens)
        problems, stop = [], threading.Event()
        right = [0]

        def client(number):
            pick = random.Random(number)
            while not stop.is_set():
                index = pick.randrange(len(asked))
                try:
                    found = answers(remote, [asked[index]])
                except Exception as error:
                    problems.append(error)
                    time.sleep(0.5)
                    continue
                assert found[0].text == expected[index].text
                right[0] += 1

        threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(3)
        before = right[0]
        server.stop(signal.SIGKILL)
        time.sleep(1)
        server.start()
        server.wait()
        deadline = time.monotonic() + 60
        after = right[0]
        while right[0] < after + 16 and time.monotonic() < deadline:
            time.sleep(0.2)
        stop.set()
        for thread in threads:
            thread.join()
        assert before
        assert right[0] >= after + 16
        assert problems
        assert {type(error).__mro__[1] for error in problems} <= {BackendError}
        assert "vLLM server at" in str(problems[0])
