"""How many updates published trainings took, to compare a run with."""

from __future__ import annotations

from dataclasses import dataclass

from offbook.settings.config import Config
from offbook.tokens.examples import Examples
from offbook.training.schedule import STEPS_FOR_A_VOICE, Schedule


@dataclass(frozen=True)
class Practice:
    """A published training.

    Attributes:
        name: of what was trained.
        examples: it was trained on.
        epochs: passes over them.
        batch_size: examples per update.
        source: where it was published.
    """

    name: str
    examples: int
    epochs: int
    batch_size: int
    source: str

    @property
    def updates(self) -> int:
        """Optimizer steps, to the nearest ten."""
        return 10 * round(self.examples * self.epochs / self.batch_size / 10)

    def __str__(self) -> str:
        return f"{self.updates:,} for {self.examples:,} rows: {self.name} ({self.source})"


PUBLISHED = (
    Practice("the tutorial's role", 3729, 3, 16, "README, DeepSeek-7B-chat"),
    Practice("LIMA", 1000, 15, 32, "arXiv:2305.11206, section 3"),
    Practice("Alpaca", 52002, 3, 128, "github.com/tatsu-lab/stanford_alpaca, Fine-tuning"),
)


@dataclass(frozen=True)
class Amount:
    """How much a run trains.

    Attributes:
        updates: optimizer steps.
        supervised: tokens with a label that they see, each as often as it is seen.
    """

    updates: int
    supervised: int

    @classmethod
    def of(cls, training: Examples, config: Config) -> Amount:
        """What a run on these examples trains, without general ones that are mixed in."""
        schedule = Schedule.of(len(training), config)
        updates = schedule.total_steps(config.train)
        a_pass = int(training.supervised.sum())
        return cls(updates, round(a_pass * updates / schedule.steps_per_epoch))

    def describe(self) -> str:
        """The amount in a line."""
        return (
            f"{self.updates:,}, over {self.supervised:,} supervised tokens; the included model "
            f"needs {STEPS_FOR_A_VOICE} for a voice"
        )
