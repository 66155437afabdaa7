"""Files from the Hugging Face hub: data and weights only, never code."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from offbook.errors import OffbookError, first_line

CONVERTER = "SFconvertbot"  # the hub's own account
LOCAL = {"model": "model.base=/path/to/folder", "dataset": "data.train=/path/to/rows.jsonl"}
# Never downloaded: Mistral's weights once more, in a format of its own.
UNUSED: dict[str, list[str]] = {"model": ["*consolidated*"], "dataset": []}


def download(
    repo: str,
    patterns: Sequence[str],
    *,
    kind: str,
    error: type[OffbookError],
    revision: str | None = None,
) -> Path:
    """Download files of a hub repository, or find them in the local cache.

    Args:
        repo: `owner/name`.
        patterns: which files to download, as globs.
        kind: `model` or `dataset`.
        error: the class to raise on failure.
        revision: branch, tag or commit.

    Returns:
        The folder of the local snapshot.

    Raises:
        OffbookError: of the class `error`, when the repository cannot be downloaded.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
    )

    try:
        folder = snapshot_download(
            repo,
            repo_type=kind,
            revision=revision,
            allow_patterns=list(patterns),
            ignore_patterns=UNUSED[kind],
        )
    except GatedRepoError:
        raise error(
            "the hub requires that you accept an agreement first",
            where=repo,
            fix="accept it on the page of the repository, then run `hf auth login`",
        ) from None
    except RepositoryNotFoundError:
        raise error(
            "neither a local path nor a public repository on the hub",
            where=repo,
            fix="check the name; for a private repository, run `hf auth login`; or give what you "
            f"have downloaded: {LOCAL[kind]}",
        ) from None
    except ImportError as problem:
        raise error(
            f"the hub cannot be reached with what is installed ({first_line(problem)})",
            where=repo,
            fix="for a SOCKS proxy, run `pip install socksio`, or unset ALL_PROXY, HTTPS_PROXY and "
            f"HTTP_PROXY; or give what you have downloaded: {LOCAL[kind]}",
        ) from None
    except _failures() as problem:
        raise error(
            f"not on this machine, and cannot be downloaded from the hub ({first_line(problem)})",
            where=repo,
            fix=_ways_around(repo, kind),
        ) from None
    return Path(folder)


def commit_of(path: Path) -> str | None:
    """The commit that a downloaded file or folder is of; None for other paths."""
    for folder in (path, *path.parents):
        if folder.parent.name == "snapshots":
            return folder.name
    return None


def converted_revision(repo: str) -> str | None:
    """The pull request in which the hub's converter offers a model as safetensors: `refs/pr/N`.

    Many models from before 2024 have pickled weights on their main branch and such a pull request.
    None when there is none, or when the hub cannot be reached.
    """
    from huggingface_hub import get_repo_discussions

    try:
        for request in get_repo_discussions(repo, author=CONVERTER, discussion_type="pull_request"):
            if request.author == CONVERTER and "`safetensors` variant" in request.title:
                return request.git_reference
    except ImportError:
        return None
    except _failures():
        return None
    return None


def _ways_around(repo: str, kind: str) -> str:
    """What to do when the hub cannot be reached, or does not have a revision."""
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return (
            "HF_HUB_OFFLINE is set, so nothing is downloaded: unset it, or give what you have "
            f"downloaded: {LOCAL[kind]}"
        )
    ways = [
        "check the name, the revision and the network",
        f"give what you have downloaded: {LOCAL[kind]}",
        "set HF_ENDPOINT to the address of a mirror",
        "set HF_HUB_OFFLINE=1 where the files are in this machine's cache, so that no connection "
        "is tried",
    ]
    if kind == "model":
        ways.append(
            "from ModelScope, run `pip install modelscope`, then `modelscope download --model "
            f"{repo} --local_dir FOLDER`, and set model.base=FOLDER"
        )
    return "; or ".join(ways)


def _failures() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises; version 1 uses httpx, and 2 uses httpx2."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    found: list[type[Exception]] = [OSError, ValueError, HfHubHTTPError, HFValidationError]
    for name in ("httpx2", "httpx"):
        try:
            library = import_module(name)
        except ImportError:
            continue
        return *found, library.HTTPError, library.InvalidURL
    return tuple(found)
