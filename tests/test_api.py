"""The public interface, the README that shows it, and the links of the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import offbook

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_public_names_exist_and_are_at_most_ten() -> None:
    assert len(offbook.__all__) <= 10
    assert all(getattr(offbook, name).__doc__ for name in offbook.__all__)
    assert sorted([*offbook.__all__, "__version__"]) == dir(offbook)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        offbook.nothing  # noqa: B018


def test_no_module_has_a_public_name() -> None:
    for path in (ROOT / "src" / "offbook").iterdir():
        assert path.stem not in offbook.__all__, path
    assert callable(offbook.train)
    assert callable(offbook.train)  # still the function, now that its module is imported


def test_the_map_has_a_line_for_every_folder_and_file() -> None:
    source = ROOT / "src" / "offbook"
    files = {p.relative_to(source).as_posix() for p in source.rglob("*.py")}
    files = {f for f in files if not f.endswith(("__init__.py", "__main__.py"))}
    files = {f for f in files if not f.startswith("cli/")} | {"cli/"}
    listed = set(re.findall(r"^\| `([\w/]+(?:\.py|/))` \|", CONTRIBUTING, re.MULTILINE))
    assert all((source / name).exists() for name in listed - {"src/offbook/"})
    assert {name for name in listed if name.endswith(".py")} | {"cli/"} == files
    folders = {f"{p.name}/" for p in source.iterdir() if (p / "__init__.py").is_file()}
    assert folders <= listed


@pytest.mark.parametrize(
    "page",
    [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))],
    ids=lambda page: page.name,
)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target, heading in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", page.read_text("utf-8")):
        file = page.parent / target if target else page
        assert file.is_file(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
            assert heading in anchors, f"{target}#{heading}"


def test_the_changelog_knows_the_version() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## {offbook.__version__}\n" in changes
    assert changes.index("\n## Unreleased\n") < changes.index(f"\n## {offbook.__version__}\n")


def commands(page: str) -> list[str]:
    """The lines of a page's code blocks, without comments."""
    blocks = re.findall(r"^```\w+\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    return [re.sub(r"\s+# .*", "", line) for block in blocks for line in block.splitlines()]


def test_the_two_readmes_say_the_same() -> None:
    def headings(page: str) -> list[int]:
        return [len(marks) for marks in re.findall(r"^(#+) ", page, re.MULTILINE)]

    def paragraphs(page: str) -> list[str]:
        return [re.match(r"#+|-|```\w*|!|", text)[0] for text in page.split("\n\n")]  # type: ignore[index]

    def links(page: str) -> list[str]:
        found = re.findall(r"\]\(([^)#]+)", page)  # a heading's anchor is in the page's language
        return sorted(target for target in found if "README" not in target)

    def code(page: str) -> set[str]:
        prose = re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
        return set(re.findall(r"`([^`]+)`", prose))

    assert commands(README) == commands(CHINESE)
    assert headings(README) == headings(CHINESE)
    assert paragraphs(README) == paragraphs(CHINESE)
    assert links(README) == links(CHINESE)
    assert code(README) == code(CHINESE)
    assert "(README.zh-CN.md)" in README
    assert "(README.md)" in CHINESE


def test_recipes_that_the_readme_names_exist() -> None:
    for recipe in re.findall(r"recipes/[\w.-]+\.yaml", README):
        assert (ROOT / recipe).is_file(), recipe


@pytest.mark.slow
def test_the_readme_example_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    _, _, said = capsys.readouterr().out.rpartition("\nstep 8: validation loss ")
    _, tuned, base = said.strip().split("\n", 2)
    assert tuned
    assert base != tuned
    assert (tmp_path / "runs" / "readme" / "adapter" / "adapter_config.json").is_file()
