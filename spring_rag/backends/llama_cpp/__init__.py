"""A backbone in this process, run by llama.cpp from a GGUF as it is. Virtual tokens go into its batches as embeddings.

- `engine`: llama.cpp's C interface: one model, one cache of keys and values, batches of ids or of embeddings.
- `embedding`: the rows of the file's embedding table, and how the engine expects virtual tokens.
- `room`: which sequence has which part of the cache; contexts that nobody goes on from are put aside.
- `answers`: prompts are read, and answers written side by side.
- `backend`: all of it behind the protocol of every backend.
"""

from spring_rag.extras import extra

with extra("llama-cpp"):
    from spring_rag.backends.llama_cpp.backend import LlamaCppBackend

__all__ = ["LlamaCppBackend"]
