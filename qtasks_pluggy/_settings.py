"""The operator's settings: environment over file over what the app gave.

Each key is declared once, in ``Settings``: its type, its default, its bounds and its
documentation. typed-settings reads the sources and turns the environment's text into values.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import attrs

from qtasks_hookspecs.exc import SettingsError
from qtasks_pluggy._text import closest_match

ENVIRONMENT_PREFIX: Final = "QTASKS_PLUGGY_"
OWN_FILE: Final = "qtasks_pluggy.toml"
SHARED_FILE: Final = "pyproject.toml"
SHARED_SECTION: Final = "tool.qtasks_pluggy"

Validator: TypeAlias = Callable[[object, "attrs.Attribute[Any]", Any], None]


def _wanted(wanted: str, fits: Callable[[Any], bool]) -> Validator:
    def check(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not fits(value):
            msg = f"{attribute.name} takes {wanted}, got {value!r}"
            raise SettingsError(msg)

    return check


def _is_seconds(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0


def _is_table(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(key, str) and fits(one) for key, one in value.items()
    )


def _is_names(value: Any) -> bool:
    named = isinstance(value, tuple) and all(isinstance(name, str) and name for name in value)
    return named and len(set(value)) == len(value)


_NAMES: Final = "a list of plugin names, none twice"
_names = _wanted(_NAMES, _is_names)
_switch = _wanted("true or false", lambda value: isinstance(value, bool))
_seconds = _wanted("more than 0 seconds", _is_seconds)
_count = _wanted(
    "a whole number, 1 or more",
    lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 1,
)
_limits = _wanted(
    "a table of plugin names and seconds, each more than 0",
    lambda value: _is_table(value, _is_seconds),
)
_sections = _wanted(
    "a table of plugin names and tables",
    lambda value: _is_table(value, lambda one: isinstance(one, Mapping)),
)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _declare(default: Any, validator: Validator, says: str) -> Any:
    return attrs.field(
        default=default, validator=validator, converter=_tuple, metadata={"says": says}
    )


@attrs.frozen
class Settings:
    """Every key; what each is for stands in its declaration."""

    enable: tuple[str, ...] = _declare(
        (), _names, "built-in plugins to load: fallback, retry; none is loaded without it"
    )
    disable: tuple[str, ...] = _declare(
        (), _names, "plugins that are never asked; an installed one is not even imported"
    )
    allow: tuple[str, ...] | None = _declare(
        None,
        _wanted(_NAMES, lambda value: value is None or _is_names(value)),
        "installed plugins that may load, and no others; without it all may",
    )
    order: tuple[str, ...] = _declare(
        (), _names, "plugins to call last, exactly as given; the last one has the last word"
    )
    observe: tuple[str, ...] = _declare(
        (), _names, "plugins that are called and recorded, but whose answers are not used"
    )
    strict: bool = _declare(
        default=False,
        validator=_switch,
        says="a plugin that fails raises PluginError at once; for development",
    )
    safe_mode: bool = _declare(
        default=False, validator=_switch, says="no installed plugin loads, only built-in ones"
    )
    timeout: float = _declare(
        5.0, _seconds, "seconds that each hookimpl may take to answer an error"
    )
    timeouts: Mapping[str, float] = _declare(
        attrs.Factory(dict), _limits, "the same for single plugins, by name"
    )
    quarantine_after: int = _declare(
        5, _count, "failures in a row after which a hookimpl is skipped for a while"
    )
    quarantine_seconds: float = _declare(
        60.0, _seconds, "how long it is skipped before it is tried once"
    )
    log_values: bool = _declare(
        default=False,
        validator=_switch,
        says="log arguments and answers too; they may hold secrets",
    )
    plugin: Mapping[str, Mapping[str, Any]] = _declare(
        attrs.Factory(dict), _sections, "a section for each plugin, handed to its qtasks_start"
    )


KEYS: Final = tuple(field.name for field in attrs.fields(Settings))


@attrs.frozen
class Loaded:
    """Settings, and where each of their values came from.

    Attributes:
        settings: The settings.
        sources: By key ``default``, ``app``, the path of a file, or an environment variable.
    """

    settings: Settings
    sources: Mapping[str, str]

    def keeps_out(self, name: str) -> str | None:
        """Say why an installed plugin is not to be loaded; None where it is."""
        settings = self.settings
        if name in settings.disable:
            return f"disabled ({self.sources['disable']})"
        if settings.safe_mode:
            return f"safe_mode ({self.sources['safe_mode']})"
        if settings.allow is not None and name not in settings.allow:
            return f"not in allow ({self.sources['allow']})"
        return None

    def unknown_names(
        self, plugins: Collection[str], builtins: Collection[str]
    ) -> Iterator[dict[str, str | None]]:
        """Find names that no plugin has.

        Args:
            plugins: The names of all plugins that there are.
            builtins: The names of the built-in ones.

        Yields:
            For each the setting, its source, the name, and the nearest name that there is.
        """
        for key in ("enable", "disable", "allow", "order", "observe", "timeouts", "plugin"):
            known = builtins if key == "enable" else {*plugins, *builtins}
            for name in getattr(self.settings, key) or ():
                if name not in known:
                    yield {
                        "setting": key,
                        "source": self.sources[key],
                        "name": name,
                        "did_you_mean": closest_match(name, known) if known else None,
                    }


def load(given: Mapping[str, Any] | None = None, *, outside: bool = False) -> Loaded:
    """Make the settings of one app.

    Args:
        given: What the app gave, by key.
        outside: Whether to look at the file and the environment as well.

    Returns:
        The settings with their sources.

    Raises:
        SettingsError: A source cannot be read, a key is unknown (the nearest is named), or a
            value is not what its key takes.
    """
    values: dict[str, Any] = {}
    sources = dict.fromkeys(KEYS, "default")
    if not isinstance(given or {}, Mapping):
        msg = f"settings= of the app: takes a mapping of keys and values, got {given!r}"
        raise SettingsError(msg)
    layers = [("app", dict(given or {}))]
    if outside:
        layers += [*_file(), *_environment()]
    for source, found in layers:
        for key, value in found.items():
            if key not in KEYS:
                raise _unknown(str(key), source)
            try:
                Settings(**{key: value})
            except SettingsError as error:
                msg = f"{_of(source)}: {error}"
                raise SettingsError(msg) from None
            except RecursionError:
                msg = f"{_of(source)}: {key} is nested too deeply to be shown; give it plain values"
                raise SettingsError(msg) from None
            values[key] = value
            sources[key] = source
    return Loaded(Settings(**values), sources)


def _of(source: str) -> str:
    return "settings= of the app" if source == "app" else source


def _unknown(key: str, source: str) -> SettingsError:
    meant = closest_match(key, KEYS)
    if source.startswith(ENVIRONMENT_PREFIX):
        meant = f"{ENVIRONMENT_PREFIX}{meant.upper()}"
        return SettingsError(f"{source}: unknown setting; did you mean {meant}?")
    return SettingsError(f"{_of(source)}: unknown key {key!r}; did you mean {meant!r}?")


def _file() -> Iterator[tuple[str, dict[str, Any]]]:
    """Read the file of the current folder, or of the nearest parent that has one."""
    try:
        here = Path.cwd()
    except OSError:
        # The folder is gone, as when a release is swapped under a running program.
        return
    for folder in (here, *here.parents):
        for name, section in ((OWN_FILE, None), (SHARED_FILE, SHARED_SECTION)):
            path = folder / name
            if _is_there(path):
                found = _read(path, section)
                if found is not None:
                    yield str(path), found
                    return


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a folder that may not be looked into
        return False


def _read(path: Path, section: str | None) -> dict[str, Any] | None:
    # Imported here: an app that is never started, and a plugin, need no settings library.
    from typed_settings.exceptions import ConfigFileLoadError  # noqa: PLC0415  # see above
    from typed_settings.loaders import TomlFormat  # noqa: PLC0415  # see above

    try:
        found: Any = TomlFormat(section)(path, Settings, ())
    except (OSError, UnicodeDecodeError, RecursionError, ConfigFileLoadError) as error:
        msg = f"{path}: cannot be read: {error}; mend the file, or move it away"
        raise SettingsError(msg) from error
    except TypeError:
        found = None
    if not isinstance(found, dict):
        msg = f"{path}: [{section}] must be a table"
        raise SettingsError(msg)
    return found or None


def _environment() -> Iterator[tuple[str, dict[str, Any]]]:
    def boolean(text: str) -> bool:
        from typed_settings.converters import to_bool  # noqa: PLC0415  # see above

        return to_bool(text, bool)

    def names(text: str) -> list[str]:
        return [name.strip() for name in text.split(",") if name.strip()]

    converters: dict[str, tuple[str, Callable[[str], Any]]] = {}
    switches = ("strict", "safe_mode", "log_values")
    converters |= dict.fromkeys(switches, ("true or false", boolean))
    converters |= dict.fromkeys(("timeout", "quarantine_seconds"), ("seconds", float))
    converters |= dict.fromkeys(("timeouts", "plugin"), ("a JSON table", json.loads))
    converters["quarantine_after"] = ("a whole number", int)
    for variable, text in sorted(os.environ.items()):
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        key = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if key not in KEYS:
            raise _unknown(key, variable)
        wanted, convert = converters.get(key, ("names with commas", names))
        try:
            value = convert(text)
        except (OSError, TypeError, ValueError, RecursionError) as error:
            msg = f"{variable}: expected {wanted}, got {text!r} ({error})"
            raise SettingsError(msg) from None
        yield variable, {key: value}
