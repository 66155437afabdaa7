"""Write `settings.md` from the docstrings of `offbook.config`: `python docs/settings.py`."""

from pathlib import Path

from offbook.cli.settings import markdown

Path(__file__).with_suffix(".md").write_text(markdown(), encoding="utf-8")
