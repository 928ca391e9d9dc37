import pytest
import torch
from accelerate import cpu_offload
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertLMHeadModel,
    Gemma3nTextConfig,
    Gemma4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from spring_rag.encoding import Encoded
from spring_rag.errors import PromptError, TokensError, UnsupportedBackboneError
from spring_rag.splice import InputEmbedding, TokenBank, evaluating, splice_batch

HIDDEN = 32


@pytest.fixture(scope="module")
def embedding(llama):
    return InputEmbedding(llama)


class TestInputEmbedding:
    def test_no_scale(self, llama, embedding):
        assert embedding.scale == 1
        assert (embedding.hidden_size, embedding.vocab_size) == (HIDDEN, 352)
        assert (embedding.device, embedding.dtype) == (torch.device("cpu"), torch.float32)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("family", ["gemma2", "gemma3", "llama", "granite", "opt", "phi3"])
    def test_virtual_gives_what_the_layer_gives_for_rows_of_its_table(self, build_model, family, dtype):
        model = build_model(family, dtype=dtype)
        embedding = InputEmbedding(model)
        table = model.get_input_embeddings().weight
        assert embedding.dtype == dtype
        assert torch.equal(
            embedding.virtual(table.detach().float()), embedding.embed(torch.arange(len(table)))
        )
        assert (embedding.scale != 1) == family.startswith("gemma")

    def test_zero_rows_tell_nothing(self, build_model):
        model = build_model("gemma2")
        with torch.no_grad():
            model.get_input_embeddings().weight[:300] = 0
        assert InputEmbedding(model).scale == pytest.approx(HIDDEN**0.5)

    def test_virtual_is_differentiable(self, build_model):
        embedding = InputEmbedding(build_model("gemma2"))
        rows = torch.zeros(2, HIDDEN, requires_grad=True)
        embedding.virtual(rows).sum().backward()
        assert torch.equal(rows.grad, torch.full((2, HIDDEN), embedding.scale))

    def test_embedding_ids_needs_no_gradient(self, embedding):
        assert not embedding.embed(torch.tensor([[1, 2]])).requires_grad

    def test_offloaded_model(self, build_model):
        plain = build_model("gemma2")
        offloaded = cpu_offload(build_model("gemma2"), execution_device=torch.device("cpu"))
        embedding = InputEmbedding(offloaded)
        assert embedding.scale == InputEmbedding(plain).scale
        assert embedding.device == torch.device("cpu")
        with embedding.table() as table:
            assert torch.equal(table, plain.get_input_embeddings().weight)
        assert offloaded.get_input_embeddings().weight.is_meta

    def test_training_mode_survives_the_proof(self, build_model):
        model = build_model("gpt2")
        model.train()
        model.transformer.h[0].eval()
        before = [module.training for module in model.modules()]
        InputEmbedding(model)  # GPT-2 has dropout: without evaluation mode the proof would fail
        assert [module.training for module in model.modules()] == before

    def test_proof_runs_once_per_model(self, build_model):
        model = build_model("llama")
        calls = []
        handle = model.register_forward_hook(lambda *_: calls.append(1))
        InputEmbedding(model)
        first = len(calls)
        InputEmbedding(model)
        handle.remove()
        assert first == len(calls) == 2


class _Shifted(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) + 0.5


class _Normed(nn.Embedding):
    def forward(self, ids):
        return nn.functional.normalize(super().forward(ids), dim=-1)


class _Wider(nn.Embedding):
    def forward(self, ids):
        return torch.cat([super().forward(ids)] * 2, dim=-1)


class _OnlyIds(LlamaForCausalLM):
    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)


class _HashesIds(LlamaForCausalLM):
    def forward(self, input_ids=None, inputs_embeds=None, **kwargs):
        out = super().forward(input_ids=input_ids, inputs_embeds=inputs_embeds, **kwargs)
        if input_ids is not None:
            out.logits = out.logits + (input_ids % 7)[..., None]
        return out


class _NeedsIds(LlamaForCausalLM):
    def forward(self, input_ids=None, inputs_embeds=None, **kwargs):
        assert input_ids is not None, "ids, please"
        return super().forward(input_ids=input_ids, **kwargs)


class TestRefusals:
    @pytest.mark.parametrize("layer", [_Shifted, _Normed, _Wider])
    def test_layer_that_does_more_than_scale(self, build_model, layer):
        model = build_model("llama", tied=False)
        replaced = layer(352, HIDDEN)
        model.set_input_embeddings(replaced)
        with pytest.raises(
            UnsupportedBackboneError, match=r"LlamaForCausalLM can't take virtual tokens: its embedding layer"
        ):
            InputEmbedding(model)

    @pytest.mark.parametrize(
        ("kind", "reason"),
        [
            (_OnlyIds, "_OnlyIds .*`forward` takes no `inputs_embeds`"),
            (_HashesIds, "_HashesIds .*answers otherwise"),
            (_NeedsIds, "_NeedsIds .*fails on embeddings without ids: ids, please"),
        ],
    )
    def test_model_that_needs_ids(self, kind, reason):
        config = LlamaConfig(
            vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        )
        with pytest.raises(UnsupportedBackboneError, match=reason):
            InputEmbedding(kind(config))

    @pytest.mark.parametrize(
        "config",
        [
            Gemma3nTextConfig(
                vocab_size=64,
                vocab_size_per_layer_input=64,
                hidden_size=16,
                hidden_size_per_layer_input=8,
                intermediate_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
                num_kv_shared_layers=0,
                layer_types=["full_attention"] * 2,
                activation_sparsity_pattern=[0.0, 0.0],
                laurel_rank=4,
            ),
            Gemma4TextConfig(
                vocab_size=64,
                vocab_size_per_layer_input=64,
                hidden_size=16,
                hidden_size_per_layer_input=8,
                intermediate_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
            ),
        ],
        ids=["gemma3n", "gemma4"],
    )
    def test_ids_in_every_layer(self, config):
        model = AutoModelForCausalLM.from_config(config)
        with pytest.raises(
            UnsupportedBackboneError, match=f"{type(model).__name__} .*every layer of it reads the token ids"
        ):
            InputEmbedding(model)

    @pytest.mark.parametrize(
        "model",
        [
            T5ForConditionalGeneration(T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)),
            BartForConditionalGeneration(
                BartConfig(
                    vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                    decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32,
                )
            ),
        ],
        ids=["t5", "bart"],
    )  # fmt: skip
    def test_encoder_with_a_decoder(self, model):
        expected = f"{type(model).__name__} can't take virtual tokens: it is an encoder with a decoder"
        with pytest.raises(UnsupportedBackboneError, match=expected) as error:
            InputEmbedding(model)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("is_decoder", [False, True])
    def test_attention_in_both_directions(self, is_decoder, dtype):
        config = BertConfig(
            vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            initializer_range=0.2, is_decoder=is_decoder,
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = BertLMHeadModel(config).to(dtype)
        if is_decoder:
            InputEmbedding(model)
            return
        with pytest.raises(UnsupportedBackboneError, match="BertLMHeadModel .*depends on those that follow"):
            InputEmbedding(model)

    def test_no_weights(self):
        config = LlamaConfig(
            vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        )
        with torch.device("meta"):
            model = LlamaForCausalLM(config)
        with pytest.raises(UnsupportedBackboneError, match="meta device"):
            InputEmbedding(model)

    def test_only_zeros(self, build_model):
        model = build_model("llama")
        nn.init.zeros_(model.get_input_embeddings().weight)
        with pytest.raises(UnsupportedBackboneError, match="only zeros"):
            InputEmbedding(model)

    def test_packed_table(self, build_model):
        model = build_model("llama", tied=False)
        packed = torch.zeros(352, HIDDEN, dtype=torch.uint8)
        model.get_input_embeddings().weight = nn.Parameter(packed, requires_grad=False)
        with pytest.raises(UnsupportedBackboneError, match="packed"):
            InputEmbedding(model)


class TestTokenBank:
    def test_rows_are_views_of_one_small_matrix(self, embedding, make_tokens):
        bank = TokenBank(embedding)
        bank.add("a", make_tokens(3))
        bank.add("b", make_tokens(5, seed=1))
        assert torch.equal(bank.rows("b", 2), make_tokens(5, seed=1).matrix[:2])
        assert bank.rows("a").shape == (3, HIDDEN)
        storages = {bank.rows(name).untyped_storage().data_ptr() for name in "ab"}
        assert len(storages) == 1
        assert bank.rows("a").untyped_storage().nbytes() == 8 * HIDDEN * 4

    def test_dtype_of_the_backbone(self, build_model, make_tokens):
        bank = TokenBank(InputEmbedding(build_model("gemma2", dtype=torch.bfloat16)))
        bank.add("a", make_tokens(3))
        assert bank.rows("a").dtype == torch.bfloat16

    def test_replacing_a_set(self, embedding, make_tokens):
        bank = TokenBank(embedding)
        for n in (3, 5):
            bank.add("a", make_tokens(n))
        assert len(bank["a"]) == 5
        bank.add("b", make_tokens(3))
        bank.add("a", make_tokens(5))
        assert list(bank) == ["b", "a"]  # what was attached last is last
        bank = TokenBank(embedding)
        bank.add("a", make_tokens(5))
        assert bank.rows("a").untyped_storage().nbytes() == 5 * HIDDEN * 4

    @pytest.mark.parametrize("k", [-1, 4])
    def test_k_out_of_range(self, embedding, make_tokens, k):
        bank = TokenBank(embedding)
        bank.add("a", make_tokens(3))
        with pytest.raises(TokensError, match=f"num_tokens is {k}; the virtual tokens 'a' allow 0 to 3"):
            bank.rows("a", k)

    def test_unknown_name(self, embedding, make_tokens):
        bank = TokenBank(embedding)
        with pytest.raises(TokensError, match="attached: none"):
            bank.rows("a", 0)
        bank.add("b", make_tokens(3))
        with pytest.raises(TokensError, match="no virtual tokens are attached as 'a'; attached: 'b'"):
            bank["a"]


prompts = st.lists(st.integers(0, 351), min_size=1, max_size=12).flatmap(
    lambda ids: st.tuples(
        st.just(tuple(ids)), st.none() | st.integers(0, len(ids)), st.integers(0, 5), st.integers(0, 1000)
    )
)


class TestSpliceBatch:
    def test_layout(self, embedding):
        rows = torch.full((2, HIDDEN), 7.0)
        batch = splice_batch(embedding, [Encoded((1, 5, 6), 1), Encoded((1, 9), None)], [rows, rows[:0]])
        e = embedding.embed(torch.tensor([1, 5, 6, 9]))
        assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]]
        assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 0, 1]]
        assert torch.equal(batch.inputs_embeds[0], torch.stack([e[0], rows[0], rows[0], e[1], e[2]]))
        assert torch.equal(batch.inputs_embeds[1, 3:], torch.stack([e[0], e[3]]))
        assert batch.inputs_embeds.isfinite().all()

    @pytest.mark.parametrize("slot", [0, 3])
    def test_slot_at_either_end(self, embedding, slot):
        rows = torch.ones(1, HIDDEN)
        (found,) = splice_batch(embedding, [Encoded((1, 5, 6), slot)], [rows]).inputs_embeds
        assert torch.equal(found[slot], rows[0])

    def test_only_virtual_tokens(self, embedding):
        rows = torch.ones(2, HIDDEN)
        batch = splice_batch(embedding, [Encoded((), 0), Encoded((1, 2, 3), 0)], [rows, rows[:0]])
        assert torch.equal(batch.inputs_embeds[0, 1:], rows)

    @settings(max_examples=100, deadline=None)
    @given(batch=st.lists(prompts, min_size=1, max_size=4))
    def test_without_virtual_tokens_exactly_the_layers_output_remains(self, embedding, batch):
        encoded, rows = [], []
        for ids, slot, k, seed in batch:
            encoded.append(Encoded(ids, slot))
            rows.append(
                torch.randn(
                    k if slot is not None else 0, HIDDEN, generator=torch.Generator().manual_seed(seed)
                )
            )
        spliced = splice_batch(embedding, encoded, rows)
        for i, (prompt, virtual) in enumerate(zip(encoded, rows, strict=True)):
            real = spliced.inputs_embeds[i][spliced.attention_mask[i] == 1]
            slot = len(prompt.ids) if prompt.slot is None else prompt.slot
            plain = torch.cat([real[:slot], real[slot + len(virtual) :]])
            assert torch.equal(plain, embedding.embed(torch.tensor(prompt.ids)))
            assert torch.equal(real[slot : slot + len(virtual)], virtual)

    def test_positions_are_those_of_generate(self, llama, embedding):
        rows = torch.ones(3, HIDDEN)
        batch = splice_batch(embedding, [Encoded((1, 5, 6), 1), Encoded((1,), None)], [rows, rows[:0]])
        derived = llama._prepare_position_ids_for_generation(
            batch.inputs_embeds, {"attention_mask": batch.attention_mask}
        )
        assert torch.equal(batch.position_ids, derived)

    def test_gradient_reaches_the_rows_of_each_prompt(self, embedding):
        matrix = torch.ones(4, HIDDEN, requires_grad=True)
        batch = splice_batch(embedding, [Encoded((1, 2), 1), Encoded((1, 2, 3), 3)], [matrix[:1], matrix[:3]])
        batch.inputs_embeds.sum().backward()
        assert matrix.grad[:, 0].tolist() == [2, 1, 1, 0]

    def test_virtual_tokens_without_a_slot(self, embedding):
        with pytest.raises(PromptError, match="prompt 0 has no slot for its 2 virtual tokens"):
            splice_batch(embedding, [Encoded((1,), None)], [torch.ones(2, HIDDEN)])

    def test_empty_prompt(self, embedding):
        with pytest.raises(PromptError, match="prompt 1 is empty"):
            splice_batch(embedding, [Encoded((1,), None), Encoded((), None)], [torch.ones(0, HIDDEN)] * 2)

    def test_id_beyond_the_table(self, embedding):
        with pytest.raises(PromptError, match=r"token id 352.*below 352.*another model"):
            splice_batch(embedding, [Encoded((1, 352), None)], [torch.ones(0, HIDDEN)])


def test_evaluating_restores_each_modules_mode_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.Dropout())
    model[1].eval()

    def fail():
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [module.training for module in model.modules()] == [True, True, False]
