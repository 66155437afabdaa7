"""Text that does not belong in rows: an assistant's phrases, placeholders, control text."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from offbook.data.personal import find
from offbook.doctor.findings import Finding, Hit
from offbook.doctor.identity import CHINESE, ENGLISH, PRODUCT_ZH
from offbook.doctor.row import UNSPACED, Row

MODEL = r"(?:a\.?i\.?|artificial intelligence|(?:large )?language)"
BOILERPLATE = re.compile(
    rf"\b(?:as|being) an? (?:[\w-]+ )?{MODEL}[ -](?:language )?(?:model|assistant|chatbot)\b"
    rf"|\bas an? (?:ai|artificial intelligence)\b,? I\b"
    r"|\bI(?:'m| am) sorry,? but (?:as an ai|I (?:can't|cannot|can not|am unable to|am not able to)"
    r" (?:assist|help you|fulfil|comply|provide|engage|continue))"
    r"|\bI (?:can't|cannot|am unable to) (?:assist|help)(?: you)? with (?:that|this)(?: request)?\b"
    r"|\bhow (?:can|may) I (?:assist|help) you today\b"
    r"|\bmy (?:knowledge cut-?off|training data)\b"
    r"|作为(?:一[个名款位种])?(?:大型?)?(?:人工智能|AI|语言模型|智能助手|虚拟助手|聊天机器人)"
    r"|我(?:只)?是一[个款名种](?:AI|人工智能|大?语言模型)(?:语言模型|助手|模型)?"
    r"|抱歉，(?:作为|我(?:无法|不能)(?:提供|协助|满足|继续|回答(?:这个|您的|你的)问题))"
    r"|请问(?:还)?有什么可以帮(?:助|到)您",
    re.IGNORECASE,
)
# What has to be in a text, in lower case, for one of the patterns to match: most texts have none of
# it, and to look for it takes a tenth of the time.
PHRASES = (
    *("as a", "being a", "sorry", "assist", "help", "knowledge", "training data"),
    *("作为", "我是一", "我只是一", "抱歉", "请问"),
)
AI = re.compile(r"(?<![a-z])a\.?i(?![a-z])")
MODELS = (
    *("gpt", "llm", "llama", "qwen", "claude", "gemini", "deepseek", "deep seek", "openai", "kimi"),
    *("open ai", "anthropic", "mistral", "mixtral", "model", "assistant", "program", "algorithm"),
    *("artificial", "comput", "software", "robot", " bot", " train", " code", "machine", "smollm"),
    *("neural", " meta", "google", "microsoft", "developer", "alibaba", "hugging", "users", "glm"),
    *(
        "模型",
        "智能",
        "机器",
        "程序",
        "算法",
        "代码",
        "训练",
        "助手",
        "开发",
        "研发",
        "通义",
        "千问",
    ),
    *("千问", "文心", "智谱", "豆包", "混元", "讯飞", "深度求索", "公司", "电脑"),
)
PRODUCT = re.compile(PRODUCT_ZH)
PLACEHOLDER = re.compile(
    r"\{\{[^{}\n]{1,40}\}\}|\$\{[^{}\n]{1,40}\}|%\((?:\w{1,40})\)s"
    r"|[<{\[](?:your |user ?|char(?:acter)? ?|role ?|bot ?|first |last |full |customer |company )*"
    r"[_ ]?(?:name|user|char|character|role|bot|date|company|city|insert[^\]>}\n]{1,40})[>}\]]"
    r"|[\[【{<（(](?:姓名|用户名?|名字|角色名?|你的名字|公司名?称?|插入[^】\])）}>\n]{1,20}"
    r"|此处[^】\])）}>\n]{0,10}(?:填写|插入|替换)[^】\])）}>\n]{0,10})[\]】}>）)]"
    r"|\b(?:lorem ipsum|TODO:|FIXME:)|\[(?:TODO|TBD|PLACEHOLDER)\]",
    re.IGNORECASE,
)
# What programs write for a value that is not there, and Excel for one that it cannot compute.
CELL = (
    r"(?:nan|NaN|NaT|<NA>|None|null|NULL|#?[Nn]/[Aa]|undefined|TBD|TODO"
    r"|#(?:REF!|VALUE!|DIV/0!|NUM!|NULL!|NAME\?))"
)
NOTHING = re.compile(rf"{CELL}(?:\n+{CELL})*")
# Control characters, U+FFFD, and what UTF-8 looks like when it is read as GBK or as Latin-1.
GARBLED = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufffd]|锟斤拷|â€|Ã[\xa0-\xaa\xac-\xba\xbc-\xbf]")
OPEN, CLOSE = "<think>", "</think>"
# Tokens of ChatML, Llama, Mistral, Gemma, DeepSeek, Qwen, Phi; the headings of Alpaca and Vicuna.
CONTROL = re.compile(
    r"<\|[\w /-]{1,40}\|>|<｜[^｜\n]{1,40}｜>|</?s>|\[/?(?:INST|AVAILABLE_TOOLS|TOOL_CALLS)\]"
    r"|<</?SYS>>|</?(?:bos|eos|pad|unk|start_of_turn|end_of_turn|start_header_id|eot_id)>"
    r"|\[(?:BOS|EOS|PAD|CLS|SEP|MASK)\]|^#{2,3} ?(?:Instruction|Response|Input|Human|Assistant)\b:?"
    r"|^(?:USER|ASSISTANT|Human|Assistant|User)[:：]|^(?:用户|助手|助理)[:：]",
    re.MULTILINE,
)
SAID = re.compile("[^\\W_]|[\u2600-\u27bf\U0001f000-\U0001faff]")  # a letter, digit or picture


class Leftovers:
    """Finds text by patterns, in prompts and replies."""

    def __init__(self) -> None:
        self._hits: dict[str, list[Hit]] = defaultdict(list)

    def see(self, row: Row) -> None:
        """Look at a row."""
        replies = [reply for _, reply in row.pairs]
        texts = [message.content for message in row.conversation.messages]
        asked = [m.content for m in row.conversation.messages if m.role == "user"]
        boilerplate = next(filter(None, map(boilerplate_in, replies)), "")
        for kind, found in (
            ("boilerplate", boilerplate),
            ("model", "" if boilerplate else next(filter(None, map(model_in, replies)), "")),
            ("placeholder", _first(PLACEHOLDER, texts) or _nothing([*asked[:1], *replies])),
            ("empty_cell", _empty_cell(row)),
            ("no_answer", next(filter(None, map(no_answer_in, replies)), "")),
            ("garbled", _garbled(texts)),
            ("control_text", _first(CONTROL, texts)),
            ("empty_prompt", next((p for p, _ in row.pairs if not SAID.search(p)), "").strip()),
            ("personal", ", ".join(dict.fromkeys(one.kind for t in texts for one in find(t)))),
        ):
            if found:
                self._hits[kind].append(row.hit(found))

    def findings(self) -> Iterator[tuple[Finding, list[Hit]]]:
        """A finding for each kind."""
        for kind, hits in self._hits.items():
            yield Finding.of(kind, hits), hits


def boilerplate_in(reply: str) -> str:
    """A phrase of an assistant in a reply, or an empty text."""
    folded = reply.lower()
    if not any(map(folded.__contains__, PHRASES)):
        return ""
    return _first(BOILERPLATE, [reply.replace("’", "'")])


def model_in(reply: str) -> str:
    """A language model that a reply names, or "itself" where its speaker says to be one."""
    folded = f" {reply.lower()}"
    if not any(map(folded.__contains__, MODELS)) and not AI.search(folded):
        return ""
    if named := PRODUCT.search(reply):
        return named[0]
    text = reply.replace("’", "'")
    is_one = ENGLISH.match(text) or (UNSPACED.search(text) and CHINESE.match(text))
    return "itself" if is_one else ""


def no_answer_in(reply: str) -> str:
    """Why a reply that begins with reasoning has no answer, or an empty text."""
    if not reply.lstrip().startswith(OPEN):
        return ""
    _, close, answer = reply.partition(CLOSE)
    return "" if answer.strip() else f"nothing after {close}" if close else f"no {CLOSE}"


def _garbled(texts: list[str]) -> str:
    found = next(filter(None, map(GARBLED.search, texts)), None)
    text = found[0] if found else ""
    return text if text.isprintable() else ascii(text)[1:-1]


def _first(pattern: re.Pattern[str], texts: list[str]) -> str:
    found = next(filter(None, map(pattern.search, texts)), None)
    return found[0].strip() if found else ""


def _nothing(texts: list[str]) -> str:
    return next((text.strip() for text in texts if NOTHING.fullmatch(text.strip())), "")


def _empty_cell(row: Row) -> str:
    """What is in place of a system text, or of an input, which is the end of a prompt."""
    for message in row.conversation.messages:
        before, _, last = message.content.rstrip().rpartition("\n")
        if message.role == ("user" if before else "system") and NOTHING.fullmatch(last):
            return last
    return ""
