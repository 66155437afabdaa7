"""Write a Modelfile for Ollama, whose templates are Go's and not Jinja.

Ollama renders a GGUF's own Jinja template only if it recognizes none of those that it knows, and it
recognizes by likeness: DeepSeek-LLM's becomes one that writes "System:" and ends no reply. So a Go
template is always written. It is found by rendering a few conversations whose messages are marks,
and proved by rendering others: every template here is a concatenation of the same six pieces.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from offbook.data.messages import Message
from offbook.errors import ModelError
from offbook.tokens.template import ChatTemplate

# Of private use, with letters inside, so that no template changes them.
MARKS = {role: f"\ue000{role}\ue001" for role in ("system", "user", "assistant", "again")}
QUOTES = '"""'


@dataclass(frozen=True)
class Pieces:
    """What a chat template writes around messages.

    Attributes:
        opening: before the first user text, when there is no system text.
        system: before the system text.
        asked: between system text and user text.
        reply: between user text and reply.
        turn: between reply and next user text.
        prompt: after the last user text, before the model's reply.
    """

    opening: str
    system: str
    asked: str
    reply: str
    turn: str
    prompt: str

    @classmethod
    def of(cls, template: ChatTemplate) -> Pieces:
        """The pieces of a template.

        Raises:
            ModelError: when it writes a message otherwise than as it is.
        """
        system, user, assistant, again = (
            Message(role, MARKS[name])  # type: ignore[arg-type]
            for role, name in (
                ("system", "system"),
                ("user", "user"),
                ("assistant", "assistant"),
                ("user", "again"),
            )
        )
        opening, prompt = _cut(template, [user])
        before, asked, _ = _cut(template, [system, user])
        _, reply, turn, _ = _cut(template, [user, assistant, again])
        return cls(opening, before, asked, reply, turn, prompt)

    def render(self, messages: Sequence[Message]) -> str:
        """What the Go template writes for a conversation that ends with a user turn."""
        around = {
            "system": (self.system, self.asked),
            "user": ("", ""),
            "assistant": (self.reply, self.turn),
        }
        text = "" if messages[0].role == "system" else self.opening
        for message in messages:
            before, after = around[message.role]
            text += before + message.content + after
        return text + self.prompt

    def go(self) -> str:
        """The Go template."""
        p = {name: _go_literal(text) for name, text in asdict(self).items()}
        return (
            "{{ if not .System }}" + p["opening"] + "{{ end }}{{ range .Messages }}"
            '{{ if eq .Role "system" }}'
            + p["system"]
            + "{{ .Content }}"
            + p["asked"]
            + '{{ else if eq .Role "user" }}{{ .Content }}'
            '{{ else if eq .Role "assistant" }}'
            + p["reply"]
            + "{{ .Content }}"
            + p["turn"]
            + "{{ end }}{{ end }}"
            + p["prompt"]
        )


def go_template(template: ChatTemplate, conversations: Sequence[Sequence[Message]]) -> str:
    """The Go template that writes what a chat template writes.

    Args:
        template: the chat template.
        conversations: on which both are compared, beside some of our own; each ends with a user
            turn, and is left out if it has outer white space, which some templates remove.

    Raises:
        ModelError: naming the first conversation that would be written in another way.
    """
    pieces = Pieces.of(template)
    plain = [c for c in conversations if all(m.content == m.content.strip() for m in c)]
    for messages in (*_probes(), *plain):
        if pieces.render(messages) != template.render(messages, add_generation_prompt=True):
            roles = ", ".join(message.role for message in messages)
            raise ModelError(
                f"no template of Ollama's writes what the chat template does for {roles}",
                where="--to ollama",
                fix="use --to gguf, with a program that renders the chat template in the file",
            )
    return pieces.go()


def modelfile(gguf: str, template: str, parameters: dict[str, object], system: str | None) -> str:
    """The text of a Modelfile.

    Args:
        gguf: the name of the GGUF beside it.
        template: the Go template.
        parameters: Ollama's names and values; a list is written as one line for each.
        system: the system text of conversations that have none.

    Raises:
        ModelError: when the system text cannot be written in a Modelfile.
    """
    lines = [f"FROM ./{gguf}", f"TEMPLATE {QUOTES}{template}{QUOTES}"]
    for name, value in parameters.items():
        values = value if isinstance(value, list) else [value]
        lines += [f"PARAMETER {name} {json.dumps(v, ensure_ascii=False)}" for v in values]
    if system:
        if QUOTES in system:
            raise ModelError(
                f"a Modelfile cannot hold a system text with {QUOTES}",
                where="data.system",
                fix="use --to gguf, and give the system text in each conversation",
            )
        lines.append(f"SYSTEM {QUOTES}{system}{QUOTES}")
    return "\n".join(lines) + "\n"


def _cut(template: ChatTemplate, messages: Sequence[Message]) -> list[str]:
    """What a template writes before, between and after the texts of messages."""
    text = template.render(messages, add_generation_prompt=True)
    pieces = []
    for message in messages:
        before, mark, text = text.partition(message.content)
        if not mark:
            raise ModelError(
                f"the chat template leaves out or rewrites {message.role} text",
                where="--to ollama",
                fix="use --to gguf, with a program that renders the chat template in the file",
            )
        pieces.append(before)
    return [*pieces, text]


def _probes() -> list[list[Message]]:
    system = Message("system", "Speak as the keeper of the lamp.")
    turns = [
        message
        for k in range(3)
        for message in (Message("user", f"question {k}"), Message("assistant", f"reply {k}\n你好"))
    ]
    return [[*opening, *turns[:end]] for opening in ([], [system]) for end in (1, 3, 5)]


def _go_literal(text: str) -> str:
    """An action that writes a text; Ollama's parser loses characters that are not escaped."""
    if not text:
        return ""
    escaped = "".join(
        {'"': '\\"', "\\": "\\\\"}.get(char)
        or (char if " " <= char <= "~" else f"\\U{ord(char):08x}")
        for char in text
    )
    return '{{ "' + escaped + '" }}'
