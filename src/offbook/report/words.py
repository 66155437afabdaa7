"""The texts of the pages, in English and Chinese. Both are in a page, which shows one of them."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from offbook.errors import printable


@dataclass(frozen=True)
class Text:
    """A text in two languages. As HTML, it is in English until the page's script changes it."""

    en: str
    zh: str

    def __html__(self) -> str:
        return Markup("<span {}>{}</span>").format(self.attributes, printable(self.en))

    def __str__(self) -> str:
        return self.en

    def with_values(self, **values: object) -> Text:
        """The text with values, which may be texts, in place of `{name}`."""
        chinese = {k: v.zh if isinstance(v, Text) else v for k, v in values.items()}
        return Text(self.en.format(**values), self.zh.format(**chinese))

    @property
    def attributes(self) -> Markup:
        """What an element has, so that the script finds its text in both languages."""
        return Markup('data-en="{}" data-zh="{}"').format(printable(self.en), printable(self.zh))

    @property
    def label(self) -> Markup:
        """An `aria-label` in both languages."""
        return Markup('aria-label="{}" data-label-en="{}" data-label-zh="{}"').format(
            self.en, self.en, self.zh
        )


def same(text: object) -> Text:
    """A text that is the same in both languages, such as a number."""
    return Text(str(text), str(text))


# The kinds of a finding: their names, and what each means.
KINDS = {
    "took": Text("It took", "学会了"),
    "did not take": Text("It did not take", "没有学会"),
    "overfitted": Text("It overfitted", "过拟合了"),
    "forgot": Text("It forgot", "遗忘了原有能力"),
    "does not stop": Text("It does not stop", "停不下来"),
    "cannot tell": Text("Cannot tell", "无法判断"),
}
MEANINGS = {
    "took": Text("The model has learned the role.", "模型学会了这个角色。"),
    "did not take": Text(
        "The model answers much as the base does.", "模型的回答与基座模型差不多。"
    ),
    "overfitted": Text(
        "It knows the training rows by heart, and does far worse on others.",
        "模型背下了训练数据，在其他数据上则差得多。",
    ),
    "forgot": Text(
        "It has lost much of what the base could do besides the role.",
        "除了角色之外，基座模型的许多能力已经丢失。",
    ),
    "does not stop": Text(
        "Its replies do not end by themselves as the base's do.",
        "与基座模型不同，它的回答不会自行结束。",
    ),
    "cannot tell": Text(
        "The differences are smaller than the noise, or there are too few prompts.",
        "差异小于误差，或者样本太少。",
    ),
}
GOOD, OPEN = ("took",), ("cannot tell",)

WORDS = {
    "language": Text("中文", "English"),
    "contents": Text("Contents", "目录"),
    "report": Text("Report of a run", "训练报告"),
    "made_by": Text("Made by offbook {version}.", "由 offbook {version} 生成。"),
    "rows": Text("rows", "数据"),
    "base": Text("base", "基座模型"),
    "tuned": Text("tuned", "微调后"),
    "change": Text("change", "变化"),
    "interval": Text("95% interval", "95% 置信区间"),
    "reference": Text("reference", "参考"),
    "prompts": Text("prompts", "样本数"),
    "step": Text("step", "步"),
    "steps": Text("steps", "步数"),
    "trained": Text("last written", "最后写入"),
    "table": Text("As a table", "表格"),
    "thinned": Text(
        "Every {every}th point; all are in metrics.jsonl.",
        "每 {every} 个点取一个；全部数据见 metrics.jsonl。",
    ),
    "chart_of": Text("{name}: {parts}.", "{name}：{parts}。"),
    "chart_part": Text(
        "{name} from {first} at {x} {begin} to {last} at {end}, lowest {low}, highest {high}",
        "{name}从{x} {begin} 的 {first} 到 {end} 的 {last}，最低 {low}，最高 {high}",
    ),
    # Verdict.
    "verdict": Text("Verdict", "结论"),
    "not_evaluated": Text("Not evaluated yet", "尚未评估"),
    "to_evaluate": Text(
        "Losses alone do not say whether the model answers in role. To find out, run:",
        "仅凭损失无法判断模型是否进入了角色。请运行：",
    ),
    "evaluation_damaged": Text("The evaluation cannot be read.", "无法读取评估结果。"),
    "validation_fell": Text(
        "Validation loss {before} before training, {after} after it ({change}).",
        "验证损失：训练前 {before}，训练后 {after}（{change}）。",
    ),
    "because": Text("Why", "依据"),
    "advice": Text("What to change", "建议"),
    "evaluated": Text(
        "Evaluated: {what}, adapter strength {strength}.",
        "评估对象：{what}，适配器强度 {strength}。",
    ),
    "the_result": Text("the result", "训练结果"),
    "of_step": Text("the checkpoint of step {step}", "第 {step} 步的检查点"),
    "other_step": Text(
        "The run has gone on to step {step} since. Evaluate it again:",
        "此后训练已进行到第 {step} 步，请重新评估：",
    ),
    "short_form": Text(
        "This is the short form. For replies, copying and the ledger, run:",
        "这是简要评估。如需回答对比、抄袭检查和数据明细，请运行：",
    ),
    # Status.
    "status": Text("Progress", "进度"),
    "step_of": Text("Step {step} of {total}", "第 {step} 步，共 {total} 步"),
    "step_only": Text("Step {step}", "第 {step} 步"),
    "waiting": Text("The run has not begun yet.", "训练尚未开始。"),
    "finished": Text("Training has finished.", "训练已完成。"),
    "unfinished": Text("Training has not finished.", "训练尚未完成。"),
    "about_left": Text("about {time} left at the last speed", "按最近速度约剩 {time}"),
    "to_resume": Text(
        "If it was stopped, this continues it:", "如果训练已停止，可用以下命令继续："
    ),
    "live": Text("This page follows the run.", "本页面实时更新。"),
    "lost": Text(
        "Nobody answers any more; this is what was shown last.",
        "服务已停止；以下是最后的内容。",
    ),
    "problem": Text("The files of the run cannot be read:", "无法读取训练文件："),
    # Curves.
    "curves": Text("Curves", "曲线"),
    "loss": Text("Loss, nats per token", "损失（nat/token）"),
    "training": Text("training", "训练"),
    "validation": Text("validation", "验证"),
    "skipped_step": Text("skipped steps", "跳过的步"),
    "learning_rate": Text("Learning rate", "学习率"),
    "grad_norm": Text("Gradient norm", "梯度范数"),
    "speed": Text("Examples per second", "每秒样本数"),
    "memory": Text("Most memory so far, GB", "内存峰值（GB）"),
    "best": Text(
        "Lowest validation loss: {loss}, at step {step}.",
        "最低验证损失：{loss}，在第 {step} 步。",
    ),
    "skipped": Text(
        "The update of {count} steps was skipped because of a loss spike: {steps}.",
        "因损失突增跳过了 {count} 步的更新：{steps}。",
    ),
    "smaller": Text(
        "From step {step} on, micro-batches had {tokens} tokens, since memory was not enough.",
        "由于内存不足，从第 {step} 步起每个微批次为 {tokens} 个 token。",
    ),
    "no_metrics": Text("Nothing has been logged yet.", "尚无记录。"),
}
WORDS |= {
    # Scorecard.
    "scorecard": Text("Scorecard", "评分"),
    "scorecard_hint": Text(
        "Each figure with its 95% interval. A change whose interval contains 0 is in the noise.",
        "每个数字都附有 95% 置信区间。若变化的区间包含 0，则该变化在误差之内。",
    ),
    "figure": Text("figure", "指标"),
    "better": Text("better", "更好"),
    "worse": Text("worse", "更差"),
    "higher": Text("higher", "更高"),
    "lower": Text("lower", "更低"),
    "noise": Text("in the noise", "误差之内"),
    "probes": Text("{count} questions about what it is", "{count} 个身份问题"),
    "leaks": Text("gives the model away", "暴露身份"),
    "question": Text("question", "问题"),
    "reply": Text("reply", "回答"),
    "copies": Text("Longest copies", "最长的抄录"),
    "copied_text": Text("copied text", "抄录的文本"),
    "source": Text("row", "数据行"),
    "drill": Text(
        "Probability that a turn is the role's, in one long conversation",
        "长对话中每轮属于该角色的概率",
    ),
    "turn": Text("turn", "轮"),
    # Replies.
    "replies": Text("Side by side", "对比"),
    "replies_hint": Text(
        "Replies to prompts that were held out from training.", "对未参与训练的问题的回答。"
    ),
    "more": Text("{count} more", "其余 {count} 个"),
    "unstopped": Text("cut: it did not end by itself", "已截断：未自行结束"),
    # Strength.
    "strength": Text("Adapter strength", "适配器强度"),
    "strength_hint": Text(
        "Loss on held-out rows against what the model forgets, at several strengths: down and to "
        "the left is better.",
        "不同强度下，留出数据上的损失与遗忘程度的关系：越靠左下越好。",
    ),
    "best_strength": Text("Best trade-off: {strength}.", "最佳折中：{strength}。"),
    "loss_at_strength": Text("Loss on held-out rows, at each strength", "各强度下留出数据的损失"),
    "best_one": Text("best trade-off", "最佳折中"),
    "held_out_loss": Text("loss on held-out rows", "留出数据的损失"),
    "kl": Text("KL to the base per token of general answers", "一般回答上与基座的 KL（每 token）"),
    # Ledger.
    "ledger": Text("Ledger of the rows", "数据明细"),
    "ledger_hint": Text(
        "Training rows that are worth a look, the worst first. Losses in nats per token.",
        "值得检查的训练数据，最差的在前。损失单位为 nat/token。",
    ),
    "first_loss": Text("when first seen", "首次训练时"),
    "tokens": Text("tokens", "token 数"),
    "remark": Text("remark", "备注"),
    # Doctor and tokens.
    "doctor": Text("The training rows", "训练数据"),
    "duplicates": Text("equal to an earlier row", "与之前的行重复"),
    "open_prompts": Text("prompts with several replies", "有多个回答的问题"),
    "supervised": Text("tokens that are trained on", "参与训练的 token"),
    "mean_length": Text("tokens of an example, on average", "样本平均 token 数"),
    "longest": Text("tokens of the longest example", "最长样本的 token 数"),
    "replies_count": Text("replies", "回答数"),
    "no_findings": Text("Nothing odd was found.", "没有发现异常。"),
    "first_rows": Text("Of the first {count} rows.", "仅统计前 {count} 行。"),
    "rows_unread": Text("The rows are not read here: {reason}.", "此处未读取数据：{reason}。"),
    "to_check": Text("To look at them, run:", "如需查看，请运行："),
    "token_view": Text("What is trained on", "训练哪些 token"),
    "token_hint": Text(
        "A training example, token by token. Highlighted tokens are trained on.",
        "一个训练样本，逐个 token 显示。高亮的 token 参与训练。",
    ),
    "trained_on": Text("trained on", "训练"),
    "not_trained": Text("not trained on", "不训练"),
    # Receipt.
    "receipt": Text("Receipt", "凭据"),
    "receipt_hint": Text(
        "What went into the run, so that it can be traced and repeated.",
        "训练所用的一切，便于追溯和重复。",
    ),
    "again": Text("To get there again:", "重新得到这个结果："),
    "again_hint": Text(
        "On the same machine, with the same versions and number of threads, a processor gives the "
        "same bits.",
        "在同一台机器上，版本和线程数相同时，CPU 会得到逐位相同的结果。",
    ),
    "versions": Text("Versions", "版本"),
    "settings": Text("Settings", "设置"),
    "setting": Text("setting", "设置"),
    "hashes": Text("SHA-256", "SHA-256"),
    "device": Text("Device", "设备"),
    "threads": Text("Threads", "线程"),
    "trained_rows": Text(
        "{training} to train on, {validation} to validate on",
        "训练 {training} 条，验证 {validation} 条",
    ),
    "examples": Text("Examples", "样本"),
    "cut_rows": Text("prompts truncated", "被截断的问题"),
    "dropped_rows": Text("replies left out", "被略去的回答"),
    "hub_commits": Text("Commits on the hub", "hub 提交"),
    "template_date": Text("Date in the chat template", "聊天模板中的日期"),
    "micro_batch": Text("Tokens of a micro-batch", "微批次 token 数"),
    # Comparison.
    "comparison": Text("Runs compared", "训练对比"),
    "differences": Text("Settings that differ", "不同的设置"),
    "no_differences": Text("All settings are the same.", "所有设置都相同。"),
    "validation_loss": Text("Validation loss, nats per token", "验证损失（nat/token）"),
    "training_loss": Text("Training loss, nats per token", "训练损失（nat/token）"),
    "loss_before": Text("validation loss before", "训练前的验证损失"),
    "loss_after": Text("validation loss after", "训练后的验证损失"),
    "loss_best": Text("lowest validation loss", "最低验证损失"),
    "loss_training": Text("last training loss", "最后的训练损失"),
    "run": Text("run", "训练"),
    "losses": Text("Losses", "损失"),
    "paired": Text("Replies to the same prompts", "对相同问题的回答"),
    "paired_hint": Text(
        "Difference to {first}, prompt by prompt, on {count} prompts that both have answered.",
        "与 {first} 逐题相减，共 {count} 个双方都回答了的问题。",
    ),
    "none_evaluated": Text("None of the runs was evaluated.", "这些训练都没有评估。"),
    "unpaired": Text(
        "No difference is computed where runs have not answered the same prompts.",
        "未回答相同问题的训练之间不计算差异。",
    ),
}
