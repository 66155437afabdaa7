"""The chat template that a run is given in place of its base's: `model.template`."""

from __future__ import annotations

from importlib.resources import files

from offbook.errors import ConfigError, first_line, suggest
from offbook.settings.config import Config, local_path

SETTING = "model.template"
MAX_CHARS = 2**20  # of a template


def with_template_text(config: Config) -> Config:
    """The settings with the text of the chat template that they name, which a run then keeps.

    Raises:
        ConfigError: when there is no such file, and no template of that name comes with offbook.
    """
    named = config.model.template
    if named is None or "{" in named:  # the text itself
        return config
    known = {
        path.name.removesuffix(".jinja"): path
        for path in sorted((files("offbook") / "templates").iterdir(), key=lambda path: path.name)
        if path.name.endswith(".jinja")
    }
    try:
        if named in known:
            text = known[named].read_text(encoding="utf-8")
        else:
            path = local_path(named)
            if path is None:
                fix = suggest(named, list(known)) or f"give a file, or one of {', '.join(known)}"
                raise ConfigError(f"no chat template at {named}", where=SETTING, fix=fix)
            text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"cannot be read ({first_line(error)})", where=named) from None
    if "{" not in text or len(text) > MAX_CHARS:
        raise ConfigError("no chat template in Jinja", where=named, fix="give one, as a text file")
    return config.with_value(SETTING, text)
