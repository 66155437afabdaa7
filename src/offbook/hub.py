"""Files from the Hugging Face hub: data and weights only, never code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from offbook.errors import OffbookError


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
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        folder = snapshot_download(
            repo, repo_type=kind, revision=revision, allow_patterns=list(patterns)
        )
    except (OSError, HfHubHTTPError, HFValidationError) as problem:
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        raise error(
            f"not on this machine, and not to be had from the hub ({reason})",
            where=repo,
            fix="check the name, the revision and the network, or give a local path",
        ) from None
    return Path(folder)
