"""Where a chat is cut: at a new day, and after a pause."""

from __future__ import annotations

import math
import re

TIME = re.compile(r"([^T\s]+)[T\s]+(\d{1,2}):(\d{2})")  # a day, hours and minutes
PAUSE = 60.0  # minutes


class Days:
    """Counts the scenes of a chat.

    A day is compared as it is written: which of its numbers is the month does not matter.
    """

    def __init__(self) -> None:
        self._scene, self._day, self._minutes = 0, "", math.nan

    def cut(self) -> None:
        """Begin another scene, as at the start of another chat."""
        self._scene, self._day = self._scene + 1, ""

    def scene(self, day: str, minutes: float) -> int:
        """The scene of a message.

        Args:
            day: on which it was sent.
            minutes: since midnight.
        """
        # Clocks go back by an hour in autumn; messages may arrive in another order.
        pause = abs(minutes - self._minutes) > PAUSE
        if self._day and (day != self._day or pause):
            self._scene += 1
        self._day, self._minutes = day, minutes
        return self._scene

    def of_iso(self, time: str) -> int:
        """The scene of a message sent at a time such as `2024-01-05T15:20:33+00:00`.

        Excel writes `2024/1/5 9:20`.
        """
        if match := TIME.match(time):
            return self.scene(match[1], int(match[2]) * 60 + int(match[3]))
        return self.scene(time[:10], 0.0)
