"""Helpers for the text of messages."""

from __future__ import annotations

import pytest

from offbook.errors import first_few, first_line, stem, suggest


@pytest.mark.parametrize(
    ("names", "text"),
    [([], ""), (["a"], "a"), (["a", "b"], "a, b"), (list("abcde"), "a, b, and 3 more")],
)
def test_a_list_shows_its_first_names_and_counts_the_others(names: list[str], text: str) -> None:
    assert first_few(names, 2) == text


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("\n one\ntwo"), "one"),
        (ValueError("one"), "one"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_the_first_line_of_an_error(error: Exception, text: str) -> None:
    assert first_line(error) == text


def test_files_are_not_alike_for_their_suffix() -> None:
    names = ["tom.jsonl", "max.jsonl", "Keeper.jsonl.gz"]
    assert suggest("nope.jsonl", names, stem) is None
    assert suggest("keper.json", names, stem) == 'did you mean "Keeper.jsonl.gz"?'
    assert suggest("max.json", names, stem) == 'did you mean "max.jsonl"?'
