"""The offline default: a tiny backbone, its virtual tokens, documents and questions."""
