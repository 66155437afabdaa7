"""What is wrong or odd in the rows, in English and Chinese."""

from __future__ import annotations

from dataclasses import dataclass

from offbook.doctor.findings import Finding
from offbook.report.words import Text

SEVERITIES = {
    "fix": Text("fix", "需修正"),
    "look": Text("look", "需查看"),
    "note": Text("note", "提示"),
}
KEEP = "如需完整保留，请增大 data.max_length，或设为 auto"
# For each kind: what is counted, and what to do about it.
CHINESE = {
    "duplicate": ("与之前的行相同的行", "请删除：每个副本在训练中都会多算一次"),
    "near_duplicate": ("与之前的行几乎相同的行", "除非细微差别重要，否则请删除"),
    "boilerplate": ("带有助手套话的回答", "改成角色会说的话，或删除这些行"),
    "placeholder": ("含有占位符的行", "填入应有的内容，或删除这些行"),
    "empty_cell": (
        "空的输入或系统文本被写成 nan 之类的行",
        "请将其留空：模型会把它当作问题的一部分",
    ),
    "no_answer": (
        "只有思考而没有答案的回答",
        "在 </think> 之后写上答案，或删除这些行：角色会学着在那里停下",
    ),
    "garbled": ("含有控制字符或乱码的行", "请用正确的编码读取文本，或删除这些行"),
    "control_text": (
        "含有聊天模板控制文本的行",
        "请删除这些文本：基座模型的模板会自己写入，而它们会被当作普通文本训练",
    ),
    "swapped": (
        "说话人似乎颠倒了的行",
        "问题应是别人对角色说的话，回答应是角色说的话",
    ),
    "personal": ("含有个人信息的行", "请替换：模型会复述训练过的内容"),
    "conflict": ("有多个不同回答的问题", "如果角色两种都可以回答就保留，否则只留最好的回答"),
    "model": ("提到语言模型或其开发者的回答", "除非角色知道这些，否则请删除"),
    "empty_prompt": ("没有文字的问题", "写上回答所针对的话，或删除这些行"),
    "unfinished": ("在句子中间结束的回答", "请补全：角色会学着在那里停下"),
    "length": (
        "比其他回答长得多或短得多的回答（中位数 {median} 个字符）",
        "请看看它们是否属于这个角色",
    ),
    "language": ("与 {share} 的回答文字不同的回答", "除非角色说两种语言，否则请删除或翻译"),
    "silent_role": (
        "系统文本中的角色“{name}”的台词在问题里、而不在回答里的行",
        "请让角色的台词成为回答",
    ),
    "dropped": ("因自身超过 {limit} 个 token 而被略去的回答", KEEP),
    "truncated": ("为容纳于 {limit} 个 token 而失去开头的问题", KEEP),
    "divided": ("为容纳于 {limit} 个 token 而截断的对话", f"只失去了回答之前的部分上文；{KEEP}"),
    "unknown_language": (
        "回答每个字符要用 {ratio} 个 token：基座模型几乎不懂这种语言",
        "数据教不会语言；请把 model.base 设为用这种语言训练过的模型",
    ),
    "trimmed": ("聊天模板去掉了首尾空白的回答", "无需处理"),
    "opening": (
        "以“{text}”开头的回答（{share}）",
        "如果角色就这样说话，无需处理：模型会学会这样开头",
    ),
    "ending": (
        "以“{text}”结尾的回答（{share}）",
        "如果角色就这样说话，无需处理：模型会学会这样结尾",
    ),
    "two_languages": ("与大多数回答文字不同的回答（{share}）", "请确认基座模型懂这两种语言"),
}


@dataclass(frozen=True)
class Said:
    """A finding as the page shows it.

    Attributes:
        name: of its severity.
        what: what was found, and how often.
        todo: what to do about it.
        places: the first of them.
    """

    name: Text
    what: Text
    todo: Text
    places: str


def said(finding: Finding) -> Said:
    """A finding in both languages."""
    what, todo = (text.format(**finding.values) for text in CHINESE[finding.kind])
    count = f"{finding.count:,}" if finding.count else ""
    return Said(
        SEVERITIES[finding.severity],
        Text(f"{finding.what}: {count}", f"{what}：{count}") if count else Text(finding.what, what),
        Text(finding.todo, todo),
        finding.places,
    )
