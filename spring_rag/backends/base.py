"""What every backend takes and gives. Imports neither torch nor transformers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from spring_rag.encoding import Encoded
    from spring_rag.prompt import Prompt, ToolCall
    from spring_rag.splice import TokenBank
    from spring_rag.stream import Stream
    from spring_rag.tokens import VirtualTokens

DEFAULT_TOKENS = "default"
"""Name of the set that is used when a request names none."""

BATCH_SIZE = 32
"""Most prompts that run at once, where nobody says otherwise."""

FinishReason = Literal["stop", "length"]

Form = Literal["ids", "light", "exact"]
"""How a prompt travels to a server.

`ids`: as token ids, where no virtual tokens are used. `light`: the context as text, virtual tokens and what follows as embeddings.
`exact`: the whole prompt as embeddings.
"""


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer cost, in tokens. `context + virtual + suffix` is the length of the prompt.

    Attributes:
        context: tokens before the slot; 0 where a prompt has no slot.
        virtual: virtual tokens in the slot.
        suffix: tokens after the slot; the whole prompt where it has none.
        generated: tokens of the answer, the end-of-sequence token and those of a stop string included.
    """

    context: int
    virtual: int
    suffix: int
    generated: int


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer.

    Attributes:
        text: the answer as the backbone wrote it, without special tokens, cut before a stop string; not stripped.
        finish_reason: "stop" after an end-of-sequence token or a stop string, "length" when tokens ran out.
        usage: numbers of tokens.
        token_ids: every generated id, the end-of-sequence id included; may run past `text` where a stop string cut it.
        form: how the prompt travelled to a server; None where the backbone runs in this process.
        reasoning: what the backbone thought before it answered, stripped; None where it didn't. A backend leaves it in `text`, markers
            included, and `SpringModel` parts them.
        tool_calls: what the backbone asks for, where its prompt has tools. A backend leaves them in `text`, too.
        logprobs: of each of the request's `choices`, natural logarithms of probabilities; empty where none were asked for.
        logprob: natural logarithm of the probability of `token_ids`, before temperature and its kin; None unless the settings ask for it,
            and where a server doesn't tell.
    """

    text: str
    finish_reason: FinishReason
    usage: Usage
    token_ids: tuple[int, ...]
    form: Form | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[float, ...] = ()
    logprob: float | None = None

    @property
    def cut_while_thinking(self) -> bool:
        """Whether tokens ran out before the answer began."""
        return self.finish_reason == "length" and self.reasoning is not None and not self.text.strip()


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """How to decode.

    Attributes:
        max_new_tokens: most tokens of one answer, ≥ 1.
        temperature: 0 decodes greedily and ignores `top_p`, `top_k` and `seed`.
        top_p: smallest set of tokens with this probability is sampled from, in (0, 1]; 1 turns it off.
        top_k: this many most probable tokens are sampled from; 0 turns it off.
        stop: non-empty strings that end an answer; the answer is cut before the first of them.
        seed: makes sampling repeat; None draws from the process's global generator.
        logprob: whether `generate` tells how likely an answer is; streams don't.

    Raises:
        ValueError: a value out of its range.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprob: bool = False

    def __post_init__(self) -> None:
        stop: object = self.stop
        if isinstance(stop, str):
            msg = f"stop must be a tuple of strings, not the string {stop!r}: write ({stop!r},)"
            raise ValueError(msg)
        checks = (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < float("inf"), "0 or a positive number"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 or a positive number"),
            ("stop", all(self.stop), "free of empty strings"),
            ("seed", self.seed is None or 0 <= self.seed < 2**64, "None or from 0 to 2**64 - 1"),
        )
        for name, holds, expected in checks:
            if not holds:
                msg = f"{name} is {getattr(self, name)!r}; it must be {expected}"
                raise ValueError(msg)

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature == 0


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and the virtual tokens that go into its slot.

    Attributes:
        encoded: the plain prompt's ids and its slot; without a slot the plain backbone answers.
        tokens: name of the token set; None is the default set.
        num_tokens: k, how many of its first rows; None is all of them, or none where no set is attached.
        prompt: what `encoded` was made from, for backends that send text; without it they send embeddings.
        choices: ids of which the prompt may go on with one. Nothing is written then: `Generation.logprobs` tells how likely each is as
            the next token, among the whole vocabulary, before anything that the settings ask.
    """

    encoded: Encoded
    tokens: str | None = None
    num_tokens: int | None = None
    prompt: Prompt | None = None
    choices: tuple[int, ...] = ()


class Backend(ABC):
    """A backbone with sets of virtual tokens, local or on a server.

    Attributes:
        tokenizer: the backbone's own; its state is never changed.
        bank: the sets of virtual tokens that are attached.
        model_id: Hub id or path of the backbone, if it has one.
        hidden_size: width of a virtual token.
        context_length: most tokens of prompt and answer together, virtual ones included; None if unknown.
        position_switch: the length over which an answer with virtual tokens can't grow, though it may begin beyond it; None if there is none.
        concurrency: how many requests it keeps in flight by itself, however many are given at once; None where all
            requests of a call are computed as one batch.
    """

    tokenizer: PreTrainedTokenizerBase
    bank: TokenBank
    model_id: str | None
    hidden_size: int
    context_length: int | None
    position_switch: int | None = None
    concurrency: int | None

    def add_tokens(self, name: str, tokens: VirtualTokens) -> None:
        """Attach a set under a name; a set of that name is replaced.

        Raises:
            BackboneMismatchError: the set belongs to another backbone.
        """
        self.bank.add(name, tokens)

    def tokens(self, name: str | None = None) -> VirtualTokens | None:
        """The set of that name; None for the default set where none is attached.

        Raises:
            TokensError: no set has this name.
        """
        if name is None and DEFAULT_TOKENS not in self.bank:
            return None
        return self.bank[name or DEFAULT_TOKENS]

    @abstractmethod
    def generate(self, requests: Sequence[Request], settings: GenerationSettings) -> list[Generation]:
        """Answer all requests, results in their order.

        Raises:
            PromptTooLongError: prompt and `max_new_tokens` don't fit the context; says by how much.
            PromptError: an empty prompt, or one that another tokenizer encoded.
            TokensError: an unknown set, or more virtual tokens than it has.
            BackendError: the backend can't answer.
        """

    @abstractmethod
    def stream(self, request: Request, settings: GenerationSettings) -> Stream:
        """Answer one request in pieces of text that concatenate to the text that `generate` gives.

        Closing the stream stops the backbone. Raises what `generate` raises, some of it at once.
        """
