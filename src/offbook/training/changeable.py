"""Which settings of a run may change when it is resumed."""

from __future__ import annotations

from offbook.errors import ConfigError
from offbook.runs.directory import RunDirectory
from offbook.settings.config import Config
from offbook.settings.sections import DoctorSettings

# They do not change what a step computes. (With `patience`, `eval_steps` decides when a run ends.)
FREE_ON_RESUME = (
    *("logging_steps", "eval_steps", "save_steps", "save_total_limit", "keep_best"),
    "report_to",
)
# The receipt has the hashes of what the first five name; the others say how long a run is, how it
# is computed, and what is said of its rows.
CHANGEABLE = (
    "model.base",
    "data.train",
    "data.validation",
    "model.revision",
    "train.init_adapter",
    "train.num_train_epochs",
    "train.max_steps",
    "train.patience",
    "train.shard_base",
    *(f"train.{name}" for name in FREE_ON_RESUME),
    *(f"doctor.{name}" for name in DoctorSettings.model_fields),
)


def settings_to_resume(run: RunDirectory, requested: Config) -> Config:
    """The settings to continue a run with: its own, except those that may change.

    Raises:
        ConfigError: when `requested` differs in a setting that would change the result.
    """
    own, defaults = run.config(), Config().flat()
    before, absolute = own.flat(), requested.with_absolute_paths().flat()
    merged, changed = own, []
    for key, value in requested.flat().items():
        if value == before[key] or key == "output_dir":
            continue
        other = key == "data.validation" and float in (type(value), type(before[key]))
        if key == "data.train" and requested.gives(key):
            other = requested.data.repeats != own.data.repeats
        if key in CHANGEABLE and not other:
            if requested.gives(key):
                merged = merged.with_value(key, absolute[key])
        elif not value == defaults[key] == "auto":  # the run has what that was resolved to
            changed.append(f"{key} was {before[key]!r}, is {value!r}")
    if changed:
        raise ConfigError(
            f"the run was started with other settings: {'; '.join(changed)}",
            where=str(run.path),
            fix="resume with the same settings, or start again with --overwrite",
        )
    if merged.train.max_steps is not None and (
        merged.train.num_train_epochs != own.train.num_train_epochs
    ):
        raise ConfigError(
            f"does nothing, since the run has train.max_steps={merged.train.max_steps}",
            where="train.num_train_epochs",
            fix="set train.max_steps instead, or add train.max_steps=null",
        )
    return merged
