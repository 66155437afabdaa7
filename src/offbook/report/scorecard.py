"""The scorecard: the six questions of an evaluation, each with its figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from markupsafe import Markup

from offbook.evaluation.record import Compared, Evaluation, Figure
from offbook.report.charts import interval_bars
from offbook.report.words import WORDS, Text

LOWER, EITHER, HIGHER = -1, 0, 1  # which is better


def show_nats(value: float) -> str:
    return f"{value:.3f}"


def show_share(value: float) -> str:
    return f"{100 * value:.0f}%"


def show_number(value: float) -> str:
    return f"{value:.1f}"


@dataclass(frozen=True)
class Kind:
    """A kind of figure.

    Attributes:
        name: of the figure.
        show: makes a number a text.
        better: whether LOWER or HIGHER is better; or EITHER.
    """

    name: Text
    show: Callable[[float], str]
    better: int


KINDS = {
    "loss": Kind(
        Text("loss on held-out rows, nats per token", "留出数据的损失（nat/token）"),
        show_nats,
        LOWER,
    ),
    "bits": Kind(Text("bits per byte, held-out rows", "留出数据的比特/字节"), show_nats, LOWER),
    "training": Kind(
        Text("loss on training rows, nats per token", "训练数据的损失（nat/token）"),
        show_nats,
        LOWER,
    ),
    "best": Kind(
        Text("loss above that of step {step}, the best", "高出最佳的第 {step} 步的损失"),
        show_nats,
        LOWER,
    ),
    "chrf": Kind(
        Text("likeness to the reference, chrF", "与参考回答的相似度（chrF）"), show_number, HIGHER
    ),
    "in_voice": Kind(Text("replies in the role's voice", "符合角色口吻的回答"), show_share, HIGHER),
    "length": Kind(
        Text("characters of a reply (references: {n})", "回答字符数（参考：{n}）"),
        show_number,
        EITHER,
    ),
    "reply_length": Kind(Text("characters of a reply", "回答字符数"), show_number, EITHER),
    "openings": Kind(
        Text("replies that begin unlike others", "开头不重复的回答"), show_share, EITHER
    ),
    "repetition": Kind(Text("repetition within a reply", "回答内部的重复"), show_share, LOWER),
    "leaks": Kind(Text("answers that give the model away", "暴露身份的回答"), show_share, LOWER),
    "drift": Kind(Text("drift in a long conversation", "长对话中的偏移"), show_share, HIGHER),
    "stops": Kind(Text("replies that end by themselves", "自行结束的回答"), show_share, HIGHER),
    "copied": Kind(
        Text("replies that repeat a training line", "抄录训练数据的回答"), show_share, LOWER
    ),
    "longest": Kind(Text("characters of the longest copy", "最长抄录的字符数"), show_number, LOWER),
    "kl": Kind(
        Text(
            "KL to the base on general answers, nats per token",
            "一般回答上与基座的 KL（nat/token）",
        ),
        show_nats,
        LOWER,
    ),
    "general": Kind(
        Text("loss on general answers, nats per token", "一般回答的损失（nat/token）"),
        show_nats,
        LOWER,
    ),
    "prompts_kl": Kind(
        Text(
            "KL to the base on held-out rows, nats per token", "留出数据上与基座的 KL（nat/token）"
        ),
        show_nats,
        EITHER,
    ),
    "general_in_voice": Kind(
        Text("general answers in the role's voice", "一般问题中符合角色口吻的回答"),
        show_share,
        EITHER,
    ),
}


@dataclass(frozen=True)
class Row:
    """A figure of the scorecard.

    Attributes:
        key: of its kind, in KINDS.
        tuned: of the tuned model.
        base, change: of the base, and tuned minus base; None where only one is measured.
        values: what its name says besides.
    """

    key: str
    tuned: Figure
    base: Figure | None = None
    change: Figure | None = None
    values: dict[str, object] = field(default_factory=dict)

    @classmethod
    def of(cls, key: str, pair: Compared, **values: object) -> Row:
        """A row of a figure of both models."""
        return cls(key, pair.tuned, pair.base, pair.change, values)

    @property
    def name(self) -> Text:
        return KINDS[self.key].name.with_values(**self.values)

    @property
    def better(self) -> int:
        return KINDS[self.key].better

    @property
    def n(self) -> str:
        """How many prompts it rests on; nothing for the turns of a single conversation."""
        return "" if self.key == "drift" else f"{self.tuned.n:,}"

    def value(self, figure: Figure | None, signed: bool = False) -> str:
        """A figure as text; nothing where there is none."""
        return "" if figure is None else self._shown(figure.value, signed)

    def interval(self, figure: Figure | None, signed: bool = False) -> str:
        """The interval of a figure as text; nothing where there is none, as for one prompt."""
        if figure is None or not math.isfinite(figure.low):
            return ""
        return f"{self._shown(figure.low, signed)} … {self._shown(figure.high, signed)}"

    def _shown(self, value: float, signed: bool) -> str:
        text = KINDS[self.key].show(abs(value))
        if not any(char in "123456789" for char in text):
            return text
        return f"{'−' if value < 0 else '+' * signed}{text}"

    @property
    def is_clear(self) -> bool:
        """Whether the change is larger than the noise."""
        return self.change is not None and not self.change.low <= 0 <= self.change.high

    @property
    def judgement(self) -> Text | None:
        """The change in a word; None where nothing is compared."""
        if self.change is None:
            return None
        if not self.is_clear:
            return WORDS["noise"]
        up = self.change.value > 0
        if self.better == EITHER:
            return WORDS["higher" if up else "lower"]
        return WORDS["better" if up == (self.better == HIGHER) else "worse"]

    @property
    def tone(self) -> str:
        """The class of the judgement's colour."""
        if not self.is_clear or self.better == EITHER or self.change is None:
            return "open"
        return "good" if (self.change.value > 0) == (self.better == HIGHER) else "bad"

    def bars(self, before: str = "b", after: str = "a") -> Markup:
        """The intervals, drawn in these colours."""
        pairs = [] if self.base is None else [(self.base, before)]
        return interval_bars([*pairs, (self.tuned, after)])


@dataclass(frozen=True)
class Question:
    """One of the six questions.

    Attributes:
        key: its name in the page.
        rows: the figures that answer it.
        note: what else is to be said.
    """

    key: str
    rows: list[Row]
    note: Text | None = None

    @property
    def text(self) -> Text:
        return QUESTIONS[self.key]


QUESTIONS = {
    "lines": Text("Did it learn the lines?", "学会台词了吗？"),
    "voice": Text("Does it sound like the role?", "像这个角色吗？"),
    "in-role": Text("Does it stay in role?", "能保持角色吗？"),
    "stops": Text("Does it stop?", "会停下来吗？"),
    "copied": Text("Did it copy?", "抄录了吗？"),
    "forgetting": Text("Did it forget?", "遗忘了吗？"),
}
ACCURACY = Text(
    "The voice classifier is right about {share} of the replies that it was not trained on.",
    "口吻分类器对未见过的回答的正确率为 {share}。",
)


def questions(evaluation: Evaluation) -> Iterator[Question]:
    """The questions that an evaluation answers."""
    lines, forgetting = evaluation.lines, evaluation.forgetting
    rows = [Row.of("loss", lines.loss), Row.of("bits", lines.bits)]
    if lines.training is not None:
        rows.append(Row.of("training", lines.training))
    if lines.best is not None:
        rows.append(Row("best", lines.best, values={"step": lines.best_step}))
    yield Question("lines", rows)
    if (voice := evaluation.voice) is not None:
        rows = [Row.of("chrf", voice.chrf)]
        if voice.in_voice is not None:
            rows.append(Row.of("in_voice", voice.in_voice))
        rows += [
            Row.of("length", voice.length, n=show_number(voice.reference_length.value)),
            Row.of("openings", voice.openings),
            Row.of("repetition", voice.repetition),
        ]
        yield Question("voice", rows, ACCURACY.with_values(share=show_share(voice.accuracy.value)))
    if (in_role := evaluation.in_role) is not None:
        rows = [Row.of("leaks", in_role.leaks)]
        if in_role.drift is not None:
            rows.append(Row("drift", in_role.drift))
        yield Question("in-role", rows)
    if evaluation.stops is not None:
        yield Question("stops", [Row.of("stops", evaluation.stops)])
    if (copied := evaluation.copied) is not None:
        rows = [Row.of("copied", copied.share), Row.of("longest", copied.longest)]
        yield Question("copied", rows)
    rows = [
        Row("kl", forgetting.kl),
        Row.of("general", forgetting.loss),
        Row("prompts_kl", forgetting.prompts_kl),
    ]
    if forgetting.in_voice is not None:
        rows.append(Row.of("general_in_voice", forgetting.in_voice))
    yield Question("forgetting", rows)
