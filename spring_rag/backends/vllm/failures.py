"""What a server refuses, or fails at, as one clear error each."""

import re
from collections.abc import Sequence

import openai

from spring_rag.backends.base import Generation
from spring_rag.errors import BackendError, PromptTooLongError, SpringError

_TOO_LONG = re.compile(
    r"maximum context length|max(imum)?[_ ]model[_ ]len|longer than the maximum|context window", re.IGNORECASE
)


class UnreachableError(BackendError):
    """A server that is down, too slow or at its limits: another one, or the same one later, may answer."""


class RefusedError(BackendError):
    """A server that will answer no request at all like this: a wrong key, a wrong model, a missing flag."""


class NoEmbeddingsError(RefusedError):
    """A server that takes token ids only."""


def explain(error: openai.OpenAIError, url: str, model: str | None) -> SpringError:
    """The error for a user.

    Args:
        error: the openai library's.
        url: base URL of the server.
        model: name that was asked for.
    """
    where = f"the vLLM server at {url}"
    reason = _reason(error)
    if isinstance(error, openai.APIConnectionError):
        return UnreachableError(
            f"can't reach {where} ({reason}); is it running? `spring-rag serve` starts one"
        )
    if isinstance(error, (openai.AuthenticationError, openai.PermissionDeniedError)):
        return RefusedError(
            f"{where} refuses the API key; give the right one with api_key=…, --api-key or the environment variable VLLM_API_KEY"
        )
    if isinstance(error, openai.NotFoundError):
        if model is not None and "model" in reason.lower():
            return RefusedError(f"{where} doesn't serve the model {model!r}: {reason}")
        return RefusedError(f"{where} has no such endpoint ({reason}); the address of vLLM's API ends in /v1")
    if isinstance(error, openai.RateLimitError):
        return UnreachableError(
            f"{where} has more requests than it takes ({reason}); lower `concurrency`, or add a server"
        )
    if isinstance(error, openai.APIStatusError) and error.status_code >= 500:
        return UnreachableError(f"{where} failed with status {error.status_code}: {reason}; look at its log")
    if "enable-prompt-embeds" in reason:
        return NoEmbeddingsError(
            f"{where} takes no virtual tokens: it was started without --enable-prompt-embeds; `spring-rag serve` sets that"
        )
    if "hidden_size" in reason:
        return RefusedError(f"{where} serves another model than the backbone: {reason}")
    if _TOO_LONG.search(reason):
        return PromptTooLongError(f"the prompt is too long for {where}: {reason}")
    return BackendError(f"{where} refuses the request: {reason}")


def _reason(error: openai.OpenAIError) -> str:
    body = getattr(error, "body", None)
    if isinstance(body, dict):
        inner = body.get("error", body)
        text = inner.get("message") if isinstance(inner, dict) else inner
        if text:
            return " ".join(str(text).split())
    cause = error.__cause__
    return " ".join(str(cause or error).split())


class PartlyAnsweredError(BackendError):
    """Some of several requests failed.

    Attributes:
        answers: one entry per request, None where it failed.
    """

    def __init__(self, message: str, answers: Sequence[Generation | None]) -> None:
        super().__init__(message)
        self.answers = tuple(answers)


def all_answered(found: Sequence[Generation | BaseException]) -> list[Generation]:
    """The answers, where there are no errors among them.

    Raises:
        BaseException: the error, where nothing was answered, or where it isn't one of ours.
        PartlyAnsweredError: some were answered.
    """
    errors = [(i, each) for i, each in enumerate(found) if isinstance(each, BaseException)]
    answers = [each for each in found if not isinstance(each, BaseException)]
    if not errors:
        return answers
    strange = next((error for _, error in errors if not isinstance(error, SpringError)), None)
    if strange is not None or not answers:
        raise strange or errors[0][1]
    number, first = errors[0]
    msg = f"{len(errors)} of {len(found)} requests failed, the first of them number {number + 1}: {first}"
    raise PartlyAnsweredError(
        msg, [None if isinstance(each, BaseException) else each for each in found]
    ) from first
