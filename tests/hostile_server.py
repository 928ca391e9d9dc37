"""A server for tests that sends nonsense, or nothing."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread


@contextmanager
def answering(pieces: list[bytes], pause: float = 0.0) -> Iterator[int]:
    """A server that sends these pieces, over and over, to whoever connects; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                Thread(target=drip, args=(connection,), daemon=True).start()

        def drip(connection: socket.socket) -> None:
            try:
                connection.recv(65536)
                for piece in pieces:
                    connection.sendall(piece)
                    time.sleep(pause)
                if pause:
                    time.sleep(60)
                connection.close()
            except OSError:
                pass

        Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
