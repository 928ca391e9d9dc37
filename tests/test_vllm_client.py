"""Test the client of a vLLM server, with a small HTTP server that refuses as vLLM does. For real servers see tests/vllm."""

import asyncio
import gc
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import openai
import pytest
import torch
from fake_vllm import ANSWER, fake_vllm
from thinking_parts import FAMILIES, letters, tokenizer_of, writing

from spring_rag import RagPrompt, RagTemplate, SpringModel
from spring_rag.answering import request
from spring_rag.backends.base import GenerationSettings
from spring_rag.backends.vllm.calls import Call
from spring_rag.backends.vllm.failures import PartlyAnsweredError, RefusedError, UnreachableError
from spring_rag.backends.vllm.layouts import ServerTokenizer
from spring_rag.encoding import encode
from spring_rag.errors import BackboneMismatchError, BackendError, PromptTooLongError

PROMPT = RagPrompt("Who built it?", ["Hale and Sons built the lighthouse."])


@pytest.fixture
def server():
    with fake_vllm() as started:
        yield started


@pytest.fixture(scope="module")
def folder(tmp_path_factory, llama, tokenizer):
    path = tmp_path_factory.mktemp("served")
    llama.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def connect(folder, make_tokens):
    def connect(url, **arguments):
        arguments = {"max_retries": 0, **arguments}
        with pytest.warns(UserWarning, match="don't record their backbone"):
            return SpringModel.from_pretrained(folder, tokens=make_tokens(5), base_url=url, **arguments)

    return connect


class TestConnecting:
    def test_connections_are_closed_when_the_model_is_dropped(self, server, connect):
        model = connect(server.url)
        model.generate(PROMPT)
        client = model.backend._servers.all[0].client
        del model
        gc.collect()
        deadline = time.monotonic() + 10
        while not client.is_closed() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert client.is_closed()

    def test_says_what_the_server_has(self, server, connect):
        model = connect(server.url)
        assert model.backend.context_length == 256
        assert model.backend.concurrency == 64

    def test_dead(self, folder):
        with pytest.raises(UnreachableError, match="can't reach .*127.0.0.1:9.*spring-rag serve"):
            SpringModel.from_pretrained(folder, base_url="http://127.0.0.1:9/v1", max_retries=0)

    def test_wrong_key(self, server, folder, connect):
        server.key = "secret"
        with pytest.raises(RefusedError, match="refuses the API key.*VLLM_API_KEY"):
            SpringModel.from_pretrained(folder, base_url=server.url, api_key="wrong")
        connect(server.url, api_key="secret")

    def test_key_from_the_environment(self, server, connect, monkeypatch):
        server.key = "secret"
        monkeypatch.setenv("VLLM_API_KEY", "secret")
        connect(server.url)

    def test_a_name_that_isnt_served(self, server, folder):
        with pytest.raises(RefusedError, match="doesn't serve 'other'; it serves tiny"):
            SpringModel.from_pretrained(folder, base_url=server.url, served_model="other")

    def test_a_server_may_come_back_under_another_name(self, server, folder, connect):
        model = connect(server.url)
        before = model.generate(PROMPT)[0].text
        server.model = "another"
        with suppress(RefusedError):  # the first to notice
            model.generate(PROMPT)
        assert model.generate(PROMPT)[0].text == before

    def test_another_model_of_the_same_size(self, server, folder):
        server.honest = False
        with pytest.raises(RefusedError, match="answers otherwise to token ids than to their embeddings"):
            SpringModel.from_pretrained(folder, base_url=server.url)

    def test_tokens_of_another_backbone(self, server, connect, make_tokens):
        with pytest.raises(BackboneMismatchError):
            connect(server.url).add_tokens("wide", make_tokens(3, hidden_size=48))


class TestRefusals:
    """What a server answers with, and what the user reads."""

    def test_no_prompt_embeds(self, server, connect):
        server.embeds = False
        model = connect(server.url)
        with pytest.raises(RefusedError, match="started without --enable-prompt-embeds.*spring-rag serve"):
            model.generate(PROMPT)
        assert model.generate(PROMPT, num_tokens=0)[0].token_ids == tuple(ANSWER)

    def test_no_logprobs(self, server, connect):
        assert connect(server.url).ask("Who built it?", PROMPT.passages).logprob is None

    @pytest.mark.parametrize(
        ("status", "message", "error", "says"),
        [
            (
                400,
                "`prompt_embeds` hidden_size 32 does not match the model's hidden_size 64.",
                RefusedError,
                "another model",
            ),
            (400, "This model's maximum context length is 64 tokens.", PromptTooLongError, "too long"),
            (400, "min_p must be in [0, 1]", BackendError, "refuses the request: min_p"),
            (404, "The model `tiny` does not exist.", RefusedError, "doesn't serve the model 'tiny'"),
            (404, "Not Found", RefusedError, "ends in /v1"),
            (429, "slow down", UnreachableError, "more requests than it takes"),
            (500, "EngineCore died", UnreachableError, "status 500: EngineCore died"),
            (503, "starting", UnreachableError, "status 503"),
        ],
    )
    def test_one_clear_error_each(self, server, connect, status, message, error, says):
        model = connect(server.url)
        server.refusals = [(status, message)]
        with pytest.raises(error, match=says) as caught:
            model.generate(PROMPT)
        assert type(caught.value) is error
        assert server.url in str(caught.value)
        stream = model.stream(PROMPT)
        with pytest.raises(error, match=says):
            list(stream)

    def test_too_slow(self, server, connect):
        model = connect(server.url, timeout=0.3)
        server.delay = 1.0
        with pytest.raises(UnreachableError, match="longer than the timeout"):
            model.generate(PROMPT)

    @pytest.mark.parametrize("fault", ["silent", "dripping"])
    def test_no_server_holds_a_caller_for_longer_than_the_timeout(self, server, connect, fault):
        model = connect(server.url, timeout=0.5, max_retries=3)
        if fault == "silent":
            server.delay = 30
        else:
            server.dripping = 0.1
        for ask in (lambda: model.generate(PROMPT), lambda: list(model.stream(PROMPT))):
            start = time.monotonic()
            with pytest.raises(UnreachableError, match=r"took longer than the timeout of 0\.5 s") as caught:
                ask()
            assert time.monotonic() - start < 5
            assert server.url in str(caught.value)
            assert "\n" not in str(caught.value)

    def test_a_server_that_drips_from_the_start(self, server, folder):
        server.dripping = 0.1
        start = time.monotonic()
        with pytest.raises(UnreachableError, match="longer than the timeout"):
            SpringModel.from_pretrained(folder, base_url=server.url, timeout=0.5, max_retries=3)
        assert time.monotonic() - start < 5

    def test_a_long_stream_may_take_longer_than_the_timeout(self, server, connect):
        model = connect(server.url, timeout=1.0)
        stream, start = model.stream(PROMPT), time.monotonic()
        while time.monotonic() - start < 1.5:
            assert next(stream)
        stream.close()

    def test_waits_a_minute_unless_told(self, server, folder, connect):
        assert [each.timeout for each in connect(server.url).backend._servers.all] == [60.0]
        with pytest.raises(ValueError, match="timeout is 0; it must be"):
            SpringModel.from_pretrained(folder, base_url=server.url, timeout=0)

    def test_too_long_is_found_out_here(self, server, connect):
        model = connect(server.url)
        sent = len(server.log)
        with pytest.raises(PromptTooLongError):
            model.generate("a " * 300)
        assert len(server.log) == sent


class TestRecovering:
    def test_retries(self, server, connect):
        model = connect(server.url, max_retries=2)
        server.refusals = [(503, "starting"), None]
        assert model.generate(PROMPT)[0].form == "exact"

    def test_one_failure_among_many_is_one_error_that_keeps_the_others(self, server, connect):
        model = connect(server.url, concurrency=1)
        server.refusals = [None, None, (400, "odd"), None]
        with pytest.raises(
            PartlyAnsweredError, match="1 of 6 requests failed, the first of them number 3: .*odd"
        ) as caught:
            model.generate([PROMPT] * 6)
        assert [answer is not None for answer in caught.value.answers] == [
            True,
            True,
            False,
            True,
            True,
            True,
        ]

    def test_a_dead_server_fails_all_at_once(self, connect):
        with fake_vllm() as server:
            model = connect(server.url)
        start = time.monotonic()
        with pytest.raises(UnreachableError):
            model.generate([PROMPT] * 200)
        assert time.monotonic() - start < 10

    def test_next_server_where_one_is_dead(self, server, connect):
        with fake_vllm() as other:
            model = connect([other.url, server.url])
            model.generate([PROMPT] * 8)
            assert len(other.log) > 3
            assert len(server.log) > 3
        assert len(model.generate([PROMPT] * 8)) == 8
        for _ in range(2):
            stream = model.stream(PROMPT)
            assert next(stream)
            stream.close()

    def test_all_dead(self, connect):
        with fake_vllm() as one, fake_vllm() as two:
            model = connect([one.url, two.url])
        with pytest.raises(UnreachableError):
            model.generate(PROMPT)

    def test_comes_back_by_itself(self, server, connect):
        model = connect(server.url)
        server.refusals = [(500, "died")]
        with pytest.raises(UnreachableError):
            model.generate(PROMPT)
        server.refusals = [None]
        assert model.generate(PROMPT)[0].token_ids == tuple(ANSWER)

    def test_asked_anew_after_a_failure(self, server, connect):
        model = connect(server.url)
        server.refusals = [(500, "died")]
        with pytest.raises(UnreachableError):
            model.generate(PROMPT)
        server.honest, server.refusals = False, [None]
        with pytest.raises(RefusedError, match="serves another model"):
            model.generate(PROMPT)


class TestConcurrency:
    def test_all_in_flight_up_to_the_limit(self, server, connect):
        model = connect(server.url, concurrency=7)
        server.delay = 0.1
        assert len(model.generate([PROMPT] * 20, batch_size=1)) == 20
        assert server.most_at_once == 7

    def test_threads_share_the_limit(self, server, connect):
        model = connect(server.url, concurrency=3)
        server.delay = 0.05
        with ThreadPoolExecutor(8) as threads:
            assert len(list(threads.map(lambda _: model.generate(PROMPT), range(16)))) == 16
        assert server.most_at_once == 3

    async def test_async(self, server, connect):
        model = connect(server.url)
        asked = request(model.backend, PROMPT, None, None, GenerationSettings())
        answers = await model.backend.agenerate([asked] * 4, GenerationSettings())
        assert [answer.token_ids for answer in answers] == [tuple(ANSWER)] * 4

    async def test_async_cancelled(self, server, connect):
        model = connect(server.url)
        server.delay = 0.5
        asked = request(model.backend, PROMPT, None, None, GenerationSettings())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(model.backend.agenerate([asked], GenerationSettings()), 0.1)

    def test_closing_a_stream_closes_the_connection(self, server, connect):
        stream = connect(server.url).stream(PROMPT)
        next(stream)
        stream.close()
        deadline = time.monotonic() + 5
        while not server.broken_off and time.monotonic() < deadline:
            time.sleep(0.02)
        assert server.broken_off == 1

    async def test_leaving_an_async_stream_closes_the_connection(self, server, connect):
        model = connect(server.url)
        asked = request(model.backend, PROMPT, None, None, GenerationSettings())
        stream = model.backend.astream(asked, GenerationSettings())
        assert isinstance(await anext(stream), str)
        await stream.aclose()
        deadline = time.monotonic() + 5
        while not server.broken_off and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        assert server.broken_off == 1


class TestSettings:
    def test_sent(self, server, connect):
        model = connect(server.url)
        model.generate(
            PROMPT, max_new_tokens=9, temperature=0.7, top_p=0.9, top_k=5, stop=["\n"], seed=2**63 + 3
        )
        _, body = server.log[-1]
        sent = {name: body[name] for name in ("max_tokens", "temperature", "top_p", "top_k", "stop", "seed")}
        assert sent == {
            "max_tokens": 9,
            "temperature": 0.7,
            "top_p": 0.9,
            "top_k": 5,
            "stop": ["\n"],
            "seed": 3,
        }
        assert body["stop_token_ids"] == [model.tokenizer.eos_token_id]

    def test_plain_prompts_go_as_ids(self, server, connect):
        model = connect(server.url)
        answer = model.generate("who?")[0]
        assert answer.form == "ids"
        assert "prompt_embeds" not in server.log[-1][1]


IN_PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{{ part.text }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
)


class TestThinking:
    @pytest.fixture
    def model(self, server, tmp_path, monkeypatch):
        tokenizer = tokenizer_of("gpt-oss")
        model = writing(tokenizer, "a</s>", 1)
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        written = tokenizer(FAMILIES["gpt-oss"].written, add_special_tokens=False).input_ids
        monkeypatch.setattr("fake_vllm.ANSWER", written)
        return SpringModel.from_pretrained(tmp_path, base_url=server.url, max_retries=0)

    def test_thoughts_are_parted_from_the_answer(self, model):
        found = model.generate(RagPrompt("Where?", [], RagTemplate(chat=True)))[0]
        assert (found.reasoning, found.text) == ("hm", "Oslo")

    def test_a_server_that_lays_chats_out_is_told(self):
        tokenizer = letters(IN_PARTS, added=("<think>", "</think>"))
        prompt = RagPrompt("Where?", ["Oslo."], RagTemplate(chat=True)).to_prompt()
        layout = ServerTokenizer(tokenizer).templated(prompt, encode(prompt, tokenizer))
        assert layout is not None
        assert layout.arguments == {"enable_thinking": False}
        call = Call("light", embeddings=torch.zeros(1, 4), layout=layout)
        client = openai.AsyncOpenAI(base_url="http://127.0.0.1:9/v1", api_key="none")
        _, arguments = call._endpoint(client, "tiny", {})
        assert arguments["extra_body"]["chat_template_kwargs"] == layout.arguments
