"""Write `settings.md` from the docstrings of the settings: `python docs/settings.py`."""

from pathlib import Path

from offbook.cli.settings import markdown

Path(__file__).with_suffix(".md").write_text(markdown(), encoding="utf-8")
