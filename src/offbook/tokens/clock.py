"""A clock for chat templates that stands still, so that a run has one date, whenever it is used.

A template reads the clock with `strftime_now`, which transformers gives it, and which is the only
way: callables that are passed to a template do not reach it. So a macro of the same name is put
before the template's own text. It looks up each directive, such as "%d", in a table.
"""

from __future__ import annotations

import json
from datetime import date, datetime, time
from itertools import product
from string import ascii_letters

CLOCK = "strftime_now"
FLAGS = "-_0^#"  # in "%-d", the day without a leading zero
MACRO = (
    "{% macro strftime_now(format) %}"
    "{% set table = TABLE %}{% set at = namespace(text='', directive='') %}{% for c in format %}"
    "{% set at.directive = at.directive ~ c if at.directive or c == '%' else '' %}"
    "{% if not at.directive %}{% set at.text = at.text ~ c %}"
    "{% elif at.directive in table %}"
    "{% set at.text = at.text ~ table[at.directive] %}{% set at.directive = '' %}"
    "{% elif at.directive | length > 2 or c not in '%FLAGS' %}"
    "{% set at.text = at.text ~ at.directive %}{% set at.directive = '' %}"
    "{% endif %}{% endfor %}{{ at.text ~ at.directive }}{% endmacro %}\n"
)


def stop_clock(source: str, day: date) -> str:
    """The source of a template whose clock shows the beginning of `day`, whenever it is rendered.

    The source of a template that does not read the clock is returned as it is.
    """
    if CLOCK not in source:
        return source
    midnight = datetime.combine(day, time.min)
    table = {"%%": "%"}
    for flag, letter in product(("", *FLAGS), ascii_letters):
        try:
            table[f"%{flag}{letter}"] = midnight.strftime(f"%{flag}{letter}")
        except ValueError:  # no such directive on this system
            continue
    # The line break after the macro is removed with it, so the template begins on a line of its
    # own, as it does without the macro.
    return MACRO.replace("TABLE", json.dumps(table)).replace("FLAGS", FLAGS) + source
