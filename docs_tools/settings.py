"""The reference of settings, from `contracts.settings.Settings`."""

from pathlib import Path

from pydantic.fields import FieldInfo

from contracts.settings import Settings
from docs_tools.annotations import in_words
from docs_tools.docstrings import of_attributes
from docs_tools.tables import table


def render() -> str:
    """A table of all variables."""
    meanings = of_attributes("contracts.settings", "Settings")
    prefix = Settings.model_config["env_prefix"]
    return table(
        ("variable", "meaning", "takes", "default"),
        [
            (f"`{prefix}{name.upper()}`", meanings[name], in_words(field), _default(field))
            for name, field in Settings.model_fields.items()
        ],
    )


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is None or value == ():
        return ""
    if isinstance(value, tuple):
        return f"`{', '.join(f'{part:g}' for part in value)}`"
    if isinstance(value, Path):
        return f"`{str(value).replace(str(Path.home()), '~', 1)}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"
