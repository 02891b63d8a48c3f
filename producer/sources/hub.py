"""Models from the Hugging Face hub, into its own cache on this machine."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from contracts.errors import ModelRefused, UnavailableError

# huggingface_hub is imported where it is used: it takes a quarter of a second, and most callers never need a hub.


def download(repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """The folder of a revision, named after its commit, with the files that match.

    Raises:
        ModelRefused: There is no such model or revision, or not for this user.
        UnavailableError: The hub does not answer and the model is not in the cache.
    """
    from huggingface_hub import snapshot_download

    with _explained(repository, revision):
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))


def gguf_files(repository: str, revision: str) -> list[str]:
    """The GGUF files that the repository holds.

    Raises:
        ModelRefused: There is no such model or revision, or not for this user.
        UnavailableError: The hub does not answer.
    """
    from huggingface_hub import HfApi

    with _explained(repository, revision):
        entries = HfApi().list_repo_tree(repository, revision=revision, recursive=True)
        return sorted(entry.path for entry in entries if entry.path.endswith(".gguf"))


@contextmanager
def _explained(repository: str, revision: str | None) -> Iterator[None]:
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError:
        raise ModelRefused(
            f"{repository} is gated: accept its terms on the hub and log in with `hf auth login`, or set HF_TOKEN"
        ) from None
    except RevisionNotFoundError:
        raise ModelRefused(f"{repository} has no revision {revision!r}: give a branch, a tag or a commit") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise ModelRefused(
            f"{repository}: there is no such folder here, and no such model on the hub that this user may see"
        ) from None
    except OSError as error:  # every failure of the network, and a cache that is not complete
        raise UnavailableError(
            f"{repository}: there is no such folder here, and the Hugging Face hub does not answer "
            f"({type(error).__name__}); try again, or download the model elsewhere and give its folder"
        ) from error
