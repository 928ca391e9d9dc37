"""How often a passage with the answer is among the first five: `SPRING_RAG_DATA=FOLDER python benchmarks/retrieval.py`

One index of all passages of Natural Questions (`nq/passages-{train,dev,test}.jsonl`) and XQuAD (`xquad/xquad.en.json`), title and text,
one file each, cut into chunks as `spring-rag index` cuts them. Choices were made on NQ's train and dev questions.
"""

import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import bm25s
import numpy as np
from chromadb import Collection
from measure import save
from real_data import data_folder, nq_and_xquad

from chroma_spring_rag import HashedWords, connect_folder, index_files, open_or_create_collection, search
from chroma_spring_rag.embedding import UnweightedWords
from spring_rag.data.matching import holds

FIRST = 5

Rank = Callable[[Sequence[str]], list[list[str]]]
"""Called with questions; for each the first texts found, best first."""


def by_search(collection: Collection) -> Rank:
    return lambda questions: [[p.text for p in row] for row in search(collection, questions, FIRST)]


def by_chroma(collection: Collection) -> Rank:
    """What a framework's vector store gets."""
    return lambda questions: collection.query(query_texts=list(questions), n_results=FIRST)["documents"] or []


def by_exact_vectors(embed: HashedWords | UnweightedWords, texts: list[str]) -> Rank:
    vectors = np.stack(embed(texts))

    def rank(questions: Sequence[str]) -> list[list[str]]:
        cosines = np.stack(embed.embed_query(list(questions))) @ vectors.T
        return [[texts[i] for i in row] for row in np.argsort(-cosines, kind="stable")[:, :FIRST]]

    return rank


def by_bm25(texts: list[str]) -> Rank:
    """Without stemming or stop words, over what it is given."""

    def words(texts: Sequence[str]) -> list[list[str]]:
        return [re.findall(r"\w+", text.lower()) for text in texts]

    index = bm25s.BM25(k1=1.2, b=0.75)
    index.index(words(texts), show_progress=False)
    return lambda questions: [
        [texts[i] for i in row] for row in index.retrieve(words(questions), k=FIRST, show_progress=False)[0]
    ]


def main() -> None:
    texts, asked = nq_and_xquad(data_folder())
    passages = list(texts.values())
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "files")
        files.mkdir()
        for number, passage in enumerate(passages):
            (files / f"{number:05}.txt").write_text(passage, "utf-8")
        client = connect_folder(Path(folder, "db"), create=True)
        collection = open_or_create_collection(client, "default")
        start = time.perf_counter()
        report = index_files(collection, [files])
        indexing = time.perf_counter() - start
        before = client.create_collection(
            "before",
            embedding_function=cast(Any, UnweightedWords()),
            configuration={"hnsw": {"space": "cosine"}},
        )
        index_files(before, [files])
        chunks = collection.get(include=["documents"])["documents"] or []

        start = time.perf_counter()
        search(collection, ["a first question"], FIRST)
        first = time.perf_counter() - start
        single = []
        for one in asked["nq/dev"]:
            start = time.perf_counter()
            search(collection, [one.question], FIRST)
            single.append(time.perf_counter() - start)

        ways: dict[str, Rank] = {
            "search (the default)": by_search(collection),
            "BM25 without stemming, whole texts": by_bm25(passages),
            "BM25 without stemming, the same chunks": by_bm25(chunks),
            "the default's vectors, exact": by_exact_vectors(HashedWords(), chunks),
            "the default's vectors, through Chroma": by_chroma(collection),
            "the vectors before, exact": by_exact_vectors(UnweightedWords(), chunks),
            "the vectors before, through Chroma": by_chroma(before),
        }
        shares: dict[str, dict[str, float]] = {}
        for way, rank in ways.items():
            shares[way] = {}
            for name, questions in asked.items():
                found = rank([one.question for one in questions])
                holding = [
                    any(holds(text, one.answers) for text in row)
                    for row, one in zip(found, questions, strict=True)
                ]
                shares[way][name] = round(float(np.mean(holding)), 4)
    save(
        "retrieval",
        {
            "what": f"an accepted answer stands in one of the first {FIRST} texts",
            "passages": len(passages),
            "chunks": report.total,
            "questions": {name: len(questions) for name, questions in asked.items()},
            "shares": shares,
            "seconds": {
                "indexing": round(indexing, 1),
                "first search of a process": round(first, 3),
                "later search, median": round(float(np.median(single)), 4),
            },
        },
    )


if __name__ == "__main__":
    main()
