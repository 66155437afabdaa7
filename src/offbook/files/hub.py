"""Files from the Hugging Face hub: data and weights only, never code."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from offbook.errors import OffbookError, first_line

CONVERTER = "SFconvertbot"  # the hub's own account


def download(
    repo: str,
    patterns: Sequence[str],
    *,
    kind: str,
    error: type[OffbookError],
    revision: str | None = None,
) -> Path:
    """The local snapshot of a hub repository, from the cache where it is already there.

    Args:
        repo: `owner/name`.
        patterns: which files to fetch, as globs.
        kind: `model` or `dataset`.
        error: what to raise when it cannot be had.
        revision: branch, tag or commit.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    try:
        folder = snapshot_download(
            repo, repo_type=kind, revision=revision, allow_patterns=list(patterns)
        )
    except GatedRepoError:
        raise error(
            "the hub asks for an agreement first",
            where=repo,
            fix="accept it on the model's page, then run `hf auth login`",
        ) from None
    except RepositoryNotFoundError:
        raise error(
            "neither a path on this machine nor a public repository on the hub",
            where=repo,
            fix="check the name; for a private one run `hf auth login`",
        ) from None
    except (OSError, ValueError, HfHubHTTPError, HFValidationError, _http_error()) as problem:
        raise error(
            f"not on this machine, and not to be had from the hub ({first_line(problem)})",
            where=repo,
            fix="check the name, the revision and the network, or give a local path",
        ) from None
    return Path(folder)


def converted_revision(repo: str) -> str | None:
    """`refs/pr/N`, the pull request in which the hub's converter offers a model as safetensors.

    Many models of before 2024 have pickled weights on their main branch and such a pull request.
    None when there is none, or the hub cannot be asked.
    """
    from huggingface_hub import get_repo_discussions
    from huggingface_hub.errors import HfHubHTTPError

    try:
        for request in get_repo_discussions(repo, author=CONVERTER, discussion_type="pull_request"):
            if request.author == CONVERTER and "`safetensors` variant" in request.title:
                return request.git_reference
    except (OSError, ValueError, HfHubHTTPError, _http_error()):
        return None
    return None


def _http_error() -> type[Exception]:
    """The error of a broken connection; huggingface_hub 2 talks through another library than 1."""
    for library in ("httpx2", "httpx"):
        try:
            found: type[Exception] = import_module(library).HTTPError
        except ImportError:
            continue
        return found
    return OSError
