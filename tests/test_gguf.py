"""Test GGUF files as backbones: their names, their unpacked form in the cache, and tokens that attach to both forms."""

import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf_parts import CHAT_TEMPLATE, tiny_llama, write_gguf
from transformers import AutoTokenizer

from spring_rag import SpringModel, gguf
from spring_rag.backbone import BackboneRecord
from spring_rag.backends.local import LocalBackend
from spring_rag.backends.vllm.checkpoint import load_checkpoint
from spring_rag.errors import BackboneMismatchError, BackendError, MissingExtraError
from spring_rag.loading import find, find_gguf
from spring_rag.tokens import VirtualTokens

QUESTION = "Question: who built the lighthouse?\nAnswer:"


@pytest.fixture(scope="module")
def files(tmp_path_factory, tokenizer):
    """A folder with `tiny-KIND.gguf`, all of one model, and `other-Q4_0.gguf` of another."""
    folder = tmp_path_factory.mktemp("files")
    for kind in ("F32", "Q8_0", "Q4_0", "Q4_1"):
        write_gguf(folder / f"tiny-{kind}.gguf", tiny_llama(), tokenizer, kind)
    write_gguf(folder / "other-Q4_0.gguf", tiny_llama(seed=1), tokenizer, "Q4_0")
    return folder


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def cached(shared_cache, monkeypatch):
    """A cache that the tests of this module share."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared_cache))
    return shared_cache / "spring-rag" / "gguf"


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "spring-rag" / "gguf"


@pytest.fixture
def alone(files, tmp_path):
    """A folder that holds one GGUF."""
    (tmp_path / "alone").mkdir()
    shutil.copy(files / "tiny-Q4_0.gguf", tmp_path / "alone")
    return tmp_path / "alone"


def answer(model):
    return model.generate([QUESTION], max_new_tokens=8)[0].token_ids


def tokens_of(backend, n=3):
    record = BackboneRecord.of(backend.hf_model)
    record = BackboneRecord.from_dict(json.loads(json.dumps(record.to_dict())))
    return VirtualTokens(torch.randn(n, backend.hidden_size) * 0.2, backbone=record)


class TestLoading:
    def test_answers_as_the_original(self, files, cached, tokenizer):
        model = SpringModel.from_pretrained(files / "tiny-F32.gguf", device="cpu")
        original = tiny_llama()
        original.generation_config.eos_token_id = 2
        assert answer(model) == answer(SpringModel(original, model.tokenizer))
        assert model.backend.model_id == str((files / "tiny-F32.gguf").resolve())

    def test_the_dtype_is_chosen_when_the_folder_is_loaded(self, files, cached):
        backend = LocalBackend.from_pretrained(files / "tiny-Q4_0.gguf", device="cpu", dtype="bfloat16")
        assert backend.hf_model.dtype == torch.bfloat16

    def test_a_folder_that_holds_one(self, alone, cached):
        assert find(alone) == find(alone / "tiny-Q4_0.gguf")

    def test_a_folder_that_holds_several(self, files, cached):
        with pytest.raises(
            BackendError, match=r"holds 5 GGUF files \(other-Q4_0.gguf, .*; name one of them: '.*other"
        ):
            LocalBackend.from_pretrained(files)
        chosen = find(files, {"gguf_file": "tiny-Q4_1.gguf"})
        assert chosen == find(files.parent, {"subfolder": files.name, "gguf_file": "tiny-Q4_1.gguf"})
        assert chosen.model_id.endswith("tiny-Q4_1.gguf")

    def test_weights_of_transformers_come_first(self, alone, tokenizer, cached):
        tiny_llama(seed=5).save_pretrained(alone)
        tokenizer.save_pretrained(alone)
        assert not find(alone).is_gguf
        assert find(alone, {"gguf_file": "tiny-Q4_0.gguf"}).is_gguf

    def test_parts_of_a_split_file(self, alone, cached):
        for part in (1, 2):
            shutil.copy(alone / "tiny-Q4_0.gguf", alone / f"big-0000{part}-of-00002.gguf")
        (alone / "tiny-Q4_0.gguf").unlink()
        with pytest.raises(BackendError, match="split; join them first: llama-gguf-split --merge"):
            find(alone)

    @pytest.mark.parametrize("name", ["nowhere.gguf", "some/where.gguf"])
    def test_no_such_file(self, name):
        with pytest.raises(BackendError, match=f"there is no GGUF file '{name}'"):
            LocalBackend.from_pretrained(name)

    def test_a_config_for_unpacking_is_obeyed_already(self, files, cached):
        from transformers import GgufConfig

        backend = LocalBackend.from_pretrained(
            files,
            gguf_file="tiny-Q4_0.gguf",
            device="cpu",
            quantization_config=GgufConfig(dequantize=True),
        )
        assert backend.model_id.endswith("tiny-Q4_0.gguf")


class TestTokenizer:
    def test_is_the_files_own(self, files, cached):
        own = AutoTokenizer.from_pretrained(files, gguf_file="tiny-Q4_0.gguf")
        saved = find(files / "tiny-Q4_0.gguf").tokenizer()
        text = "  The lighthouse\n\nwas built <s>in 1887</s>,\tby Hale & Sons. Der Fluß 東京 😀"
        assert saved(text).input_ids == own(text).input_ids
        assert saved.chat_template == CHAT_TEMPLATE
        assert (saved.bos_token_id, saved.eos_token_id, saved.pad_token_id) == (1, 2, 2)

    def test_generation_ends_where_the_file_says(self, files, cached):
        backend = LocalBackend.from_pretrained(files / "tiny-Q4_0.gguf", device="cpu")
        assert backend.hf_model.generation_config.eos_token_id == 2

    @pytest.mark.parametrize(("known", "ends"), [(2, [2, 7]), (7, 7), ([2, 7], [2, 7]), (None, 7)])
    def test_the_end_of_a_turn_ends_an_answer(self, known, ends):
        assert gguf._ends({"tokenizer.ggml.eot_token_id": 7}, known) == ends

    def test_digits_stand_alone_where_llama_cpp_has_them_so(self, tmp_path, tokenizer, empty_cache):
        path = write_gguf(tmp_path / "smol.gguf", tiny_llama(), tokenizer, pre="smollm")
        pieces = find(path).tokenizer().backend_tokenizer.pre_tokenizer.pre_tokenize_str("in\n\n1887")
        assert [piece for piece, _ in pieces] == ["in", "ĊĊ", "1", "8", "8", "7"]


class TestCache:
    def test_says_once_that_it_converts(self, alone, empty_cache, caplog):
        with caplog.at_level(logging.INFO, "spring_rag"):
            first = find(alone)
            assert find(alone) == first
        assert len([one for one in caplog.messages if one.startswith("converting ")]) == 1
        origin = json.loads((empty_cache / first.place / "origin.json").read_text())
        assert origin["quantization"] == "Q4_0"
        assert origin["file"] == str(alone / "tiny-Q4_0.gguf")

    def test_another_content_is_another_folder(self, alone, files, empty_cache):
        first = find(alone).place
        shutil.copy(files / "tiny-Q8_0.gguf", alone / "tiny-Q4_0.gguf")
        assert find(alone).place != first
        assert len([*empty_cache.iterdir()]) == 2

    def test_can_be_deleted_also_in_part(self, alone, empty_cache):
        backend = LocalBackend.from_pretrained(alone, device="cpu")
        before = answer(SpringModel.from_backend(backend))
        (empty_cache / find(alone).place / "model.safetensors").unlink()
        assert answer(SpringModel.from_pretrained(alone, device="cpu")) == before
        shutil.rmtree(empty_cache)
        assert answer(SpringModel.from_pretrained(alone, device="cpu")) == before
        assert answer(SpringModel.from_backend(backend)) == before

    def test_what_was_left_half_written_is_not_used(self, alone, empty_cache, monkeypatch):
        def half(file, folder, name):
            folder.mkdir()
            (folder / "config.json").write_text("{}")
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(gguf, "_convert", half)
            with pytest.raises(KeyboardInterrupt):
                find(alone)
        left = empty_cache / ".converting-killed"
        left.mkdir()
        day_before = time.time() - 2 * 24 * 3600
        os.utime(left, (day_before, day_before))
        assert (empty_cache / find(alone).place / "origin.json").is_file()
        assert len([*empty_cache.iterdir()]) == 1

    def test_the_slower_of_two_takes_what_is_there(self, alone, empty_cache, monkeypatch):
        convert = gguf._convert

        def overtaken(file, folder, name):
            convert(file, folder, name)
            with monkeypatch.context() as patched:
                patched.setattr(gguf, "_convert", convert)
                (empty_cache / find(alone).place / "mark").touch()

        monkeypatch.setattr(gguf, "_convert", overtaken)
        assert (empty_cache / find(alone).place / "mark").is_file()
        assert len([*empty_cache.iterdir()]) == 1

    def test_two_processes_at_once(self, alone, empty_cache):
        code = "import sys; from spring_rag.loading import find; print(find(sys.argv[1]).place)"
        both = [
            subprocess.Popen([sys.executable, "-c", code, str(alone)], stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        places = {process.communicate(timeout=240)[0].strip() for process in both}
        assert [process.returncode for process in both] == [0, 0]
        assert places == {find(alone).place}
        assert len([*empty_cache.iterdir()]) == 1

    def test_without_the_package(self, alone, empty_cache, monkeypatch):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, "gguf", None)
            with pytest.raises(MissingExtraError, match=r"'gguf'.*pip install 'spring-rag\[gguf\]'"):
                SpringModel.from_pretrained(alone)
        find(alone)
        monkeypatch.setitem(sys.modules, "gguf", None)
        SpringModel.from_pretrained(alone, device="cpu")  # unpacked already

    @pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.98])
    def test_a_truncated_file_is_one_clear_error(self, alone, empty_cache, share):
        file = alone / "tiny-Q4_0.gguf"
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(BackendError, match="can't read the GGUF '.*tiny-Q4_0.gguf': ."):
            LocalBackend.from_pretrained(file)
        assert [*empty_cache.iterdir()] == []

    def test_another_format_is_one_clear_error(self, tmp_path, empty_cache):
        (tmp_path / "text.gguf").write_text("This is no model. " * 100)
        with pytest.raises(BackendError, match="can't read the GGUF"):
            LocalBackend.from_pretrained(tmp_path / "text.gguf")


class TestHub:
    """A repository as the Hub's client keeps it in its cache."""

    COMMIT = "0123456789abcdef0123456789abcdef01234567"

    @pytest.fixture
    def hub(self, tmp_path, files, tokenizer):
        repository = tmp_path / "hub" / "models--acme--tiny"
        snapshot = repository / "snapshots" / self.COMMIT
        for revision in ("main", "v1"):
            (repository / "refs").mkdir(parents=True, exist_ok=True)
            (repository / "refs" / revision).write_text(self.COMMIT)
        tiny_llama().save_pretrained(snapshot / "inner")
        tokenizer.save_pretrained(snapshot / "inner")
        shutil.copy(files / "tiny-Q4_0.gguf", snapshot)
        shutil.copy(files / "tiny-Q8_0.gguf", snapshot / "inner")
        return {"cache_dir": str(tmp_path / "hub"), "local_files_only": True}

    @pytest.mark.parametrize("revision", [None, "v1"])
    def test_model_and_tokenizer_are_found_alike(self, hub, revision):
        model = SpringModel.from_pretrained(
            "acme/tiny", subfolder="inner", revision=revision, device="cpu", **hub
        )
        assert answer(model) == answer(SpringModel(tiny_llama(), model.tokenizer))
        tokenizer, config, table = load_checkpoint("acme/tiny", subfolder="inner", revision=revision, **hub)
        assert tokenizer.get_vocab() == model.tokenizer.get_vocab()
        assert config.hidden_size == 64
        assert torch.equal(table, tiny_llama().get_input_embeddings().weight)

    def test_a_gguf(self, hub, cached):
        backend = LocalBackend.from_pretrained("acme/tiny:tiny-Q4_0.gguf", device="cpu", **hub)
        assert backend.model_id == "acme/tiny:tiny-Q4_0.gguf"
        assert find("acme/tiny", {"gguf_file": "tiny-Q4_0.gguf", **hub}) == find(backend.model_id, hub)

    def test_a_gguf_in_a_folder_of_it(self, hub, cached):
        inner = find("acme/tiny:inner/tiny-Q8_0.gguf", hub)
        assert inner == find("acme/tiny", {"subfolder": "inner", "gguf_file": "tiny-Q8_0.gguf", **hub})

    def test_one_that_is_not_there(self, hub):
        with pytest.raises(BackendError, match="can't load the GGUF 'acme/tiny:none.gguf' from the Hub"):
            LocalBackend.from_pretrained("acme/tiny:none.gguf", **hub)


class TestTokensGoBothWays:
    @pytest.fixture
    def load(self, files, cached):
        return lambda name: LocalBackend.from_pretrained(files / f"{name}.gguf", device="cpu")

    @pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
    def test_with_one_note(self, load, kind):
        whole, quantised = load("tiny-F32"), load(f"tiny-{kind}")
        for trained_on, attached_to in ((whole, quantised), (quantised, whole)):
            with pytest.warns(
                UserWarning, match="agree as those of a model and its quantised form"
            ) as caught:
                attached_to.add_tokens("default", tokens_of(trained_on))
            assert len(caught) == 1
            assert kind in str(caught[0].message)

    def test_between_two_quantised_forms(self, load):
        with pytest.warns(UserWarning, match=r"\(Q4_0\) and are attached to '.*' \(Q4_1\)"):
            load("tiny-Q4_1").add_tokens("default", tokens_of(load("tiny-Q4_0")))

    def test_none_for_the_same(self, load):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load("tiny-Q4_0").add_tokens("default", tokens_of(load("tiny-Q4_0")))

    @pytest.mark.parametrize("name", ["tiny-F32", "tiny-Q4_0"])
    def test_another_model_refuses(self, load, name):
        with pytest.raises(BackboneMismatchError, match="the embedding tables differ"):
            load("other-Q4_0").add_tokens("default", tokens_of(load(name)))

    def test_a_fine_tuned_copy_refuses_where_nothing_is_quantised(self, load):
        tokens = tokens_of(load("tiny-F32"))
        table = tiny_llama().get_input_embeddings().weight.detach()
        tuned = table + 0.01 * table.std() * torch.randn(
            table.shape, generator=torch.Generator().manual_seed(1)
        )
        with pytest.raises(BackboneMismatchError, match="as those of a model and its fine-tuned copy"):
            tokens.check(tuned, "acme/tuned")

    def test_a_record_without_quantisation_is_as_before(self, load):
        record = BackboneRecord.of(load("tiny-F32").hf_model)
        assert "quantization" not in record.to_dict()
        assert BackboneRecord.of(load("tiny-Q4_0").hf_model).to_dict()["quantization"] == "Q4_0"


class TestEverywhere:
    def test_ask(self, files, tmp_path):
        def run(*arguments):
            return subprocess.run(
                [sys.executable, "-c", "from spring_rag.cli import main; main()", *map(str, arguments)],
                capture_output=True,
                text=True,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")},
                timeout=240,
            )

        (tmp_path / "documents").mkdir()
        (tmp_path / "documents" / "one.txt").write_text("Hale and Sons built the lighthouse.")
        run("index", tmp_path / "documents", "--db", tmp_path / "db")
        file = files / "tiny-Q4_0.gguf"
        done = run("ask", "Who?", "--db", tmp_path / "db", "--model", file, "--max-new-tokens", 4, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["num_tokens"] == 0
        assert done.stderr.count("\n") == 2, done.stderr  # no tokens given; converting
        assert f"converting {file} for transformers, once" in done.stderr
        served = run("serve", "--print", "--model", file)
        line = shlex.split(served.stdout)
        assert line[line.index("--model") + 1].startswith(str(tmp_path / "cache"))

    def test_what_a_server_is_sent_is_from_the_same_table(self, files, cached):
        file = files / "tiny-Q4_0.gguf"
        tokenizer, config, table = load_checkpoint(file)
        backend = LocalBackend.from_pretrained(file, device="cpu")
        assert torch.equal(table, backend.hf_model.get_input_embeddings().weight)
        assert tokenizer.get_vocab() == backend.tokenizer.get_vocab()
        assert config.name_or_path == backend.model_id

    def test_the_frameworks(self, files, cached):
        from langchain_spring_rag import SpringLLM
        from llama_index.llms.spring_rag import SpringLLM as LlamaSpringLLM

        file = str(files / "tiny-Q4_0.gguf")
        backend = LocalBackend.from_pretrained(file, device="cpu")
        expected = SpringModel.from_backend(backend).generate([QUESTION], max_new_tokens=4)[0].text
        assert SpringLLM(model=file, device="cpu", max_tokens=4).invoke(QUESTION) == expected
        llama_index = LlamaSpringLLM.from_pretrained(file, device="cpu", max_tokens=4)
        assert llama_index.complete(QUESTION, formatted=True).text == expected


class TestHeader:
    """What is read of a file that llama.cpp loads: no weights but, later, some rows of the table."""

    def test_says_where_the_table_lies(self, files, cached):
        told = gguf.header(files / "tiny-F32.gguf", "tiny")
        size = told.table_shape[0] * told.table_shape[1]
        table = np.fromfile(files / "tiny-F32.gguf", np.float32, size, offset=told.table_offset)
        expected = tiny_llama().get_input_embeddings().weight.detach()
        assert torch.equal(torch.from_numpy(table).view(told.table_shape), expected)
        assert (told.architecture, told.ends, told.quantization) == ("llama", (2,), None)

    def test_is_read_once_and_holds_no_weights(self, files, cached, monkeypatch):
        told = gguf.header(files / "tiny-Q4_1.gguf", "tiny")
        assert told.quantization == "Q4_1"
        assert not list(Path(told.tokenizer).glob("*.safetensors"))
        monkeypatch.setattr(gguf, "_convert_header", None)
        assert gguf.header(files / "tiny-Q4_1.gguf", "tiny") == told

    def test_the_tokenizer_is_that_of_the_unpacked_folder(self, files, cached):
        one = AutoTokenizer.from_pretrained(gguf.header(files / "tiny-Q4_0.gguf", "tiny").tokenizer)
        other = find(files / "tiny-Q4_0.gguf").tokenizer()
        assert one("in 1887, by Hale & Sons").input_ids == other("in 1887, by Hale & Sons").input_ids
        assert one.chat_template == other.chat_template

    def test_of_a_file_without_a_table(self, files, cached, monkeypatch):
        monkeypatch.setattr(gguf, "_TABLE", "nothing.weight")
        with pytest.raises(BackendError, match="has no embedding table"):
            gguf.header(files / "other-Q4_0.gguf", "other")


class TestFindingTheFile:
    def test_as_a_folder_that_holds_one(self, alone):
        assert find_gguf(alone) == (alone / "tiny-Q4_0.gguf", str(alone / "tiny-Q4_0.gguf"))

    def test_what_is_no_gguf(self, tmp_path):
        with pytest.raises(BackendError, match="names none; expected model.gguf, a folder that holds one"):
            find_gguf(tmp_path)
