"""A conversation rendered as text by the tokenizer's own chat template, within limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date, datetime
from functools import cached_property

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from offbook.data.messages import Message
from offbook.errors import DataError, ModelError
from offbook.tokens.clock import stop_clock
from offbook.tokens.prompt_ends import PromptEnds, UnclearError
from offbook.tokens.sandbox import check_source, within_limits

# What a template that is run, or its own `raise_exception`, can raise.
RENDERING_ERRORS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


class Renderer:
    """The chat template of a tokenizer, as a function from messages to text.

    Some templates print the date, so the same messages would be other text on another day. Here the
    clock of a template stands still, at the beginning of `date`.

    Attributes:
        date: the day that a template prints, if it prints one; today by default.
        source: of the template, with a clock that stands still.

    Raises:
        ModelError: when there is no template, or its source is refused; see `sandbox`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, date: date | None = None) -> None:
        self._tokenizer = tokenizer
        self.date = date or datetime.now().date()
        if not tokenizer.chat_template:
            raise self.refusal("it does not exist")
        named = tokenizer.chat_template
        if isinstance(named, dict) and "default" not in named:
            raise ModelError(
                f"there are several chat templates ({', '.join(map(str, named))}), and none is "
                'named "default"',
                where=tokenizer.name_or_path or None,
                fix='name the one to train on "default" in tokenizer_config.json',
            )
        try:
            source = tokenizer.get_chat_template()
            check_source(source)
        except RENDERING_ERRORS as error:
            raise self.refusal(str(error)) from None
        self.source = stop_clock(source, self.date)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The text that the template writes for these messages, exactly as they are.

        Args:
            messages: the conversation.
            add_generation_prompt: whether to end with the header of a reply.

        Raises:
            DataError: when the template refuses the messages, or exceeds a limit.
        """
        turns = [{"role": m.role, "content": m.content} for m in messages]

        def work() -> str:
            return str(
                self._tokenizer.apply_chat_template(
                    turns,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    chat_template=self.source,
                )
            )

        try:
            return within_limits(work)
        except DataError:
            raise
        except RENDERING_ERRORS as error:
            raise DataError(f"the chat template refuses it: {error}") from None

    def prompt_lengths(self, messages: Sequence[Message], text: str) -> dict[int, int]:
        """The length of prompt k for each k for which `text` is known to begin with it.

        Prompt k is `render(messages[:k], add_generation_prompt=True)`; see `prompt_ends`.

        Args:
            messages: a conversation.
            text: what the template writes for it.
        """
        turns = [{"role": m.role, "content": m.content} for m in messages]
        try:
            loop, ends, header = within_limits(lambda: self._prompt_ends.find(turns))
        except (UnclearError, *RENDERING_ERRORS):
            return {}
        if not text.startswith(loop[: max(ends.values(), default=0)]):
            return {}
        found = {k: end + len(header) for k, end in ends.items() if text.startswith(header, end)}
        for k in {min(found, default=0), max(found, default=0)} - {0}:
            if self.render(messages[:k], add_generation_prompt=True) != text[: found[k]]:
                return {}  # transformers renders in another way
        return found

    @cached_property
    def _prompt_ends(self) -> PromptEnds:
        try:  # its environment is hardened, and there is no public way to it
            from transformers.utils.chat_template_utils import _compile_jinja_template
        except ImportError:
            return PromptEnds(None, "", {})  # each prompt is rendered, which takes longer
        environment = _compile_jinja_template("").environment
        return PromptEnds(environment, self.source, self._tokenizer.special_tokens_map)

    def on(self, date: date) -> Renderer:
        """The same template, on another day."""
        return Renderer(self._tokenizer, date)

    def refusal(self, reason: str) -> ModelError:
        """The error that says why this template cannot be used."""
        return ModelError(
            f"the chat template cannot be trained on: {reason}",
            where=self._tokenizer.name_or_path or None,
            fix="use a chat model whose template is intact, or set model.template",
        )


def move_system_text(messages: Sequence[Message]) -> list[Message]:
    """The messages with system text, if any, at the start of the first user turn.

    For templates that have no place for it.
    """
    if not messages or messages[0].role != "system":
        return list(messages)
    system, first, *rest = messages
    return [replace(first, content=f"{system.content}\n\n{first.content}"), *rest]
