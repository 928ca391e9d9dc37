"""The part of vLLM's HTTP interface that surrounds answers: refusals, and a fixed answer.

It runs no model. Real servers are tested in tests/vllm.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWER = [5, 6, 2]


class FakeVLLM(ThreadingHTTPServer):
    """A server on loopback.

    Attributes:
        model: what it calls its model.
        key: the API key that it wants, if any.
        embeds: whether it was started with --enable-prompt-embeds.
        refusals: (status, message) for the next completions and chats, None to answer one; the last one stays.
        delay: seconds before an answer.
        dripping: send a space every so many seconds, and never an answer.
        honest: whether it answers to ids and to embeddings alike, as one that serves the right model.
        log: path and body of every request.
        most_at_once: most requests that it has been answering at one time.
        broken_off: how many streams the client closed.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model, self.key, self.embeds, self.honest = "tiny", None, True, True
        self.refusals: list[tuple[int, str] | None] = [None]
        self.delay = 0.0
        self.dripping: float | None = None
        self.log: list[tuple[str, dict[str, Any]]] = []
        self.at_once = self.most_at_once = self.broken_off = 0
        self.counting = threading.Lock()

        self.connections: list[socket.socket] = []

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.connections.append(connection)
        return connection, address

    def handle_error(self, *_: object) -> None:
        pass

    def hang_up(self) -> None:
        """End kept connections as well, as the end of a process does."""
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeVLLM

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self._authorised() and not self._drips():
            model = {"id": self.server.model, "object": "model", "max_model_len": 256}
            self._reply(200, {"object": "list", "data": [model]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.counting:
            self.server.log.append((self.path, body))
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        try:
            if self._authorised() and not self._drips():
                self._answer(body)
        finally:
            with self.server.counting:
                self.server.at_once -= 1

    def _answer(self, body: dict[str, Any]) -> None:
        embeds = "prompt_embeds" in json.dumps(body)
        if embeds and not self.server.embeds:
            self._refuse(400, "You must set `--enable-prompt-embeds` to input `prompt_embeds`.")
            return
        if self.path.endswith("/chat/completions"):
            # The probe for a template that writes messages as they are: this one doesn't.
            self._refuse(400, "the chat template refuses")
            return
        if isinstance(body.get("prompt"), list) and body["prompt"] and isinstance(body["prompt"][0], list):
            other = ANSWER if self.server.honest else ANSWER[::-1]
            count = len(body["prompt"])
            self._reply(
                200, {"choices": [_choice(i, ANSWER if i < count else other) for i in range(2 * count)]}
            )
            return
        refusals = self.server.refusals
        refusal = refusals.pop(0) if len(refusals) > 1 else refusals[0]
        if refusal is not None:
            self._refuse(*refusal)
            return
        time.sleep(self.server.delay)
        if body.get("stream"):
            self._stream()
        else:
            self._reply(200, {"choices": [_choice(0, ANSWER)]})

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            for _ in range(200):
                event = {"choices": [_choice(0, [5], None)]}
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                self.wfile.flush()
                time.sleep(0.02)
        except OSError:
            self.server.broken_off += 1

    def _drips(self) -> bool:
        if self.server.dripping is None:
            return False
        with suppress(OSError):
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "100000")
            self.end_headers()
            while True:
                self.wfile.write(b"\n")
                self.wfile.flush()
                time.sleep(self.server.dripping)
        return True

    def _authorised(self) -> bool:
        if self.server.key is None or self.headers["Authorization"] == f"Bearer {self.server.key}":
            return True
        self._refuse(401, "Unauthorized")
        return False

    def _refuse(self, status: int, message: str) -> None:
        self._reply(status, {"error": {"message": message, "type": "BadRequestError", "code": status}})

    def _reply(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _choice(index: int, ids: list[int], reason: str | None = "stop") -> dict[str, Any]:
    return {"index": index, "text": "", "token_ids": ids, "finish_reason": reason}


@contextmanager
def fake_vllm() -> Iterator[FakeVLLM]:
    server = FakeVLLM()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        server.hang_up()
        thread.join()
