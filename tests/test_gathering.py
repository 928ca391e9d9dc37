"""Test calls of several threads that are gathered into batches: each gets the answer it would get alone, and no thread is left over."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from spring_rag.backends.base import BATCH_SIZE, Generation, GenerationSettings, Request, Usage
from spring_rag.backends.gathering import Gathering
from spring_rag.backends.local import LocalBackend
from spring_rag.encoding import Encoded
from spring_rag.errors import BackendError, PromptTooLongError

pytestmark = pytest.mark.filterwarnings("ignore:these virtual tokens don't record their backbone")

GREEDY = GenerationSettings(max_new_tokens=8)
TEXTS = [
    "Who built the lighthouse?",
    "[1] The lighthouse at Grey Point was built in 1887 by the firm of Hale and Sons.\n\nQuestion: who?\nAnswer:",
    "mountains and law books, ships and captains",
    "Der Fluß fließt nach Süden",
]


@pytest.fixture(scope="module")
def backend(build_model, tokenizer, make_tokens):
    backend = LocalBackend(build_model("llama", tied=False, seed=1), tokenizer)
    backend.hf_model.generation_config.eos_token_id = None
    backend.add_tokens("default", make_tokens(6))
    backend.add_tokens("other", make_tokens(4, seed=2))
    return backend


@pytest.fixture(scope="module")
def requests(tokenizer):
    """32 different ones: prompts, numbers of tokens and sets mixed."""
    encoded = [Encoded(tuple(tokenizer(text)["input_ids"]), 4) for text in TEXTS]
    return [Request(encoded[i % 4], (None, "other")[i // 4 % 2], (0, 1, 2, 4)[i // 8]) for i in range(32)]


class Batches:
    """Stands in front of a backend's model: counts the rows of its batches, and can hold it up."""

    def __init__(self, backend, monkeypatch):
        self.sizes: list[int] = []
        self.began = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self._run = backend._gathering._run
        monkeypatch.setattr(backend._gathering, "_run", self)

    def __call__(self, requests, rows, settings):
        self.sizes.append(len(requests))
        self.began.set()
        assert self.go_on.wait(60)
        return self._run(requests, rows, settings)

    def hold(self):
        self.began.clear()
        self.go_on.clear()


@pytest.fixture
def batches(backend, monkeypatch):
    return Batches(backend, monkeypatch)


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def arrived(backend, count):
    wait_until(lambda: len(backend._gathering._waiting) == count)


def test_threads_get_the_answers_they_would_get_alone(backend, requests):
    alone = [backend.generate([request], GREEDY)[0] for request in requests]
    assert len({answer.text for answer in alone}) > 16, "ks, sets and prompts make no difference"
    with ThreadPoolExecutor(32) as pool:
        for _ in range(3):
            found = list(pool.map(lambda request: backend.generate([request], GREEDY)[0], requests))
            assert found == alone


def test_what_arrives_meanwhile_is_one_batch(backend, batches, requests):
    batches.hold()
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(backend.generate, requests[:1], GREEDY)
        batches.began.wait(60)
        others = [pool.submit(backend.generate, requests[i : i + 2], GREEDY) for i in (1, 3, 5)]
        arrived(backend, 3)
        batches.go_on.set()
        found = first.result() + [answer for other in others for answer in other.result()]
    assert batches.sizes == [1, 6]
    assert found == backend.generate(requests[:7], GREEDY)


def test_a_batch_has_a_most_and_goes_by_length(backend, batches, requests):
    many = sorted(requests * 2, key=lambda request: len(request.encoded.ids))
    lengths: list[list[int]] = []
    batches.hold()
    run = batches._run
    batches._run = lambda found, *rest: (
        lengths.append([len(request.encoded.ids) for request in found]) or run(found, *rest)
    )
    with ThreadPoolExecutor(65) as pool:
        first = pool.submit(backend.generate, requests[:1], GREEDY)
        batches.began.wait(60)
        others = [pool.submit(backend.generate, [request], GREEDY) for request in many]
        arrived(backend, 64)
        batches.go_on.set()
        for each in [first, *others]:
            each.result()
    assert batches.sizes == [1, BATCH_SIZE, BATCH_SIZE]
    long, short = sorted(lengths[1:], key=max, reverse=True)
    assert min(long) >= max(short)


def test_other_settings_are_another_batch(backend, batches, requests):
    settings = [GREEDY, GenerationSettings(max_new_tokens=3)]
    batches.hold()
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(backend.generate, requests[:1], GREEDY)
        batches.began.wait(60)
        others = [pool.submit(backend.generate, requests[i : i + 1], settings[i % 2]) for i in range(4)]
        arrived(backend, 4)
        batches.go_on.set()
        first.result()
        found = [other.result() for other in others]
    assert batches.sizes == [1, 2, 2]
    assert found == [backend.generate(requests[i : i + 1], settings[i % 2]) for i in range(4)]


def test_sampled_calls_run_alone(backend, batches, requests):
    sampled = GenerationSettings(max_new_tokens=8, temperature=1.0, seed=3)
    alone = backend.generate(requests[:1], sampled)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: backend.generate(requests[:1], sampled), range(8)))
    assert found == [alone] * 8
    assert batches.sizes == []


def test_one_error_is_not_anothers(backend, batches, requests, monkeypatch):
    run = batches._run

    def fail(found, rows, settings):
        if any(request is requests[2] for request in found):
            msg = "out of memory"
            raise RuntimeError(msg)
        return run(found, rows, settings)

    monkeypatch.setattr(batches, "_run", fail)
    batches.hold()
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(backend.generate, requests[:1], GREEDY)
        batches.began.wait(60)
        others = [pool.submit(backend.generate, [request], GREEDY) for request in requests[1:4]]
        arrived(backend, 3)
        batches.go_on.set()
        first.result()
        assert others[0].result() + others[2].result() == [
            backend.generate([request], GREEDY)[0] for request in (requests[1], requests[3])
        ]
        with pytest.raises(RuntimeError, match="out of memory"):
            others[1].result()
    assert batches.sizes[:2] == [1, 3]


def test_a_prompt_that_is_too_long_spoils_no_other(backend, requests):
    too_long = Request(Encoded(tuple([5] * 300), 0))
    with ThreadPoolExecutor(16) as pool:
        found = [pool.submit(backend.generate, [each], GREEDY) for each in [*requests[:8], too_long] * 2]
    for i, future in enumerate(found):
        if i % 9 == 8:
            with pytest.raises(PromptTooLongError):
                future.result()
        else:
            assert future.result() == backend.generate([requests[i % 9]], GREEDY)


def test_an_interrupted_leader_leaves_the_others_to_the_next(backend, batches, requests, monkeypatch):
    run, interrupted = batches._run, []

    def interrupt(found, rows, settings):
        if len(found) > 1 and not interrupted:
            interrupted.append(threading.current_thread())
            raise KeyboardInterrupt
        return run(found, rows, settings)

    monkeypatch.setattr(batches, "_run", interrupt)
    batches.hold()
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(backend.generate, requests[:1], GREEDY)
        batches.began.wait(60)
        others = [pool.submit(backend.generate, [request], GREEDY) for request in requests[1:5]]
        arrived(backend, 4)
        batches.go_on.set()
        first.result()
        ends = [other.exception() for other in others]
    assert sorted(type(end).__name__ for end in ends) == ["KeyboardInterrupt", *["NoneType"] * 3]
    assert not backend._gathering._waiting


def test_an_interrupted_leader_that_waits_for_the_model_is_forgotten(backend, batches, requests, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(backend._gathering, "_expect_company", interrupt)
        with pytest.raises(KeyboardInterrupt):
            backend.generate(requests[:1], GREEDY)
    assert not backend._gathering._waiting
    backend.generate(requests[1:2], GREEDY)
    assert batches.sizes == [1]


def test_streams_take_turns_with_batches(backend, requests):
    alone = backend.generate(requests[:8], GREEDY)
    stream = backend.stream(requests[0], GenerationSettings(max_new_tokens=60))
    next(stream)
    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(backend.generate, [request], GREEDY) for request in requests[:8]]
        stream.close()
        assert [each.result()[0] for each in found] == alone


def test_threads_that_ask_again_meet_again(backend, batches, requests):
    def ask(request):
        return [backend.generate([request], GREEDY)[0] for _ in range(4)]

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, requests[:16]))
    assert sum(batches.sizes) == 64
    assert len(batches.sizes) <= 16, batches.sizes


def test_who_is_alone_does_not_wait():
    """Against a model that takes no time: what a lone caller pays is far less than the window."""
    answer = Generation("", "stop", Usage(0, 0, 1, 1), ())
    gathering = Gathering(lambda requests, rows, settings: [answer] * len(requests), threading.Lock())
    request = Request(Encoded((1,), None))
    took, before = [], threading.active_count()
    for _ in range(50):
        start = time.perf_counter()
        gathering.answer([request], [torch.empty(0, 4)], GREEDY)
        took.append(time.perf_counter() - start)
    assert sorted(took)[25] < 0.001
    assert threading.active_count() < before + 10


def test_no_thread_of_its_own(backend, requests):
    before = set(threading.enumerate())
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda request: backend.generate([request], GREEDY), requests))
    assert set(threading.enumerate()) <= before


def test_errors_of_the_model_itself_reach_every_caller(build_model, tokenizer, make_tokens, requests):
    backend = LocalBackend(build_model("llama"), tokenizer)
    backend.add_tokens("default", make_tokens(6))
    backend.hf_model.generation_config.num_beams = 4
    plain = [Request(request.encoded) for request in requests[:4]]
    with ThreadPoolExecutor(4) as pool:
        for each in [pool.submit(backend.generate, [request], GREEDY) for request in plain]:
            with pytest.raises(BackendError, match="num_beams"):
                each.result()
