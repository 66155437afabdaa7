"""What the server has done, as Prometheus reads it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

KINDS = {
    "requests": ("counter", "Answered requests, by model and by why the reply ended."),
    "refusals": ("counter", "Requests that were refused, by status."),
    "prompt_tokens": ("counter", "Tokens of prompts."),
    "reply_tokens": ("counter", "Tokens of replies."),
    "first_token_seconds": ("summary", "From a request to the first text of its reply."),
    "seconds": ("summary", "From a request to the end of its reply."),
    "running": ("gauge", "Replies that are written."),
    "waiting": ("gauge", "Requests that wait for a slot."),
}


@dataclass
class Metrics:
    """Counts since the start.

    Attributes:
        values: by the name of the metric with its labels.
    """

    values: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, value: float = 1, **labels: str) -> None:
        """Add to a counter."""
        pairs = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels.items())
        self.values[f"{name}{{{pairs}}}" if pairs else name] += value  # type: ignore[assignment]

    def observe(self, name: str, value: float) -> None:
        """Add to a summary."""
        self.add(f"{name}_sum", value)
        self.add(f"{name}_count")

    def render(self, running: int, waiting: int) -> str:
        """The text that Prometheus reads."""
        values = {**self.values, "running": running, "waiting": waiting}
        lines = []
        for name, (kind, text) in KINDS.items():
            lines += [f"# HELP offbook_{name} {text}", f"# TYPE offbook_{name} {kind}"]
            names = (name, f"{name}_sum", f"{name}_count")
            lines += [
                f"offbook_{key} {value:.10g}"
                for key, value in sorted(values.items())
                if key.partition("{")[0] in names
            ]
        return "\n".join(lines) + "\n"


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
