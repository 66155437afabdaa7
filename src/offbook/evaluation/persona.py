"""Does it stay in role: questions about what it is, and one long conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from offbook.data.messages import Message
from offbook.evaluation.figures import compare_shares, figure
from offbook.evaluation.probes import DRILL, QUESTIONS, gives_away
from offbook.evaluation.record import InRole, Probe
from offbook.evaluation.subject import Progress
from offbook.evaluation.voice import VoiceClassifier
from offbook.inference.generate import Sampling
from offbook.inference.pytorch import TorchEngine

PROBE_TOKENS = 48  # of an answer: a model says what it is at once
DRILL_TOKENS = 30  # of a turn


def stay_in_role(
    writer: TorchEngine,
    system: str | None,
    references: Sequence[str],
    classifier: VoiceClassifier | None,
    progress: Progress,
) -> InRole:
    """Ask both models what they are, and talk to the tuned one for long.

    Args:
        writer: the model.
        system: text before each question, if any.
        references: lines of the role, for their language.
        classifier: of the role's voice; without one, there is no long conversation.
        progress: see `evaluate`.
    """
    found = question(writer, system, progress)
    if classifier is None:
        return found
    turns = drill(writer, system, language_of(references), classifier, progress)
    half = len(turns) // 2
    pairs = zip(turns[:half], turns[half:], strict=False)
    drift = figure([late - early for early, late in pairs]) if half > 1 else None
    return replace(found, drill=turns, drift=drift)


def question(writer: TorchEngine, system: str | None, progress: Progress) -> InRole:
    """Ask both models what they are.

    Args:
        writer: the model.
        system: text before each question, if any.
        progress: see `evaluate`.
    """
    asked = [(language, text) for language, texts in QUESTIONS.items() for text in texts]
    prompts = [writer.template.build_prompt([*opening(system), _user(text)]) for _, text in asked]
    progress("questions about what it is", 0, 2 * len(prompts))
    base = writer.replies(prompts, PROBE_TOKENS, base=True)
    progress("questions about what it is", len(prompts), 2 * len(prompts))
    tuned = writer.replies(prompts, PROBE_TOKENS)
    probes = [
        Probe(
            language,
            text,
            before.text,
            after.text,
            gives_away(before.text, language, text),
            gives_away(after.text, language, text),
        )
        for (language, text), before, after in zip(asked, base, tuned, strict=True)
    ]
    return InRole(
        compare_shares([p.base_leaks for p in probes], [p.tuned_leaks for p in probes]), probes
    )


def drill(
    writer: TorchEngine,
    system: str | None,
    language: str,
    classifier: VoiceClassifier,
    progress: Progress,
) -> list[float]:
    """How much each turn of one long conversation sounds like the role.

    Args:
        writer: the tuned model.
        system: text before it, if any.
        language: `en` or `zh`.
        classifier: of the role's voice.
        progress: see `evaluate`.

    Returns:
        The probability of the role, for each turn that fits in the base's context.
    """
    messages, replies = opening(system), []
    greedy = Sampling(temperature=0, max_new_tokens=DRILL_TOKENS)
    for number, text in enumerate(DRILL[language]):
        progress("a long conversation", number, len(DRILL[language]))
        messages.append(_user(text))
        prompt = writer.template.build_prompt(messages)
        if writer.context is not None and len(prompt) + DRILL_TOKENS > writer.context:
            break
        reply = "".join(writer.reply(prompt, greedy))
        messages.append(Message("assistant", reply or " "))
        replies.append(reply)
    return [round(float(p), 4) for p in classifier.probability(replies)]


def language_of(texts: Sequence[str]) -> str:
    """`zh` where most of the letters are Chinese characters, else `en`."""
    letters = [char for text in texts for char in text if char.isalpha()]
    chinese = sum("\u2e80" <= char <= "\u9fff" for char in letters)
    return "zh" if 2 * chinese > len(letters) else "en"


def opening(system: str | None) -> list[Message]:
    """The messages that a conversation begins with."""
    return [Message("system", system)] if system else []


def _user(text: str) -> Message:
    return Message("user", text)
