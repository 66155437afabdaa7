"""Helpers for the text of messages."""

from __future__ import annotations

import pytest

from offbook.errors import first_few, first_line


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
