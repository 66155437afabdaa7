"""Which kind of script a file is, and its lines.

A file is what its name says, for subtitles; else what its content looks like. A folder is all
files in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from offbook.data.packed import is_hidden
from offbook.data.remarks import Remarks
from offbook.data.scripts import (
    discord,
    drama,
    novel,
    screenplay,
    slack,
    subtitles,
    telegram,
    wechat,
    whatsapp,
)
from offbook.data.scripts.json_chats import messages
from offbook.data.scripts.script import Line, NoScriptError, Script
from offbook.data.text import conversion
from offbook.errors import DataError, quoted, stem, suggest
from offbook.settings.config import local_path

NOT_TEXT = {
    ".pdf": "pdftotext -layout {} {}.txt",
    ".docx": "pandoc -t plain --wrap=none {} -o {}.txt",
    ".odt": "pandoc -t plain --wrap=none {} -o {}.txt",
    ".epub": "pandoc -t plain --wrap=none {} -o {}.txt",
    ".rtf": "pandoc -t plain --wrap=none {} -o {}.txt",
    ".doc": "soffice --headless --convert-to 'txt:Text (encoded):UTF8' {}",
    ".zip": "unzip {} -d {}",
}
SUFFIXES = (
    *(".txt", ".md", ".fountain", ".spmd", ".text", ".json", ".csv", ".html", ".htm"),
    *subtitles.SUFFIXES,
)
# A list of objects, or an object with keys; else a bracket is a direction or a time.
JSON = re.compile(r'\s*(?:\[\s*)?\{\s*"')
HALF = re.compile("[\ud800-\udfff]")  # of a character, as a JSON file may have it
TRIED = 50  # messages of a JSON file that are looked at


@dataclass(frozen=True)
class Kind:
    """A kind of script.

    Attributes:
        name: in words.
        read: yields its lines.
        between: what stands between two lines of one speaker that follow each other.
    """

    name: str
    read: Callable[[Script], Iterator[Line]]
    between: str = "\n"


WHATSAPP = Kind("a WhatsApp chat", whatsapp.read)
FOUNTAIN = Kind("a screenplay", screenplay.read, " ")
DRAMA = Kind("drama text (NAME: speech)", drama.read, " ")
NOVEL = Kind("a novel", novel.read)
SUBTITLES = Kind("subtitles", subtitles.read, " ")
TELEGRAM_HTML = Kind("a Telegram chat (HTML)", telegram.read_html)
WECHAT_CSV = Kind("a WeChat chat (CSV)", wechat.read_csv)
JSON_KINDS = (
    (telegram.recognizes_message, Kind("Telegram chats (JSON)", telegram.read_json)),
    (discord.recognizes_message, Kind("a Discord chat (JSON)", discord.read)),
    (slack.recognizes_message, Kind("a Slack channel (JSON)", slack.read)),
    (wechat.recognizes_message, Kind("a WeChat chat (JSON)", wechat.read_json)),
)


def files_of(source: str) -> list[Path]:
    """The files of a path to a file or folder, those of a folder in the order of their names.

    Raises:
        DataError: when there is no such file, or none in the folder.
    """
    path = local_path(source)
    if path is None:
        parent = local_path(str(Path(source).parent))
        near = [p.name for p in parent.iterdir()] if parent and parent.is_dir() else []
        similar = suggest(Path(source).name, near, stem)
        fix = similar or "give a script, subtitles, a novel or a chat"
        raise DataError("no such file", where=source, fix=fix)
    if not path.is_dir():
        return [path]
    found = [p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()]
    # `users.json` and `channels.json` of Slack are no chats.
    found = [
        p for p in found if not is_hidden(p.relative_to(path)) and p.name not in slack.OTHER_FILES
    ]
    if not found:
        fix = f"name a file, or put files ending in {', '.join(SUFFIXES)} into it"
        raise DataError("no script in this folder", where=source, fix=fix)
    return sorted(found, key=lambda p: [_natural(part) for part in p.parts])


def kind_of(script: Script) -> Kind:
    """The kind of a script.

    Raises:
        DataError: when it is none, with what to do.
    """
    path, suffix = script.path, script.path.suffix.lower()
    if suffix in NOT_TEXT:
        stem = quoted(path.with_suffix(""))
        fix = f"convert it: {NOT_TEXT[suffix].format(quoted(path), stem)}"
        raise DataError(f"{suffix} is not text", where=str(path), fix=fix)
    if subtitles.recognizes(path):
        return SUBTITLES
    if suffix == ".json":
        return _json_kind(script)
    if suffix == ".csv":
        next(WECHAT_CSV.read(script), None)  # it has the columns
        return WECHAT_CSV
    head = script.head()
    if suffix in (".fountain", ".spmd"):
        return FOUNTAIN
    if telegram.recognizes_html(head):
        return TELEGRAM_HTML
    if whatsapp.recognizes(head):
        return WHATSAPP
    if JSON.match("\n".join(head[:TRIED])):
        return _json_kind(script)
    for kind, recognizes in (
        (DRAMA, drama.recognizes),
        (FOUNTAIN, screenplay.recognizes),
        (NOVEL, novel.recognizes),
    ):
        if recognizes(head):
            return kind
    what = "no speakers found" if any(map(str.strip, head)) else "the file is empty"
    fix = "name who speaks, as in `ANNA: Come in.`, or put speech in quotation marks"
    if drama.recognizes([text.upper() for text in head]):
        fix = "begin names with a capital letter, as in `Anna: Come in.`"
    if not script.encoding.startswith("utf"):
        what += f" in it, read as {script.encoding.upper()} (detected)"
        fix += f"; if that is not its encoding, {_conversion(script)}"
    raise NoScriptError(what, where=f"{path}:1", fix=fix)


def _json_kind(script: Script) -> Kind:
    for message in islice(messages(script), TRIED):
        for recognizes, kind in JSON_KINDS:
            if recognizes(message.values):
                return kind
    fix = "give Telegram's result.json, DiscordChatExporter's, Slack's or a WeChat tool's JSON"
    raise NoScriptError("not the messages of a chat that is known", where=str(script.path), fix=fix)


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts messages2.html before messages10.html."""
    parts = re.split(r"(\d{1,18})", name.casefold())
    return [(int(part), "") if k % 2 else (-1, part) for k, part in enumerate(parts)]


class Play:
    """The lines of several files, which can be read any number of times.

    Attributes:
        remarks: what was left out when they were last read.
        notices: a line about each file: its kind, and its encoding where it is not UTF-8. In a
            folder with scripts, a file that is none is left out.
    """

    def __init__(self, sources: list[str]) -> None:
        self.remarks = Remarks()
        self._scripts: list[tuple[Script, Kind]] = []
        self.notices: list[str] = []
        for source in sources:
            found, others = [], []
            for path in files_of(source):
                script = Script(path, self.remarks)
                try:
                    found.append((script, kind_of(script)))
                except NoScriptError as error:
                    others.append(error)
            if not found:
                raise others[0]
            self._scripts += found
            self.notices += [_notice(script, kind) for script, kind in found]
            self.notices += [f"{error.where}: {error.what}, left out" for error in others]

    def __iter__(self) -> Iterator[tuple[Line, Kind]]:
        """Yield each line, with the kind of its script; no two files have a scene in common."""
        self.remarks.clear()
        before = 0
        for script, kind in self._scripts:
            last = before
            for line in kind.read(script):
                last = before + line.scene
                speaker, text = (HALF.sub("\ufffd", part) for part in (line.speaker, line.text))
                if (speaker, text) != (line.speaker, line.text):
                    self.remarks.add("half a surrogate pair, replaced by \ufffd", line.where)
                yield Line(speaker, text, line.where, last), kind
            before = last + 1


def _notice(script: Script, kind: Kind) -> str:
    text = f"{script.path}: {kind.name}"
    if script.encoding == "utf-8-sig":
        return text
    text += f", in the encoding {script.encoding.upper()} (detected)"
    if script.unsure:
        text += f"; it is short: if names or words are wrong, {_conversion(script)}"
    return text


def _conversion(script: Script) -> str:
    return f"convert it: {conversion(script.path, 'ITS-ENCODING')}"
