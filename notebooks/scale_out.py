"""Two vLLM servers, one client: `python notebooks/scale_out.py --python .venv-vllm/bin/python`

Starts two replicas of the default backbone as `spring-rag serve` does, asks them the demo's questions together, ends one of them
halfway, and asks LangChain's own ChatOpenAI, to which only the prompt brings virtual tokens. Everything runs on this machine; on many, the
two addresses are all that changes.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

from langchain_spring_rag import with_virtual_tokens
from spring_rag import RagPrompt, SpringModel
from spring_rag.demo import paths, run
from spring_rag.demo.default import default_backbone

SMALL = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "4096", "--host", "127.0.0.1"]


def serve(python: str, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "from spring_rag.cli import main; main()", "serve", "--python", python]
    named = ["--model", default_backbone(), "--served-model-name", "default", "--port", str(port)]
    quiet = subprocess.DEVNULL
    return subprocess.Popen([*command, *named, *SMALL], stdout=quiet, stderr=quiet)


def wait(port: int, server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(1)
    sys.exit("vLLM didn't start; run the line that `spring-rag serve --print` prints to see why")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="Python that has vLLM")
    parser.add_argument("--questions", type=int, default=20)
    arguments = parser.parse_args()
    ports = (8101, 8102)
    servers = [serve(arguments.python, port) for port in ports]
    try:
        for port, server in zip(ports, servers, strict=True):
            wait(port, server)
        urls = [f"http://127.0.0.1:{port}/v1" for port in ports]
        model = SpringModel.from_pretrained(default_backbone(), tokens=paths.TOKENS, base_url=urls)

        with tempfile.TemporaryDirectory() as folder:
            qa = run.build_index(model, Path(folder), top_k=5)
            examples, _ = run.retrieve(qa, run.load_questions(limit=arguments.questions))
        prompts = [RagPrompt(each.question, each.passages, model.template()) for each in examples]

        start = time.perf_counter()
        answers = model.generate(prompts, max_new_tokens=32)
        right = sum(a.text.strip() in e.answers for a, e in zip(answers, examples, strict=True))
        seconds = time.perf_counter() - start
        print(
            f"two servers: {len(answers)} answers in {seconds:.1f} s, {right} right, forms { ({a.form for a in answers}) }"
        )

        servers[0].terminate()
        servers[0].wait()
        again = model.generate(prompts, max_new_tokens=32)
        print(f"one server: the same answers: {[a.text for a in again] == [a.text for a in answers]}")

        prompt = ChatPromptTemplate.from_messages(
            [("human", "[1] {context}\n\nQuestion: {question}\nAnswer:")]
        )
        llm = ChatOpenAI(base_url=urls[1], api_key="none", model="default", temperature=0, max_tokens=16)
        chain = with_virtual_tokens(prompt, on_vllm=model) | llm
        first = examples[0]
        print(
            "ChatOpenAI:",
            chain.invoke({"context": "\n".join(first.passages), "question": first.question}).text,
        )
    finally:
        for server in servers:
            server.terminate()
        for server in servers:
            server.wait()


if __name__ == "__main__":
    main()
