from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from spring_rag import RagPrompt, RagTemplate, SpringModel, VirtualTokens
from spring_rag.backbone import BackboneRecord
from spring_rag.backends.local import LocalBackend
from spring_rag.encoding import encode
from spring_rag.errors import BackboneMismatchError, BackendError, PromptTooLongError, TokensError
from spring_rag.prompt import Prompt, Slot, Text

pytestmark = pytest.mark.filterwarnings("ignore:these virtual tokens don't record their backbone")

PASSAGES = ["The lighthouse was built by Hale and Sons.", "Grey Point lies in the north.", "Ships pass it."]


def _prompt(question="Who built it?", passages=PASSAGES[:1]):
    return RagPrompt(question, passages)


@pytest.fixture
def model(llama, tokenizer, make_tokens):
    model = SpringModel(llama, tokenizer, tokens=make_tokens(6))
    model.add_tokens("other", make_tokens(4, seed=1))
    return model


def _texts(model, prompts, **kwargs):
    return [one.text for one in model.generate(prompts, max_new_tokens=16, **kwargs)]


class TestConstruction:
    def test_tokens_are_checked(self, llama, tokenizer, build_model, make_tokens):
        record = BackboneRecord.of(build_model("llama", seed=9), "other/model")
        with pytest.raises(BackboneMismatchError, match="other/model"):
            SpringModel(llama, tokenizer, tokens=make_tokens(3, backbone=record))

    def test_from_pretrained(self, llama, tokenizer, make_tokens, tmp_path):
        llama.save_pretrained(tmp_path / "backbone")
        tokenizer.save_pretrained(tmp_path / "backbone")
        tokens = make_tokens(6, backbone=BackboneRecord.of(llama, "a/name"))
        tokens.save_pretrained(tmp_path / "tokens")
        loaded = SpringModel.from_pretrained(tmp_path / "backbone", tokens=tmp_path / "tokens", device="cpu")
        given = SpringModel.from_pretrained(tmp_path / "backbone", tokens=tokens, device="cpu")
        expected = _texts(SpringModel(llama, tokenizer, tokens=tokens), [_prompt()])
        assert _texts(loaded, [_prompt()]) == _texts(given, [_prompt()]) == expected

    def test_tokens_are_read_before_the_backbone(self, tmp_path):
        with pytest.raises(TokensError):
            SpringModel.from_pretrained(tmp_path / "no backbone", tokens=tmp_path / "no tokens")
        with pytest.raises(BackendError):
            SpringModel.from_pretrained(tmp_path / "no backbone")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"engine": "gguf"}, "engine is 'gguf'; expected 'transformers' or 'llama.cpp'"),
            ({"engine": "llama.cpp", "base_url": "http://localhost:8000/v1"}, "give one of the two"),
        ],
    )
    def test_engines(self, options, message):
        with pytest.raises(ValueError, match=message):
            SpringModel.from_pretrained("nowhere", **options)

    def test_from_backend(self, llama, tokenizer, make_tokens, model):
        backend = LocalBackend(llama, tokenizer)
        other = SpringModel.from_backend(backend, tokens=make_tokens(6))
        assert other.backend is backend
        assert _texts(other, [_prompt()]) == _texts(model, [_prompt()])

    def test_add_tokens_reads_files(self, model, make_tokens, tmp_path):
        make_tokens(3, seed=5).save_pt(tmp_path / "tokens.pt")
        model.add_tokens("file", tmp_path / "tokens.pt")
        assert model.generate(_prompt(), tokens="file", max_new_tokens=1)[0].usage.virtual == 3


class TestGenerate:
    def test_one_prompt_gives_a_list_of_one(self, model):
        assert len(model.generate(_prompt(), max_new_tokens=2)) == 1
        assert len(model.generate("plain text", max_new_tokens=2)) == 1
        assert len(model.generate(Prompt((Text("plain"), Slot())), max_new_tokens=2)) == 1
        assert model.generate([], max_new_tokens=2) == []

    def test_tokens_reach_the_slot(self, model, tokenizer):
        encoded = encode(_prompt(), tokenizer)
        usage = model.generate(_prompt(), max_new_tokens=2)[0].usage
        assert (usage.context, usage.virtual) == (encoded.slot, 6)
        assert usage.context + usage.suffix == len(encoded.ids)

    def test_values_per_prompt(self, model):
        prompts = [
            _prompt(question) for question in ("Who?", "Where is Grey Point?", "When?", "Why did they?")
        ]
        sets, counts = ["other", None, "other", None], [4, 0, None, 5]
        together = model.generate(prompts, tokens=sets, num_tokens=counts, max_new_tokens=16)
        alone = [
            model.generate(prompt, tokens=name, num_tokens=k, max_new_tokens=16)[0]
            for prompt, name, k in zip(prompts, sets, counts, strict=True)
        ]
        assert together == alone
        assert [one.usage.virtual for one in together] == [4, 0, 4, 5]

    @pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
    def test_micro_batches_keep_the_order(self, model, batch_size):
        prompts = [_prompt("Who built " + "the lighthouse " * n + "?") for n in (3, 0, 5, 1, 4, 2, 0)]
        assert _texts(model, prompts, batch_size=batch_size) == [_texts(model, [one])[0] for one in prompts]

    def test_micro_batches_are_small_and_of_similar_lengths(self, model, monkeypatch):
        seen = []
        generate = model.backend.generate

        def spy(requests, settings):
            seen.append([len(one.encoded.ids) for one in requests])
            return generate(requests, settings)

        monkeypatch.setattr(model.backend, "generate", spy)
        prompts = [_prompt("x" * n) for n in (1, 40, 2, 41, 3)]
        model.generate(prompts, max_new_tokens=1, batch_size=2)
        assert [len(batch) for batch in seen] == [2, 2, 1]
        lengths = [length for batch in seen for length in batch]
        assert lengths == sorted(lengths, reverse=True)

    def test_prompt_without_slot_is_answered_by_the_plain_backbone(self, model, llama, tokenizer):
        plain = SpringModel(llama, tokenizer).generate("The lighthouse", max_new_tokens=16)
        assert model.generate("The lighthouse", max_new_tokens=16) == plain
        assert plain[0].usage.virtual == 0
        assert model.generate(Prompt((Text("The lighthouse"),)), num_tokens=3, max_new_tokens=16) == plain

    def test_no_tokens_attached(self, model, llama, tokenizer):
        plain = SpringModel(llama, tokenizer)
        assert plain.generate(_prompt(), max_new_tokens=8) == model.generate(
            _prompt(), num_tokens=0, max_new_tokens=8
        )
        with pytest.raises(TokensError, match=r"num_tokens is 1, but no virtual tokens are attached"):
            plain.generate(_prompt(), num_tokens=1)

    @pytest.mark.parametrize("k", [7, -1])
    def test_k_beyond_the_set(self, model, k):
        with pytest.raises(
            TokensError, match=f"num_tokens is {k}, but the set has 6; expected a number from 0 to 6"
        ):
            model.generate([_prompt()] * 2, num_tokens=[1, k])

    def test_k_beyond_a_named_set(self, model):
        with pytest.raises(TokensError, match="the set has 4"):
            model.generate(_prompt(), tokens="other", num_tokens=5)

    @pytest.mark.parametrize("argument", [{"num_tokens": [1]}, {"tokens": ["other"] * 3}])
    def test_wrong_number_of_values(self, model, argument):
        with pytest.raises(TokensError, match="values for 2 prompts"):
            model.generate([_prompt()] * 2, **argument)

    def test_unknown_set(self, model):
        with pytest.raises(TokensError, match="'finance'; attached: 'default', 'other'"):
            model.generate(_prompt(), tokens="finance")

    @pytest.mark.parametrize(
        "setting",
        [
            {"temperature": -1.0},
            {"temperature": float("nan")},
            {"top_p": 0.0},
            {"top_p": 1.1},
            {"top_k": -1},
            {"max_new_tokens": 0},
            {"stop": ""},
            {"seed": -1},
            {"batch_size": 0},
        ],
    )
    def test_settings_out_of_range(self, model, setting):
        with pytest.raises(ValueError, match=next(iter(setting))):
            model.generate(_prompt(), **setting)

    def test_stop_as_one_string(self, model):
        text = model.generate(_prompt(), max_new_tokens=16)[0].text
        stop = next(c for c in text[1:] if c != "\ufffd")
        assert (
            _texts(model, _prompt(), stop=stop)
            == _texts(model, _prompt(), stop=[stop])
            == [text[: text.index(stop)]]
        )

    def test_threads(self, model):
        jobs = [(f"Who built number {i}?", i % 7, "default") for i in range(12)] + [("Who?", 2, "other")] * 4

        def answer(job):
            question, k, name = job
            return model.answer(question, PASSAGES, num_tokens=k, tokens=name, max_new_tokens=8)

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(answer, jobs)) == [answer(job) for job in jobs]


class TestStream:
    def test_gives_the_text_of_generate(self, model):
        settings = {"max_new_tokens": 16, "num_tokens": 3, "tokens": "other"}
        assert "".join(model.stream(_prompt(), **settings)) == model.generate(_prompt(), **settings)[0].text

    def test_errors_come_at_once(self, model):
        with pytest.raises(TokensError):
            model.stream(_prompt(), num_tokens=7)
        with pytest.raises(ValueError, match="top_p"):
            model.stream(_prompt(), top_p=2)


class TestAnswer:
    def test_is_stripped(self, model):
        text = model.generate(RagPrompt("Who?", PASSAGES), max_new_tokens=12)[0].text
        assert model.answer("Who?", PASSAGES, max_new_tokens=12) == text.strip()

    def test_uses_the_template_of_the_set(self, llama, tokenizer, make_tokens):
        template = RagTemplate(passage="* {passage}\n", question="Q: {question} A:")
        model = SpringModel(llama, tokenizer, tokens=make_tokens(6))
        model.add_tokens("special", make_tokens(6, template=template))
        expected = model.generate(RagPrompt("Who?", PASSAGES, template=template), max_new_tokens=12)[
            0
        ].text.strip()
        default = model.generate(RagPrompt("Who?", PASSAGES), max_new_tokens=12)[0].text.strip()
        assert expected != default
        assert model.answer("Who?", PASSAGES, tokens="special", max_new_tokens=12) == expected
        assert model.answer("Who?", PASSAGES, max_new_tokens=12) == default
        assert model.answer("Who?", PASSAGES, template=template, max_new_tokens=12) == expected
        assert model.template("special") == template

    def test_settings_reach_generate(self, model):
        sampled = [
            model.answer("Who?", PASSAGES, temperature=2.0, seed=seed, max_new_tokens=12)
            for seed in (1, 1, 2)
        ]
        assert sampled[0] == sampled[1] != sampled[2]


class TestContext:
    def test_lowest_ranked_passages_are_left_out(self, model, tokenizer):
        passages = [f"Passage {i} says that the lighthouse was built in 18{i}." for i in range(40)]
        usage = model.generate(RagPrompt("Who?", passages), max_new_tokens=20)[0].usage
        kept = (usage.context + usage.suffix, usage.virtual)
        assert 150 < kept[0] <= 256 - 20 - 6
        fewer = next(
            n
            for n in range(40)
            if len(encode(RagPrompt("Who?", passages[: n + 1]), tokenizer).ids) > 256 - 20 - 6
        )
        assert kept == (len(encode(RagPrompt("Who?", passages[:fewer]), tokenizer).ids), 6)

    def test_a_question_that_does_not_fit(self, model):
        with pytest.raises(PromptTooLongError):
            model.answer("Who? " * 300, PASSAGES)

    def test_a_rendered_prompt_is_never_cut(self, model):
        prompt = RagPrompt("Who?", PASSAGES * 20).to_prompt()
        with pytest.raises(PromptTooLongError, match="tokens too long"):
            model.generate(prompt)


def test_virtual_tokens_change_the_answer(model, llama, tokenizer):
    loud = VirtualTokens(torch.randn(20, 32, generator=torch.Generator().manual_seed(1)) * 3)
    model = SpringModel(llama, tokenizer, tokens=loud)
    answers = {model.answer("Who?", PASSAGES[:1], num_tokens=k, max_new_tokens=16) for k in (0, 1, 10, 20)}
    assert len(answers) > 1
