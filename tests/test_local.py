import gc
import json
import logging
import re
import shutil
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from peft import LoraConfig, get_peft_model
from transformers import BloomConfig, BloomForCausalLM, GenerationConfig
from transformers.utils import logging as hf_logging

from spring_rag.backbone import BackboneRecord
from spring_rag.backends.base import GenerationSettings, Request
from spring_rag.backends.local import LocalBackend
from spring_rag.encoding import Encoded
from spring_rag.errors import (
    BackboneMismatchError,
    BackendError,
    PromptTooLongError,
    TokensError,
    UnsupportedBackboneError,
)
from spring_rag.tokens import VirtualTokens

pytestmark = pytest.mark.filterwarnings("ignore:these virtual tokens don't record their backbone")

TEXTS = [
    ("The lighthouse at Grey Point", 4),
    ("Question: who?\nAnswer:", 3),
    ("mountains and law books, ships and captains", 1),
]


@pytest.fixture(scope="module")
def requests(tokenizer):
    return [Request(Encoded(tuple(tokenizer(text)["input_ids"]), slot)) for text, slot in TEXTS]


@pytest.fixture
def make_backend(build_model, tokenizer, make_tokens):
    """A backend on a model of its own, so that a test may change the model's generation_config."""

    def make(family="llama", seed=0, eos=None, tokenizer=tokenizer, tied=False, **generation_config):
        model = build_model(family, tied=tied, seed=seed)
        model.generation_config = GenerationConfig(eos_token_id=eos, **generation_config)
        backend = LocalBackend(model, tokenizer)
        backend.add_tokens("default", make_tokens(6))
        return backend

    return make


@pytest.fixture
def transformers_log(caplog):
    hf_logging.enable_propagation()
    caplog.set_level(logging.WARNING)
    yield caplog
    hf_logging.disable_propagation()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, build_model, tokenizer):
    path = tmp_path_factory.mktemp("backbone")
    build_model("llama", tied=False, dtype=torch.bfloat16).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def _long(**kwargs):
    return GenerationSettings(max_new_tokens=24, **kwargs)


class TestLoading:
    def test_float32_on_the_cpu(self, folder):
        backend = LocalBackend.from_pretrained(folder, device="cpu")
        assert backend.hf_model.dtype == backend.embedding.dtype == torch.float32
        assert backend.model_id == str(folder)
        assert (backend.hidden_size, backend.context_length) == (32, 256)

    @pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
    def test_dtype_asked_for(self, folder, dtype):
        backend = LocalBackend.from_pretrained(folder, device="cpu", dtype=dtype)
        assert str(backend.embedding.dtype).removeprefix("torch.") == str(dtype).removeprefix("torch.")

    def test_auto_device(self, folder, monkeypatch):
        asked = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(
            "transformers.PreTrainedModel.to",
            lambda self, device: asked.append((device.type, self.dtype)) or self,
        )
        LocalBackend.from_pretrained(folder)
        assert asked == [("cuda", torch.bfloat16)]  # the checkpoint's own dtype

    def test_device_map_is_left_alone(self, folder, monkeypatch):
        moved = []
        monkeypatch.setattr(
            "transformers.PreTrainedModel.to", lambda self, device: moved.append(device) or self
        )
        LocalBackend.from_pretrained(folder, device_map={"": "cpu"})
        assert not moved

    def test_further_arguments_reach_the_model(self, folder):
        backend = LocalBackend.from_pretrained(folder, device="cpu", attn_implementation="eager")
        assert backend.hf_model.config._attn_implementation == "eager"

    @pytest.mark.parametrize("device", ["cuda:0", "mps"])
    def test_device_that_is_not_there(self, folder, device, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        with pytest.raises(BackendError, match=f"device '{device}' isn't available"):
            LocalBackend.from_pretrained(folder, device=device)

    def test_nonsense_device(self, folder):
        with pytest.raises(BackendError, match="'gpu' is no device"):
            LocalBackend.from_pretrained(folder, device="gpu")

    @pytest.mark.parametrize(
        ("backbone", "message"),
        [
            ("/no/such/folder", "there is no folder or file '/no/such/folder' to load the backbone from"),
            ("./nowhere", "there is no folder or file './nowhere' to load the backbone from"),
            (
                "owner/offline-and-not-cached",
                "can't load the backbone from the folder or Hub id 'owner/offline-and-not-cached': ",
            ),
        ],
    )
    def test_nothing_there(self, backbone, message):
        with pytest.raises(BackendError, match=re.escape(message)) as error:
            LocalBackend.from_pretrained(backbone, device="cpu")
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
    @pytest.mark.parametrize("content", [None, b"", b"{", b"\x00" * 64])
    def test_corrupt_folder(self, folder, tmp_path, name, content):
        broken = tmp_path / "broken"
        shutil.copytree(folder, broken)
        (broken / name).unlink()
        if content is not None:
            (broken / name).write_bytes(content)
        with pytest.raises(BackendError, match="can't load the backbone"):
            LocalBackend.from_pretrained(broken, device="cpu")

    def test_missing_weights(self, folder, tmp_path, build_model):
        model = build_model("llama", tied=False)
        state = model.state_dict()
        del state["model.layers.1.mlp.up_proj.weight"]
        broken = tmp_path / "broken"
        shutil.copytree(folder, broken)
        model.save_pretrained(broken, state_dict=state)
        with pytest.raises(BackendError, match=r"incomplete: 1 weights are missing.*layers.1.mlp.up_proj"):
            LocalBackend.from_pretrained(broken, device="cpu")

    def test_unsupported_model_is_refused_by_name(self, folder, tmp_path):
        broken = tmp_path / "broken"
        shutil.copytree(folder, broken)
        config = json.loads((broken / "config.json").read_text())
        (broken / "config.json").write_text(json.dumps({**config, "hidden_size_per_layer_input": 8}))
        with pytest.raises(UnsupportedBackboneError, match="LlamaForCausalLM"):
            LocalBackend.from_pretrained(broken, device="cpu")

    @pytest.mark.parametrize(
        ("family", "fields", "expected"),
        [
            ("gpt2", {}, 256),
            ("opt", {}, 256),
            (
                "qwen2",
                {
                    "rope_parameters": {
                        "rope_type": "yarn",
                        "factor": 4.0,
                        "original_max_position_embeddings": 256,
                    }
                },
                1024,
            ),
        ],
    )
    def test_context_length(self, build_model, tokenizer, family, fields, expected):
        model = build_model(family)
        for name, value in fields.items():
            setattr(model.config, name, value)
        assert LocalBackend(model, tokenizer).context_length == expected

    def test_unknown_context_length(self, tokenizer, requests):
        model = BloomForCausalLM(BloomConfig(vocab_size=352, hidden_size=16, n_layer=1, n_head=2))
        backend = LocalBackend(model, tokenizer)
        assert backend.context_length is None
        assert backend.generate(requests, GenerationSettings(max_new_tokens=2))


class TestTokens:
    def test_fingerprint_is_checked(self, make_backend, build_model, make_tokens):
        backend = make_backend()
        fitting = make_tokens(3, backbone=BackboneRecord.of(backend.hf_model))
        backend.add_tokens("mine", fitting)
        other = make_tokens(3, backbone=BackboneRecord.of(build_model("llama", seed=5), "other/model"))
        with pytest.raises(BackboneMismatchError, match="other/model"):
            backend.add_tokens("other", other)
        assert backend.tokens("mine") is fitting

    def test_fingerprint_is_checked_on_an_offloaded_model(self, build_model, tokenizer, make_tokens):
        record = BackboneRecord.of(build_model("llama"), "some/model")
        backend = LocalBackend(cpu_offload(build_model("llama", seed=1), torch.device("cpu")), tokenizer)
        with pytest.raises(BackboneMismatchError, match="embedding tables differ"):
            backend.add_tokens("default", make_tokens(3, backbone=record))

    def test_size_is_checked(self, make_backend):
        with pytest.raises(BackboneMismatchError, match="hidden size"):
            make_backend().add_tokens("wide", VirtualTokens(torch.ones(2, 64)))

    def test_default_set(self, llama, tokenizer, make_tokens):
        backend = LocalBackend(llama, tokenizer)
        assert backend.tokens() is None
        tokens = make_tokens(2)
        backend.add_tokens("default", tokens)
        assert backend.tokens() is backend.tokens("default") is tokens

    def test_unknown_set(self, make_backend, requests):
        request = Request(requests[0].encoded, "nope", 0)
        with pytest.raises(TokensError, match="'nope'"):
            make_backend().generate([request], GenerationSettings())

    def test_none_attached(self, llama, tokenizer, requests):
        backend = LocalBackend(llama, tokenizer)
        assert backend.generate(requests, _long())[0].usage.virtual == 0
        with pytest.raises(TokensError, match="attached: none"):
            backend.generate([Request(requests[0].encoded, num_tokens=1)], _long())


class TestGenerate:
    def test_usage(self, make_backend, requests):
        answer = make_backend().generate([requests[0]], _long())[0]
        usage = answer.usage
        assert (usage.context, usage.virtual) == (4, 6)
        assert usage.context + usage.suffix == len(requests[0].encoded.ids)
        assert usage.generated == len(answer.token_ids)

    def test_no_requests(self, make_backend):
        assert make_backend().generate([], _long()) == []

    def test_length(self, make_backend, requests):
        answer = make_backend().generate([requests[0]], GenerationSettings(max_new_tokens=3))[0]
        assert (len(answer.token_ids), answer.finish_reason) == (3, "length")

    def test_end_of_sequence_ids_of_the_generation_config(self, make_backend, requests):
        free = make_backend().generate(requests, _long())
        eos = [free[0].token_ids[5], free[1].token_ids[2]]
        backend = make_backend(eos=eos)
        for request, before, after in zip(requests, free, backend.generate(requests, _long()), strict=True):
            end = next((i + 1 for i, one in enumerate(before.token_ids) if one in eos), None)
            assert after.token_ids == before.token_ids[:end]
            assert after.finish_reason == ("length" if end is None else "stop")
            assert after == backend.generate([request], _long())[0]

    def test_the_tokenizers_end_of_sequence_ends_too(self, make_backend, requests):
        backend = make_backend()
        with torch.no_grad():
            backend.hf_model.lm_head.weight[2] = 0
            backend.hf_model.lm_head.weight[3:] = 0
        hot = GenerationSettings(max_new_tokens=200, temperature=1e6, seed=0)
        answer = backend.generate([requests[0]], hot)[0]
        assert 2 not in answer.token_ids[:-1]
        assert answer.finish_reason == ("stop" if answer.token_ids[-1] == 2 else "length")

    def test_stop_strings(self, make_backend, requests):
        backend = make_backend()
        free = backend.generate(requests, _long())
        stop = tuple(next(c for c in one.text[3:] if c != "\ufffd") for one in free[:2])
        for request, before, after in zip(
            requests, free, backend.generate(requests, _long(stop=stop)), strict=True
        ):
            found = [before.text.find(string) for string in stop if string in before.text]
            assert after.text == (before.text[: min(found)] if found else before.text)
            assert after.finish_reason == ("stop" if found else "length")
            assert before.token_ids[: len(after.token_ids)] == after.token_ids
            assert after == backend.generate([request], _long(stop=stop))[0]
        assert sum(one.finish_reason == "stop" for one in backend.generate(requests, _long(stop=stop))) >= 2

    def test_a_stop_string_saves_the_rest(self, make_backend, requests):
        backend = make_backend()
        text = backend.generate([requests[0]], _long())[0].text
        calls = []
        backend.hf_model.register_forward_hook(lambda *_: calls.append(1))
        backend.generate([requests[0]], _long(stop=(text[:1],)))
        assert len(calls) < 5

    def test_stop_string_that_begins_in_the_prompt(self, make_backend, requests, tokenizer):
        backend = make_backend()
        free = backend.generate([requests[0]], _long())[0]
        across = tokenizer.decode(requests[0].encoded.ids[-1:]) + free.text[:1]
        assert across not in free.text
        assert backend.generate([requests[0]], _long(stop=(across,)))[0] == free

    def test_training_mode(self, build_model, tokenizer, requests):
        model = build_model("gpt2")
        backend = LocalBackend(model, tokenizer)
        expected = backend.generate(requests, _long())
        model.train()
        assert backend.generate(requests, _long()) == expected
        assert all(module.training for module in model.modules())

    @pytest.mark.parametrize("method", ["cpu_offload", "device_map"])
    def test_spread_models_answer_alike(
        self, build_model, tokenizer, make_tokens, requests, method, tmp_path
    ):
        whole, model = build_model("llama", tied=False), build_model("llama", tied=False)
        if method == "cpu_offload":
            spread = cpu_offload(model, torch.device("cpu"))
        else:
            device_map = {
                "model.embed_tokens": "disk",
                "model.layers": "cpu",
                "model.norm": "disk",
                "lm_head": "cpu",
            }
            device_map["model.rotary_emb"] = "cpu"
            spread = dispatch_model(
                model, device_map, main_device="cpu", offload_dir=tmp_path, force_hooks=True
            )
        answers = []
        for one in (whole, spread):
            backend = LocalBackend(one, tokenizer)
            backend.add_tokens("default", make_tokens(6))
            answers.append(backend.generate(requests, _long()))
        assert answers[0] == answers[1]

    def test_peft_model(self, build_model, tokenizer, make_tokens, requests):
        adapted = get_peft_model(build_model("llama", tied=False), LoraConfig(task_type="CAUSAL_LM", r=2))
        answers = []
        for one in (adapted, adapted.merge_and_unload()):
            backend = LocalBackend(one, tokenizer)
            backend.add_tokens("default", make_tokens(6))
            answers.append(backend.generate(requests, _long()))
        assert answers[0] == answers[1]

    def test_threads_get_the_answers_they_would_get_alone(self, make_backend, requests):
        backend = make_backend()
        jobs = [(request, k) for request in requests for k in (0, 1, 6)] * 3
        alone = [backend.generate([Request(r.encoded, None, k)], _long()) for r, k in jobs]
        with ThreadPoolExecutor(9) as pool:
            together = list(
                pool.map(lambda job: backend.generate([Request(job[0].encoded, None, job[1])], _long()), jobs)
            )
        assert together == alone


class TestSampling:
    def test_repeats(self, make_backend, requests):
        backend = make_backend()
        runs = [backend.generate(requests, _long(temperature=1.0, seed=seed)) for seed in (3, 3, 4)]
        assert runs[0] == runs[1] != runs[2]

    def test_does_not_depend_on_neighbours(self, make_backend, requests):
        backend = make_backend()
        settings = _long(temperature=0.8, top_p=0.9, top_k=30, seed=7)
        batched = backend.generate(requests, settings)
        assert batched == [backend.generate([request], settings)[0] for request in requests]
        assert [one.text for one in batched] == [
            "".join(backend.stream(request, settings)) for request in requests
        ]

    def test_leaves_the_global_random_state_alone(self, make_backend, requests):
        backend = make_backend()
        before = torch.get_rng_state()
        backend.generate(requests, _long(temperature=1.0, seed=3))
        assert torch.equal(torch.get_rng_state(), before)

    def test_without_a_seed_follows_the_global_random_state(self, make_backend, requests):
        backend = make_backend()
        runs = []
        with torch.random.fork_rng():
            for seed in (1, 1, 2):
                torch.manual_seed(seed)
                runs.append(backend.generate(requests, _long(temperature=1.0)))
        assert runs[0] == runs[1] != runs[2]

    def test_top_k_of_one_is_greedy(self, make_backend, requests):
        backend = make_backend()
        assert backend.generate(requests, _long(temperature=5.0, top_k=1, seed=0)) == backend.generate(
            requests, _long()
        )

    def test_draws_from_the_softmax(self, make_backend, requests):
        backend = make_backend()
        prompt = requests[0].encoded
        with torch.no_grad():
            logits = backend.hf_model(torch.tensor([prompt.ids])).logits[0, -1]
        expected = torch.softmax(logits / 2, dim=-1)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            many = backend.generate(
                [Request(prompt, num_tokens=0)] * 4000, GenerationSettings(max_new_tokens=1, temperature=2.0)
            )
        found = torch.bincount(torch.tensor([one.token_ids[0] for one in many]), minlength=352) / 4000
        assert (found - expected).abs().sum() < 2 * (2 * expected / 4000 / torch.pi).sqrt().sum()
        assert (found - expected).abs().max() < 5 * (expected * (1 - expected) / 4000).sqrt().max()


class TestGenerationConfig:
    def test_sampling_and_lengths_of_the_model_are_ignored(self, make_backend, requests, transformers_log):
        plain = make_backend().generate(requests, _long())
        asking = {
            "do_sample": True,
            "temperature": 0.6,
            "top_p": 0.5,
            "top_k": 3,
            "min_p": 0.1,
            "typical_p": 0.9,
        }
        for lengths in ({}, {"max_length": 30}, {"max_new_tokens": 2}):
            backend = make_backend(**asking, **lengths)
            transformers_log.clear()
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert backend.generate(requests, _long()) == plain
                backend.generate(requests, _long(temperature=0.7, top_p=0.8, top_k=9, seed=1))
            assert transformers_log.messages == []

    def test_sampling_of_the_model_does_not_leak_into_sampling(self, make_backend, requests):
        settings = _long(temperature=1.0, seed=1)
        assert make_backend(do_sample=True, temperature=0.01, top_k=1, min_p=0.9).generate(
            requests, settings
        ) == (make_backend().generate(requests, settings))

    @pytest.mark.parametrize(
        "asked", [{"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 2}, {"bad_words_ids": [[5], [9, 7]]}]
    )
    def test_penalties_hold_as_in_plain_generation(self, make_backend, requests, asked):
        backend = make_backend(**asked)
        answers = backend.generate([Request(one.encoded, num_tokens=0) for one in requests], _long())
        for request, answer in zip(requests, answers, strict=True):
            ids = torch.tensor([request.encoded.ids])
            plain = backend.hf_model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=24,
                do_sample=False,
                pad_token_id=2,
                eos_token_id=2,
            )
            assert list(answer.token_ids) == plain[0, ids.shape[1] :].tolist()

    def test_a_penalty_sees_the_prompts_ids_and_no_others(self, make_backend, requests):
        """So hard a penalty bans what stands in the prompt; batched, alone and with any k."""
        backend = make_backend(repetition_penalty=1e6)
        calls = [Request(one.encoded, num_tokens=k) for one, k in zip(requests, (6, 0, 3), strict=True)]
        answers = backend.generate(calls, _long())
        assert answers == [backend.generate([call], _long())[0] for call in calls]
        for call, answer in zip(calls, answers, strict=True):
            assert not set(answer.token_ids) & set(call.encoded.ids)
            assert len(set(answer.token_ids)) == len(answer.token_ids)

    @pytest.mark.parametrize(
        "asked",
        [
            {"num_beams": 4},
            {"guidance_scale": 1.5},
            {"prompt_lookup_num_tokens": 3},
            {"stop_strings": ["x"]},
            {"penalty_alpha": 0.6},
        ],
    )
    def test_what_cannot_work_is_refused_by_name(self, make_backend, requests, asked):
        (name,) = asked
        with pytest.raises(BackendError, match=f"generation_config sets {name}="):
            make_backend(**asked).generate(requests, _long())


class TestContext:
    def test_too_long_says_by_how_much(self, make_backend, requests):
        request = requests[0]
        fitting = 256 - len(request.encoded.ids) - 6
        backend = make_backend()
        with pytest.raises(
            PromptTooLongError, match=r"3 tokens too long: .* make 259, and the backbone's context holds 256"
        ):
            backend.generate([request], GenerationSettings(max_new_tokens=fitting + 3))
        with pytest.raises(PromptTooLongError):
            backend.stream(request, GenerationSettings(max_new_tokens=fitting + 1))

    @pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
    def test_full_to_the_last_position(self, make_backend, requests, family):
        backend = make_backend(family)
        settings = GenerationSettings(max_new_tokens=256 - len(requests[0].encoded.ids) - 6)
        assert backend.generate([requests[0]], settings)[0].usage.generated > 0

    def test_answers_that_cross_phi3s_switch_are_refused(self, make_backend, requests):
        backend = make_backend("phi3")
        length = len(requests[0].encoded.ids) + 6
        backend.position_switch = length + 10
        backend.generate([requests[0]], GenerationSettings(max_new_tokens=11))
        with pytest.raises(PromptTooLongError, match="max_new_tokens may be 11 at most"):
            backend.generate([requests[0]], GenerationSettings(max_new_tokens=12))
        plain = Request(requests[0].encoded, num_tokens=0)
        assert backend.generate([plain], GenerationSettings(max_new_tokens=30))[0].usage.generated > 0

    def test_yarn_has_no_such_switch(self, make_backend, requests):
        backend = make_backend("qwen2")
        length = len(requests[0].encoded.ids) + 6
        backend.hf_model.config.original_max_position_embeddings = length + 10
        backend.hf_model.config.rope_parameters = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}
        settings = GenerationSettings(max_new_tokens=30)
        assert backend.generate([requests[0]], settings)[0].usage.virtual > 0


def _live_streams():
    return [thread for thread in threading.enumerate() if thread.name == "spring-rag-stream"]


class TestStream:
    @pytest.mark.parametrize("kind", ["tokenizer", "byte_fallback_tokenizer"])
    def test_pieces_make_the_text_of_generate(self, make_backend, requests, kind, request):
        tokenizer = request.getfixturevalue(kind)
        one = Request(Encoded(tuple(tokenizer("The 東京 lighthouse")["input_ids"]), 2))
        several = 0
        for seed in range(15):
            backend = make_backend(seed=seed, tokenizer=tokenizer)
            for settings in (
                _long(),
                _long(temperature=1.5, seed=seed),
                _long(temperature=1.0, seed=seed, stop=("e", "an")),
            ):
                expected = backend.generate([one], settings)[0]
                stream = backend.stream(one, settings)
                pieces = list(stream)
                assert stream.generation == expected
                assert "".join(pieces) == expected.text
                assert all(pieces)
                several += len(pieces) > 2
        assert several > 5

    @pytest.mark.parametrize("kind", ["tokenizer", "byte_fallback_tokenizer"])
    def test_characters_of_several_tokens_come_whole(self, make_backend, kind, request):
        """The model is made to write a text: its scores are replaced by the ids of that text."""
        tokenizer = request.getfixturevalue(kind)
        text = "東京 é😀🚢 Fluß!"
        backend = make_backend(tokenizer=tokenizer)
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], 2]
        assert len(ids) > len(text)
        steps = iter(ids)

        def write(module, args, output):
            output.logits = torch.nn.functional.one_hot(torch.tensor([[next(steps)]]), 352).float()
            return output

        handle = backend.hf_model.register_forward_hook(write)
        pieces = list(backend.stream(Request(Encoded((1, 5), 1)), GenerationSettings(max_new_tokens=64)))
        handle.remove()
        assert "".join(pieces) == text
        assert not any("\ufffd" in piece for piece in pieces)
        assert len(pieces) > 2

    def test_begun_stop_strings_are_held_back(self, make_backend, tokenizer):
        backend = make_backend()
        ids = tokenizer("abcabd END abc STOPPED", add_special_tokens=False)["input_ids"]

        def stream(stop):
            steps = iter([*ids, 2])

            def write(module, args, output):
                output.logits = torch.nn.functional.one_hot(torch.tensor([[next(steps)]]), 352).float()
                return output

            handle = backend.hf_model.register_forward_hook(write)
            try:
                return list(
                    backend.stream(
                        Request(Encoded((1, 5), 1)), GenerationSettings(max_new_tokens=64, stop=stop)
                    )
                )
            finally:
                handle.remove()

        assert "".join(stream(("abd",))) == "abc"
        assert "".join(stream(("STOP", "ENDE"))) == "abcabd END abc "
        assert "".join(stream(("STOPPED!",))) == "abcabd END abc STOPPED"
        assert "".join(stream(("bd E", "abcabd"))) == ""

    def test_closing_stops_the_model_and_frees_it(self, make_backend, requests):
        backend = make_backend()
        calls = []
        backend.hf_model.register_forward_hook(lambda *_: calls.append(time.sleep(0.01)))
        stream = backend.stream(requests[0], GenerationSettings(max_new_tokens=200))
        next(stream)
        stream.close()
        seen = len(calls)
        assert seen < 150
        assert not _live_streams()
        time.sleep(0.1)
        assert len(calls) == seen
        assert backend.generate([requests[0]], GenerationSettings(max_new_tokens=2))

    def test_dropping_it_stops_the_model(self, make_backend, requests):
        backend = make_backend()
        backend.hf_model.register_forward_hook(lambda *_: time.sleep(0.01))
        for _ in backend.stream(requests[0], GenerationSettings(max_new_tokens=200)):
            break
        gc.collect()
        assert not _live_streams()

    def test_closing_while_it_waits_for_the_model(self, make_backend, requests):
        backend = make_backend()
        with backend._lock:
            waiting = ThreadPoolExecutor(1).submit(lambda: next(backend.stream(requests[0], _long()), None))
            time.sleep(0.1)
            assert _live_streams()
            assert not waiting.done()
        assert waiting.result(timeout=10) is not None

    def test_an_unread_stream_starts_nothing(self, make_backend, requests):
        before = len(_live_streams())
        stream = make_backend().stream(requests[0], _long())
        assert len(_live_streams()) == before
        stream.close()

    def test_a_stream_that_is_not_read_does_not_block_others(self, make_backend, requests):
        backend = make_backend()
        stream = backend.stream(requests[0], _long())
        next(stream)
        assert backend.generate([requests[1]], _long())[0].text
        stream.close()

    def test_errors_reach_the_reader(self, make_backend, requests):
        backend = make_backend(num_beams=2)
        with pytest.raises(BackendError, match="num_beams"):
            list(backend.stream(requests[0], _long()))
        assert not _live_streams()


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["llama", "gemma2", "opt"])
def test_cuda(family, build_model, tokenizer, make_tokens, requests):
    answers = []
    for device in ("cpu", "cuda"):
        backend = LocalBackend(build_model(family, tied=False).to(device), tokenizer)
        backend.add_tokens("default", make_tokens(6))
        assert backend.embedding.device.type == device
        settings = _long(temperature=1.0, seed=1)
        assert backend.generate(requests, settings) == backend.generate(requests, settings)
        batched = backend.generate(requests, _long())
        assert [one.text for one in batched] == ["".join(backend.stream(one, _long())) for one in requests]
        answers.append(batched)
    assert answers[0] == answers[1]
