"""How well hashed words find the right paragraph among XQuAD's: `SPRING_RAG_DATA=FOLDER python benchmarks/retrieval.py`

The folder has `xquad/xquad.en.json`, the English part of XQuAD (240 paragraphs, 1,190 questions; google-deepmind/xquad).
"""

import json
import os
from pathlib import Path

import chromadb
from measure import save

from chroma_spring_rag import open_or_create_collection

FOUND_WITHIN = (1, 5, 10)


def main() -> None:
    data = json.loads(Path(os.environ["SPRING_RAG_DATA"], "xquad", "xquad.en.json").read_text("utf-8"))
    paragraphs = [paragraph for article in data["data"] for paragraph in article["paragraphs"]]
    asked = [(qa["question"], str(i)) for i, paragraph in enumerate(paragraphs) for qa in paragraph["qas"]]
    collection = open_or_create_collection(chromadb.EphemeralClient(), "xquad")
    ids = [str(i) for i in range(len(paragraphs))]
    collection.add(ids=ids, documents=[paragraph["context"] for paragraph in paragraphs])
    questions = [question for question, _ in asked]
    found = collection.query(query_texts=questions, n_results=max(FOUND_WITHIN))["ids"]
    shares = {
        f"among the first {count}": sum(
            right in row[:count] for row, (_, right) in zip(found, asked, strict=True)
        )
        / len(asked)
        for count in FOUND_WITHIN
    }
    what = f"the right one of {len(paragraphs)} paragraphs, for {len(asked)} questions"
    save("retrieval", {"what": what, "embedding": "hashed-words", "shares": shares})


if __name__ == "__main__":
    main()
