"""Download from and upload to the Hugging Face Hub, with one clear error for anything that fails there."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from spring_rag.errors import TokensError
from spring_rag.persistence.artifact import Artifact
from spring_rag.persistence.folder import write_folder

_LIBRARY = "spring-rag"


def fetch_files(repo_id: str, names: Sequence[str], *, revision: str | None, token: str | None) -> Path:
    """Download those of the named files that a repository has, all from one commit.

    Returns:
        The folder that holds them; it doesn't exist if the repository has none of them.

    Raises:
        TokensError: there is no such repository, or the Hub can't be reached and the cache doesn't have it.
    """
    with _one_error(f"can't load {repo_id!r} from the Hub"):
        # Not hf_hub_download, which keeps trying for 20 seconds if the Hub doesn't answer.
        return Path(
            snapshot_download(
                repo_id,
                revision=revision,
                token=token,
                allow_patterns=list(names),
                library_name=_LIBRARY,
            )
        )


def push(
    artifact: Artifact,
    repo_id: str,
    *,
    private: bool | None,
    revision: str | None,
    commit_message: str,
    token: str | None,
) -> str:
    """Publish an artifact; see `VirtualTokens.push_to_hub`."""
    with tempfile.TemporaryDirectory() as folder:
        write_folder(artifact, Path(folder))
        with _one_error(f"can't publish to {repo_id!r} on the Hub"):
            api = HfApi(token=token, library_name=_LIBRARY)
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=folder, revision=revision, commit_message=commit_message
            )
            return commit.commit_url


@contextmanager
def _one_error(failure: str) -> Iterator[None]:
    """Turn any error of the Hub's client into one `TokensError`.

    The `except` is broad because the client lets through the errors of its HTTP and storage libraries.
    """
    try:
        yield
    except Exception as error:
        msg = f"{failure}: {_reason(error)}"
        raise TokensError(msg) from error


def _reason(error: Exception) -> str:
    # The client wraps a failed request in a "not in the cache" error, with the real error as its cause.
    causes = [error]
    while (cause := causes[-1].__cause__) is not None and isinstance(cause, Exception):
        causes.append(cause)
    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set and the cache has no copy; unset it, or load a local folder or file"
    for cause in causes:
        if isinstance(cause, GatedRepoError):
            return "the repository is gated; ask for access on its page, then log in with `hf auth login`"
        if isinstance(cause, RepositoryNotFoundError):
            return "no such repository, or it is private; check the name, or log in with `hf auth login`"
        if isinstance(cause, RevisionNotFoundError):
            return "the repository has no such revision"
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            hint = (
                "; log in with `hf auth login`, with a token that may do this" if status in (401, 403) else ""
            )
            said = f" ({cause.server_message})" if cause.server_message else ""
            return f"the Hub answered with status {status}{said}{hint}"
    root = causes[-1]
    return (
        f"the Hub at {constants.ENDPOINT} can't be used ({type(root).__name__}: {root}); check the connection"
    )
