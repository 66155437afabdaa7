"""The clock of a chat template stands still, and tells the time as `strftime` does."""

from __future__ import annotations

import random
from datetime import date, datetime, time, timedelta

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from offbook.tokens.clock import CLOCK, FLAGS, stop_clock

DAYS = [date(1999, 12, 31) + timedelta(days=173 * k) for k in range(20)]
PIECES = [*(f"%{c}" for c in "aAwdbBmyYHIpMSfjUWGuVcxX%"), *(f"%{f}d" for f in FLAGS)]
PIECES += [" ", ", ", "年", "T", "%%d", "'", "\\", "{{", "d"]


def rendered(source: str) -> str:
    texts, _ = render_jinja_template([[{"role": "user", "content": "x"}]], chat_template=source)
    return str(texts[0])


@pytest.mark.parametrize("day", DAYS)
def test_it_prints_what_strftime_prints(day: date) -> None:
    draw = random.Random(day.toordinal())
    for _ in range(20):
        form = "".join(draw.choices(PIECES, k=draw.randrange(1, 8)))
        source = "{{ " + f"{CLOCK}({form!r})" + " }}"
        expected = datetime.combine(day, time.min).strftime(form)
        assert rendered(stop_clock(source, day)) == expected, form


@pytest.mark.parametrize(
    "beginning", ["", "\n", "  ", "  {% if true %}\n  x{% endif %}", "\n\n \n"]
)
def test_the_rest_of_the_template_is_rendered_as_before(beginning: str) -> None:
    source = beginning + "{% set now = strftime_now('%Y') %}\n  {{ messages }}\n"
    assert rendered(stop_clock(source, DAYS[0])) == rendered(source)


def test_a_template_sees_it_in_macros_and_by_name() -> None:
    source = (
        "{% if strftime_now is defined %}{% macro day() %}{{ strftime_now(format='%d') }}"
        "{% endmacro %}{{ day() | int + 1 }}{% endif %}"
    )
    assert rendered(stop_clock(source, date(2020, 2, 28))) == "29"


def test_other_templates_are_left_as_they_are() -> None:
    assert stop_clock("{{ messages }}", DAYS[0]) == "{{ messages }}"
