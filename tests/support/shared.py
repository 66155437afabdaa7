"""Data that is not in the repository; tests that use it skip where it is absent."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
DEEPSEEK = SHARED / "deepseek-llm-tokenizer"
HUANHUAN = SHARED / "huanhuan.json"
