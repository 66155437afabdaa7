"""What the first losses of a run say of its learning rate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Times the rate of the rule. At a higher one, a loss that hardly falls has other reasons: the base
# may know already what the rows say.
FAR_TOO_LOW = 1 / 10
LEAST_FALL = 0.1  # of the first loss
BLOWN_UP = 1.25  # times the highest of the first three losses


def describe_rate(losses: Sequence[float], rate: float, rule: float) -> str | None:
    """What to say of a learning rate after the first steps; None where nothing looks wrong.

    Far too low: it is at most a tenth of what a published rule gives, and a line through the losses
    falls by less than a tenth, even with twice its standard error. Far too high: each loss of the
    later half is above all of the first three by a quarter. With losses that only vary by chance,
    even as much as those of single rows do, that happens less than once in a thousand runs.

    Args:
        losses: of the first steps, in nats per token.
        rate: after warm-up.
        rule: the rate that `train.learning_rate: auto` would be.
    """
    y = np.array(losses, dtype=np.float64)
    x = np.arange(len(y)) - (len(y) - 1) / 2
    slope = float(x @ y / (x @ x))
    residuals = y - y.mean() - slope * x
    noise = float(np.sqrt(residuals @ residuals / (len(y) - 2)))
    span = len(y) - 1
    fall, error = -slope * span, noise * span / float(np.sqrt(x @ x))
    if rate <= rule * FAR_TOO_LOW and fall + 2 * error < LEAST_FALL * y[0]:
        return (
            f"the loss has hardly fallen in {len(y)} steps ({y[0]:.3f} in the first, "
            f"{y[-5:].mean():.3f} in the last five): the learning rate, {rate:g}, may be far too "
            f"low; train.learning_rate=auto would be {rule:g}"
        )
    later = y[len(y) // 2 :]
    if later.min() > BLOWN_UP * y[:3].max():
        return (
            f"the loss has risen from {y[0]:.3f} to {later.mean():.3f} in {len(y)} steps: the "
            f"learning rate, {rate:g}, may be far too high; train.learning_rate=auto would be "
            f"{rule:g}"
        )
    return None
