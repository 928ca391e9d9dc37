"""A backbone on a running vLLM server. Virtual tokens travel as prompt embeddings, which stock vLLM accepts.

- `checkpoint`: the input-embedding table, read from the checkpoint's files without loading the model.
- `layouts`: how a prompt goes into a chat message, and whether the server will read the ids from it that it should.
- `calls`: a prompt as the request for one of the server's endpoints.
- `forms`: the calls that a prompt may travel as, lightest first.
- `checks`: what may be said of servers before any is asked.
- `server`: one server, what it can do, and several of them side by side.
- `failures`: what a server refuses, as one clear error each.
- `backend`: all of it behind the protocol of every backend.
"""

from spring_rag.extras import extra

with extra("vllm"):
    from spring_rag.backends.vllm.backend import VLLMBackend

__all__ = ["VLLMBackend"]
