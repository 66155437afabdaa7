"""A run's settings: frozen pydantic models, read from YAML and `key=value` overrides.

All problems in a file are reported at once, each with its key, its line and the most similar valid
key.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from offbook.errors import ConfigError, shorten
from offbook.settings.file import KeyPath, apply_override, origin_of, read_yaml, write_yaml
from offbook.settings.names import FOREIGN_KEYS, suggest_key
from offbook.settings.sections import (
    EMBEDDED_BASE,
    SAMPLES,
    DataSettings,
    DoctorSettings,
    LoraSettings,
    ModelSettings,
    Section,
    TrainSettings,
)

# A folder with these two files is a run.
RUN_SETTINGS, RECEIPT = "config.yaml", "receipt.json"


class Config(Section):
    """All settings of a run."""

    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    doctor: DoctorSettings = DoctorSettings()
    lora: LoraSettings = LoraSettings()
    train: TrainSettings = TrainSettings()
    output_dir: str = "runs/offbook"
    """The run directory: settings, metrics, checkpoints and the adapter. A run does not store it:
    for a run's own settings, it is the directory that they are in."""

    @classmethod
    def load(cls, path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
        """Read a YAML file (without one, the defaults), then apply `section.key=value` overrides.

        Of the `config.yaml` of a run directory, `output_dir` is that directory, whatever the file
        says: the run may have been moved.

        Raises:
            ConfigError: with all problems, a line each.
        """
        values: dict[str, Any] = {}
        origins: dict[KeyPath, str] = {}
        if path is not None:
            values, origins = read_yaml(Path(path))
            if Path(path).name == RUN_SETTINGS and Path(path).with_name(RECEIPT).exists():
                # "~" would be the user's home.
                values["output_dir"] = os.path.join(os.curdir, Path(path).parent)  # noqa: PTH118
        for override in overrides:
            apply_override(override, values, origins)
        return cls._validated(values, origins)

    def override(self, *overrides: str) -> Config:
        """A copy with `section.key=value` settings changed."""
        values = self.model_dump()
        origins: dict[KeyPath, str] = {}
        for item in overrides:
            apply_override(item, values, origins)
        return self._validated(values, origins)

    def with_value(self, key: str, value: object) -> Config:
        """A copy with one `section.key` set to a valid value, not parsed as YAML."""
        section, name = key.split(".")
        changed = getattr(self, section).model_copy(update={name: value})
        return self.model_copy(update={section: changed})

    def gives(self, key: str) -> bool:
        """Whether a `section.key` was given; if not, it has its default."""
        section, name = key.split(".")
        return name in getattr(self, section).model_fields_set

    def flat(self) -> dict[str, Any]:
        """Every setting under its dotted key."""
        values = {}
        for key in keys():
            value: Any = self
            for name in key.split("."):
                value = getattr(value, name)
            values[key] = value
        return values

    def with_absolute_paths(self) -> Config:
        """A copy with absolute paths of local files, valid in any working directory."""
        copy = self
        for key, value in self.places().items():
            if exists(value) and value not in ("auto", EMBEDDED_BASE, *SAMPLES):
                path = Path(os.path.expanduser(value))  # noqa: PTH111
                # A link keeps its name, which says what type of file it is.
                named = path.name not in ("", "..")
                absolute = path.parent.resolve() / path.name if named else path.resolve()
                copy = copy.with_place(key, str(absolute))
        if (start := self.train.init_adapter) and (folder := local_path(start)):
            copy = copy.with_value("train.init_adapter", str(folder.resolve()))
        return copy

    @property
    def mixed_per_step(self) -> int:
        """General examples of each optimizer step: the share of `data.mix` in `batch_size`."""
        if self.data.mix is None:
            return 0
        most = self.train.batch_size - 1  # at least one example of each kind
        return min(max(round(self.data.mix.share * self.train.batch_size), 1), most)

    def places(self) -> dict[str, str]:
        """What may name local files, by setting: the base, each source of rows, and validation."""
        places = {"model.base": self.model.base}
        places |= {key: source.data for key, source in self.data.sources.items()}
        if self.data.mix:
            places["data.mix"] = self.data.mix.data
        if isinstance(self.data.validation, str):
            places["data.validation"] = self.data.validation
        return places

    def with_place(self, key: str, value: str) -> Config:
        """A copy with one of `places` changed."""
        if key == "data.mix":
            assert self.data.mix
            return self.with_value(key, self.data.mix.model_copy(update={"data": value}))
        if not key.startswith("data.train["):
            return self.with_value(key, value)
        sources = {**self.data.sources}
        sources[key] = sources[key].model_copy(update={"data": value})
        return self.with_value("data.train", tuple(sources.values()))

    def to_yaml(self) -> str:
        """The settings as YAML that `load` reads back to an equal Config."""
        return write_yaml(self.model_dump(mode="json"))

    @classmethod
    def _validated(cls, values: dict[str, Any], origins: dict[KeyPath, str]) -> Config:
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = dict.fromkeys(_explain(detail, origins) for detail in error.errors())
            raise ConfigError("\n".join(problems)) from None


def local_path(text: str) -> Path | None:
    """The existing file or folder that a setting names, if any."""
    # pathlib raises for some texts (too long, a NUL, an unknown ~user); os.path answers False.
    path = os.path.expanduser(text)  # noqa: PTH111
    return Path(path) if os.path.exists(path) else None  # noqa: PTH110


def is_pattern(text: str) -> bool:
    """Whether a setting names files by a pattern, such as `rows/*.jsonl`."""
    return any(mark in text for mark in "*?[") and local_path(text) is None


def exists(text: str) -> bool:
    """Whether a setting names local files that are there."""
    if not is_pattern(text):
        return local_path(text) is not None
    return any(glob.iglob(os.path.expanduser(text), recursive=True))  # noqa: PTH111, PTH207


def keys(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """All keys in dotted form: `model.base`, ..., `output_dir`."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def _explain(detail: ErrorDetails, origins: dict[KeyPath, str]) -> str:
    # Pydantic appends the branch of a union, or an index, to the key: remove that.
    valid, path = list(keys()), tuple(str(part) for part in detail["loc"])
    unknown = detail["type"] == "extra_forbidden"
    while not unknown and len(path) > 1 and path not in origins and ".".join(path) not in valid:
        path = path[:-1]
    dotted, where = ".".join(path), origin_of(path, origins)
    if unknown:
        fix = FOREIGN_KEYS.get(path[-1]) or suggest_key(path, valid)
        return str(ConfigError(f'unknown key "{dotted}"', where=where, fix=fix))
    message = detail["msg"].removeprefix("Value error, ")
    key = f"{dotted}: " if dotted else ""  # none when the key itself is not text
    problem = f"{key}{message[:1].lower()}{message[1:]}, not {shorten(repr(detail['input']))}"
    return str(ConfigError(problem, where=where))
