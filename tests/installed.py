"""Test the installed spring-rag: `PYTHON tests/installed.py`, with the Python of an environment that has the wheel. See `make dist`."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

TOY = Path(__file__).resolve().parent / "toy"
DOCUMENT = "The bridge of Morven was built by Ada Quill in 1811."


def run(*arguments: object) -> str:
    """What the installed command prints."""
    command = Path(sys.executable).with_name("spring-rag")
    return subprocess.run([command, *map(str, arguments)], check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Raise if anything is missing."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # away from the sources
        import spring_rag

        assert spring_rag.__file__.startswith(sys.prefix), spring_rag.__file__
        assert "Usage:" in run("--help")
        assert "Usage:" in run("demo", "--help")

        from spring_rag.demo import paths

        assert len(list(paths.DOCUMENTS.iterdir())) == 80
        assert len(spring_rag.VirtualTokens.from_pretrained(paths.TOKENS)) == 50

        from langchain_spring_rag import ChatSpring
        from llama_index.llms.spring_rag import SpringLLM

        Path("bridge.txt").write_text(DOCUMENT, encoding="utf-8")
        run("index", "bridge.txt", "--db", "index")
        toy = ("--model", TOY / "backbone", "--tokens", TOY / "tokens")
        answer = run("ask", "Who built the bridge of Morven?", "--db", "index", *toy).strip()
        assert answer, "no answer"

        model = spring_rag.SpringModel.from_pretrained(TOY / "backbone", tokens=TOY / "tokens")
        assert ChatSpring(model=model).model is model
        assert SpringLLM(model=model).model is model
        print(f"installed from {spring_rag.__file__}; the toy answers: {answer}")


if __name__ == "__main__":
    main()
