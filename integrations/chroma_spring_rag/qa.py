"""Answer questions from a Chroma collection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chroma_spring_rag.embedders import embedding_function
from chroma_spring_rag.errors import CollectionError
from chroma_spring_rag.retrieval import Passage, checked_top_k, search
from chroma_spring_rag.retrievers import retrieve
from spring_rag.answering import per_prompt
from spring_rag.prompt import RagPrompt

if TYPE_CHECKING:
    from chromadb import Collection, Where

    from chroma_spring_rag.embedders import AnyEmbedding
    from chroma_spring_rag.retrievers import AnyRetriever
    from spring_rag.backends.base import FinishReason, Usage
    from spring_rag.model import SpringModel
    from spring_rag.prompt import RagTemplate

DEFAULT_TOP_K = 5
DEFAULT_MAX_NEW_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer and where it comes from.

    Attributes:
        question: the question, unchanged.
        text: the answer, stripped at both ends.
        passages: the passages in the prompt, closest first.
        num_tokens: number of virtual tokens in the prompt.
        finish_reason: "stop", or "length" if `max_new_tokens` cut the answer.
        usage: numbers of tokens.
        dropped: retrieved passages that were left out because the prompt was too long for the backbone.
        reasoning: the backbone's thoughts before the answer; None if there were none.
        answerable: the probability that the passages hold the answer; None without the skill `answerable`.
        citations: numbers, from 1, of the passages that hold the answer, likeliest first; empty without the skill `cite`.
        withheld: whether there is no answer because `answerable` is below `min_answerable`.
        logprob: natural logarithm of the probability of the answer as it was written: the higher, the surer is the model of it.
    """

    question: str
    text: str
    passages: list[Passage]
    num_tokens: int
    finish_reason: FinishReason
    usage: Usage
    dropped: list[Passage] = field(default_factory=list)
    reasoning: str | None = None
    answerable: float | None = None
    citations: list[int] = field(default_factory=list)
    withheld: bool = False
    logprob: float | None = None

    @property
    def cited(self) -> list[Passage]:
        """The passages that `citations` names, likeliest first."""
        return [self.passages[number - 1] for number in self.citations]


@dataclass(frozen=True, slots=True)
class AnswerStream:
    """An answer that is being written: iterate over it for pieces of text, which concatenate to `Answer.text`.

    Attributes:
        question: the question, unchanged.
        passages: the passages in the prompt, closest first; known before the first piece of text.
        dropped: retrieved passages that were left out because the prompt was too long for the backbone.
    """

    question: str
    passages: list[Passage]
    dropped: list[Passage]
    _pieces: Iterator[str]

    def __iter__(self) -> Iterator[str]:
        return self._pieces


class ChromaQA:
    """Answers questions from the documents of a Chroma collection, with virtual tokens.

    Setup:
        `pip install 'spring-rag[chroma]'`; then `spring-rag index FILES --db DIR`, or any collection of your own
        whose entries have document texts.

    Instantiate:
        ```python
        import chromadb
        from chroma_spring_rag import ChromaQA
        from spring_rag import SpringModel

        client = chromadb.PersistentClient("DIR")  # or chromadb.HttpClient("localhost", 8000)
        model = SpringModel.from_pretrained("mistralai/Mistral-7B-Instruct-v0.1", tokens="mistral-7b-instruct")
        qa = ChromaQA(model, client.get_collection("documents"), top_k=5)
        ```

    Ask:
        ```python
        answer = qa.ask("Who built the bridge?")
        answer.text, [passage.source for passage in answer.passages]
        ```

    Skills:
        ```python
        model.add_skill("path or Hub id of tokens trained with --task answerable")
        model.add_skill("… --task cite")
        answer = qa.ask("Who built the bridge?", min_answerable=0.5)
        answer.withheld, answer.answerable, [passage.place for passage in answer.cited]
        ```

    Stream:
        ```python
        for piece in qa.stream("Who built the bridge?"):
            print(piece, end="")
        ```

    Batch:
        ```python
        answers = qa.ask_many(["Who built the bridge?", "When?"], num_tokens=10)
        ```

    Collections and retrievers of LangChain and LlamaIndex:
        ```python
        qa = ChromaQA(model, client.get_collection("langchain"), embedding=HuggingFaceEmbeddings(model_name="…"))
        qa = ChromaQA(model, retriever=index.as_retriever(similarity_top_k=5))
        ```

    Args:
        model: backbone and virtual tokens.
        collection: an embedded collection or one on a server. It embeds the questions with its own embedding function.
        top_k: passages per question; from a retriever, its first `top_k`.
        template: layout of the prompt; None means the one that the virtual tokens were trained with. Without virtual tokens, an
            instruct model (whose tokenizer has a chat template) gets a chat; with `RagTemplate(chat=False)` it gets a text.
        embedding: the embedding that made the collection's vectors, if the collection doesn't record it: an object of Chroma, LangChain or
            LlamaIndex, or a name that `embedding_named` takes.
        retriever: a retriever of LangChain or LlamaIndex, in place of a collection.

    Raises:
        CollectionError: `embedding` isn't an embedding, or both or neither of a collection and a retriever are given.
        ValueError: `top_k` is less than 1.
    """

    def __init__(
        self,
        model: SpringModel,
        collection: Collection | None = None,
        top_k: int = DEFAULT_TOP_K,
        template: RagTemplate | None = None,
        *,
        embedding: AnyEmbedding | None = None,
        retriever: AnyRetriever | None = None,
    ) -> None:
        if (collection is None) == (retriever is None) or (retriever is not None and embedding is not None):
            msg = "ChromaQA needs either a collection, with its embedding if the collection doesn't record that, or a retriever"
            raise CollectionError(msg)
        self.model = model
        self.collection = collection
        self.retriever = retriever
        self.embedding = None if embedding is None else embedding_function(embedding)
        self.top_k = checked_top_k(top_k)
        self.template = template

    def retrieve(self, question: str, where: Where | None = None, top_k: int | None = None) -> list[Passage]:
        """Return the passages closest to a question, closest first.

        Args:
            question: the question's text.
            where: Chroma's filter on metadata, such as `{"source": "handbook.md"}`.
            top_k: number of passages, in place of the one given at construction.

        Returns:
            At most `top_k` passages; none if nothing matches `where`.

        Raises:
            CollectionError: the collection is empty, the filter is malformed or given for a retriever, there is no embedding function
                or not the collection's, or the server doesn't answer.
        """
        return self._search([question], where, top_k)[0]

    def ask(
        self,
        question: str,
        num_tokens: int | None = None,
        tokens: str | None = None,
        where: Where | None = None,
        top_k: int | None = None,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        min_answerable: float | None = None,
        **settings: Any,
    ) -> Answer:
        """Answer one question, and let the model's skills say whether the passages hold the answer, and which of them.

        Args:
            question: the question's text.
            num_tokens: k, the number of virtual tokens; None means all of them, 0 the plain backbone.
            tokens: name of the set, if the model has several.
            where: Chroma's filter on metadata, such as `{"source": "handbook.md"}`.
            top_k: number of passages, in place of the one given at construction.
            max_new_tokens: most tokens of the answer.
            min_answerable: withhold the answer if the passages hold it with a lower probability; needs the skill `answerable`.
            **settings: decoding settings of `SpringModel.generate`: temperature, top_p, stop, seed.

        Raises:
            CollectionError: retrieval fails, or no passage matches `where`.
            PromptTooLongError: the question alone doesn't fit the backbone's context.
            TokensError: there is no such set, it has fewer than `num_tokens` tokens, or `min_answerable` lacks its skill.
        """
        return self.ask_many(
            [question], num_tokens, tokens, where, top_k, max_new_tokens, min_answerable, **settings
        )[0]

    def ask_many(
        self,
        questions: Sequence[str],
        num_tokens: int | Sequence[int | None] | None = None,
        tokens: str | Sequence[str | None] | None = None,
        where: Where | None = None,
        top_k: int | None = None,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        min_answerable: float | None = None,
        **settings: Any,
    ) -> list[Answer]:
        """Answer several questions with one query of the collection and one batch of the backbone.

        Arguments and errors are those of `ask`; `num_tokens` and `tokens` may also be one per question.
        """
        if not questions:
            return []
        names = per_prompt("tokens", tokens, len(questions))
        counts = per_prompt("num_tokens", num_tokens, len(questions))
        found = self._search(questions, where, top_k)
        prompts = [
            self._prompt(question, passages, name, where)
            for question, passages, name in zip(questions, found, names, strict=True)
        ]
        answers = self.model.ask_many(
            prompts,
            min_answerable,
            num_tokens=counts,
            tokens=names,
            max_new_tokens=max_new_tokens,
            **settings,
        )
        return [
            Answer(
                question=question,
                text=answer.text,
                passages=passages[: answer.shown],
                num_tokens=answer.usage.virtual,
                finish_reason=answer.finish_reason,
                usage=answer.usage,
                dropped=passages[answer.shown :],
                reasoning=answer.reasoning,
                answerable=answer.answerable,
                citations=answer.citations,
                withheld=answer.withheld,
                logprob=answer.logprob,
            )
            for question, passages, answer in zip(questions, found, answers, strict=True)
        ]

    def stream(
        self,
        question: str,
        num_tokens: int | None = None,
        tokens: str | None = None,
        where: Where | None = None,
        top_k: int | None = None,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        **settings: Any,
    ) -> AnswerStream:
        """Answer one question piece by piece; arguments and errors are those of `ask`.

        The passages are retrieved at once; the backbone starts when the first piece is read.
        """
        passages = self.retrieve(question, where, top_k)
        prompt = self.model.fitted(
            self._prompt(question, passages, tokens, where),
            num_tokens=num_tokens,
            tokens=tokens,
            max_new_tokens=max_new_tokens,
        )
        pieces = self.model.stream(
            prompt, num_tokens=num_tokens, tokens=tokens, max_new_tokens=max_new_tokens, **settings
        )
        kept = len(prompt.passages)
        return AnswerStream(question, passages[:kept], passages[kept:], pieces.stripped())

    def _search(
        self, questions: Sequence[str], where: Where | None, top_k: int | None
    ) -> list[list[Passage]]:
        most = checked_top_k(self.top_k if top_k is None else top_k)
        if self.retriever is None:
            assert self.collection is not None
            return search(self.collection, questions, most, where, self.embedding)
        if where is not None:
            msg = "a retriever takes no filter `where`; give it its own"
            raise CollectionError(msg)
        return [retrieve(self.retriever, question)[:most] for question in questions]

    def _prompt(
        self, question: str, passages: Sequence[Passage], tokens: str | None, where: Where | None
    ) -> RagPrompt:
        """Make the prompt with all passages."""
        if not passages:
            place = f"of the collection {self.collection.name!r}" if self.collection else "of the retriever"
            msg = f"no passage {place} matches {(question if where is None else where)!r}"
            raise CollectionError(msg)
        return RagPrompt(
            question=question,
            passages=[passage.text for passage in passages],
            template=self.template or self.model.template(tokens),
        )
