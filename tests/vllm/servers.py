"""Real vLLM servers for tests and benchmarks, started as `spring-rag serve` starts them, and always stopped."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from spring_rag.backends.vllm.serving import serving_command, write_template

PYTHON = os.environ.get("SPRING_RAG_VLLM_PYTHON") or str(Path(__file__).parents[2] / ".venv-vllm/bin/python")
"""Of the environment that `make test-vllm` sets up."""

SMALL = [
    "--dtype",
    "float32",
    "--enforce-eager",
    "--distributed-executor-backend",
    "uni",
    "--host",
    "127.0.0.1",
]
"""vLLM's flags for a small model on a small machine: no compilation, and one process less to start."""

_BOOT_SECONDS = 480  # half a minute on an idle machine


def _end_with_parent() -> None:
    """Linux sends this signal when the starting thread ends, however it does: no server outlives its tests."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class RunningServer:
    """A server on loopback, in a process group of its own."""

    command: Sequence[str]
    log: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        settings = {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            **self.environment,
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=log,
                env=os.environ | settings,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def wait(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + _BOOT_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/health", timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.5)
        tail = self.log.read_text(errors="replace")[-4000:]
        self.stop()
        msg = f"vLLM didn't start; its log ends:\n{tail}"
        raise RuntimeError(msg)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the server and the engine that it started."""
        if self.process is None:
            return
        for each in (how, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, each)
            except ProcessLookupError:
                break
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                continue
        self.process.wait()
        self.process = None

    def metric(self, name: str) -> float:
        """Sum of a Prometheus counter over its labels."""
        text = httpx.get(f"http://127.0.0.1:{self.port}/metrics", timeout=30).text
        lines = [line for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


@contextmanager
def vllm_server(
    model: str | Path, log: Path, *flags: str, template: bool = True, length: int = 1024
) -> Iterator[RunningServer]:
    """A server of a model in float32, with the flags that `spring-rag serve` gives it.

    Args:
        model: folder of the checkpoint.
        log: file for what it prints.
        flags: more of vLLM's.
        template: whether it gets our chat template.
        length: most tokens of prompt and answer.
    """
    port = free_port()
    small = [*SMALL, "--max-model-len", str(length)]
    if not template and not any(flag.startswith("--chat-template") for flag in flags):
        small += ["--chat-template-content-format", "openai"]
    command = serving_command(
        PYTHON,
        str(model),
        write_template(str(model)) if template else None,
        [*small, "--port", str(port), *flags],
    )
    server = RunningServer(command, log, port)
    try:
        server.start()
        server.wait()
        yield server
    finally:
        server.stop()


if __name__ == "__main__":
    with vllm_server(sys.argv[1], Path("vllm.log"), *sys.argv[2:]) as running:
        print(running.url, flush=True)
        signal.pause()
