"""The operator's settings: environment over file over the app's own.

Each key is declared once, in ``Settings``: its kind, its default and its documentation.
"""

from __future__ import annotations

import json
import os
import re
import reprlib
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final, Literal

import attrs

from qtasks_hookspecs.exc import SettingsError
from qtasks_pluggy._settings_file import FILE_VARIABLE, find
from qtasks_pluggy._text import closest_match, near_match

ENVIRONMENT_PREFIX: Final = "QTASKS_PLUGGY_"
PLUGIN_PREFIX: Final = f"{ENVIRONMENT_PREFIX}PLUGIN_"
# Kubernetes sets these in every pod for a service whose name begins with qtasks-pluggy.
KUBERNETES: Final = re.compile(rf"{ENVIRONMENT_PREFIX}(\w+_)?(SERVICE_\w+|PORT(_\w+)?)")
TRUE: Final = frozenset({"1", "true", "t", "yes", "y", "on"})
FALSE: Final = frozenset({"0", "false", "f", "no", "n", "off"})


@attrs.frozen
class Kind:
    """What a key takes.

    Attributes:
        wanted: What that is, for errors.
        fits: Says whether a value is one.
        read: Turns an environment variable's text into a value; a ``ValueError`` where it
            cannot.
        text: What that text looks like, for errors.
    """

    wanted: str
    fits: Callable[[Any], bool]
    read: Callable[[str], Any]
    text: str


def _is_number(value: Any, *types: type) -> bool:
    return isinstance(value, types) and not isinstance(value, bool)


def _is_seconds(value: Any) -> bool:
    # Excludes infinity, NaN, and whole numbers that no float can hold.
    return _is_number(value, int, float) and 0 < value <= sys.float_info.max


def _is_limit(name: Any, value: Any) -> bool:
    return isinstance(name, str) and _is_seconds(value)


def _is_section(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, Mapping)


def _is_names(value: Any) -> bool:
    named = isinstance(value, tuple) and all(isinstance(name, str) and name for name in value)
    return named and len(set(value)) == len(value)


def _read_switch(text: str) -> bool:
    word = text.strip().lower()
    if word not in TRUE | FALSE:
        raise ValueError
    return word in TRUE


def _read_names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


NAMES: Final = Kind(
    "a list of plugin names, none twice", _is_names, _read_names, "names with commas"
)
SWITCH: Final = Kind(
    "true or false",
    lambda value: isinstance(value, bool),
    _read_switch,
    "true or false",
)
SECONDS: Final = Kind("more than 0 seconds", _is_seconds, float, "seconds")
COUNT: Final = Kind(
    "a whole number, 1 or more",
    lambda value: _is_number(value, int) and value >= 1,
    int,
    "a whole number",
)
FAULT: Final = Kind(
    "'stop' or 'skip'", lambda value: value in ("stop", "skip"), str.strip, "stop or skip"
)
LIMITS: Final = Kind(
    "a table of plugin names and seconds, each more than 0",
    lambda value: isinstance(value, Mapping) and all(_is_limit(*one) for one in value.items()),
    json.loads,
    "a JSON table",
)
SECTIONS: Final = Kind(
    "a table of plugin names and tables",
    lambda value: isinstance(value, Mapping) and all(_is_section(*one) for one in value.items()),
    json.loads,
    "a JSON table",
)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _declare(default: Any, kind: Kind, description: str) -> Any:
    def check(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if not kind.fits(value) and not (value is None and default is None):
            shown = _describe_wrong_section(value) if kind is SECTIONS else reprlib.repr(value)
            msg = f"{attribute.name} takes {kind.wanted}, got {shown}"
            raise SettingsError(msg)

    return attrs.field(
        default=default,
        validator=check,
        converter=_tuple if kind is NAMES else None,
        metadata={"description": description, "kind": kind},
        repr=kind is not SECTIONS,
    )


def _describe_wrong_section(value: Any) -> str:
    """Describe the fault of the plugins' sections without any value: it may be a secret."""
    if not isinstance(value, Mapping):
        return type(value).__name__
    name, wrong = next(one for one in value.items() if not _is_section(*one))
    return f"{type(wrong).__name__} for plugin {reprlib.repr(name)}"


@attrs.frozen
class Settings:
    """Every key; its declaration has its documentation."""

    enable: tuple[str, ...] = _declare(
        (), NAMES, "built-in plugins to load: failures, fallback, retry; none without it"
    )
    disable: tuple[str, ...] = _declare(
        (), NAMES, "plugins that are never asked; an installed one is not even imported"
    )
    allow: tuple[str, ...] | None = _declare(
        None, NAMES, "installed plugins that may load, and no others; without it all may"
    )
    order: tuple[str, ...] = _declare(
        (), NAMES, "plugins to call last, exactly as given; the last one has the last word"
    )
    observe: tuple[str, ...] = _declare(
        (), NAMES, "plugins that are called and recorded, but whose answers are not used"
    )
    strict: bool = _declare(
        default=False,
        kind=SWITCH,
        description="a plugin that fails raises PluginError at once; for development",
    )
    safe_mode: bool = _declare(
        default=False, kind=SWITCH, description="no installed plugin loads, only built-in ones"
    )
    on_fault: Literal["stop", "skip"] = _declare(
        "stop", FAULT, "whether an installed plugin with a fault stops the app or is left out"
    )
    timeout: float = _declare(5.0, SECONDS, "seconds that each hookimpl may take to answer")
    timeouts: Mapping[str, float] = _declare(
        attrs.Factory(dict), LIMITS, "the same for single plugins, by name"
    )
    start_timeout: float = _declare(
        30.0, SECONDS, "seconds that a plugin's qtasks_start, and its qtasks_stop, may take"
    )
    quarantine_after: int = _declare(
        5, COUNT, "failures in a row after which a hookimpl is skipped for a while"
    )
    quarantine_seconds: float = _declare(
        60.0, SECONDS, "how long it is skipped before it is tried once"
    )
    log_values: bool = _declare(
        default=False,
        kind=SWITCH,
        description="log arguments and answers too; they may hold secrets",
    )
    plugin: Mapping[str, Mapping[str, Any]] = _declare(
        attrs.Factory(dict), SECTIONS, "a section for each plugin, handed to its qtasks_start"
    )


KINDS: Final[Mapping[str, Kind]] = {
    field.name: field.metadata["kind"] for field in attrs.fields(Settings)
}
KEYS: Final = tuple(KINDS)
# The keys whose lists and tables name plugins.
NAMING: Final = tuple(key for key, kind in KINDS.items() if kind in (NAMES, LIMITS, SECTIONS))


@attrs.frozen
class Loaded:
    """Settings, and where each of their values came from.

    Attributes:
        settings: The settings.
        sources: By key ``default``, ``app``, the path of a file, or an environment variable.
        file: The path of the file in use; None if there is none.
        skipped: The files that were passed over, with the reason of each.
        variables: Single values for plugins' sections, by environment variable; they count once
            it is known which plugins there are.
        origins: Where single values of plugins' sections came from, by plugin and key: a file, or a
            variable.
    """

    settings: Settings
    sources: Mapping[str, str]
    file: str | None = None
    skipped: Mapping[str, str] = attrs.field(factory=dict)
    variables: Mapping[str, Any] = attrs.field(factory=dict, repr=False)
    origins: Mapping[tuple[str, str], str] = attrs.field(factory=dict)

    def exclusion_reason(self, name: str) -> str | None:
        """Return why an installed plugin is not loaded, or None if it is."""
        settings = self.settings
        if name in settings.disable:
            return f"disabled ({self.sources['disable']})"
        if settings.safe_mode:
            return f"safe_mode ({self.sources['safe_mode']})"
        if settings.allow is not None and name not in settings.allow:
            return f"not in allow ({self.sources['allow']})"
        return None

    def for_plugins(self, plugins: Collection[str]) -> Loaded:
        """Add single values from the environment to the sections of the plugins that they name."""
        sections = {name: dict(section) for name, section in self.settings.plugin.items()}
        source = self.sources["plugin"]
        sources = [] if source == "default" else [source]
        keys = [(name, key) for name in sections for key in sections[name]]
        # The app's own code is where its author looks anyway.
        origins = {} if source == "app" else dict.fromkeys(keys, source)
        for variable, value in self.variables.items():
            names, key = _match_variable(variable, plugins)
            for name in names:
                sections.setdefault(name, {})[key] = value
                origins[name, key] = variable
            sources += [variable] if names else []
        if not sources:
            return self
        settings = attrs.evolve(self.settings, plugin=sections)
        return attrs.evolve(
            self,
            settings=settings,
            sources={**self.sources, "plugin": ", ".join(sources)},
            origins=origins,
        )

    def unknown_names(
        self, plugins: Collection[str], builtins: Collection[str]
    ) -> Iterator[dict[str, str | None]]:
        """Yield the setting, source, name and near name, if any, of each name no plugin has."""
        everybody = {*plugins, *builtins}
        unknown = [
            (key, self.sources[key], name, known)
            for key in NAMING
            for name in getattr(self.settings, key) or ()
            if name not in (known := builtins if key == "enable" else everybody)
        ]
        unknown += [
            ("plugin", variable, variable.removeprefix(PLUGIN_PREFIX).lower(), everybody)
            for variable in self.variables
            if not _match_variable(variable, everybody)[0]
        ]
        for key, source, name, known in unknown:
            meant = near_match(name, known)
            yield {"setting": key, "source": source, "name": name, "did_you_mean": meant}


def _match_variable(variable: str, plugins: Collection[str]) -> tuple[list[str], str]:
    """Return the plugins whose section a variable is for, and the key; the longest name counts."""
    rest = variable.removeprefix(PLUGIN_PREFIX)
    fits = {
        name: prefix
        for name in sorted(plugins)
        if rest.startswith(prefix := f"{re.sub('[-.]', '_', name.upper())}_") and rest != prefix
    }
    longest = max(fits.values(), key=len, default="")
    return [name for name in fits if fits[name] == longest], rest.removeprefix(longest).lower()


def load(
    app_settings: Mapping[str, Any] | None = None, *, read_environment: bool = False
) -> Loaded:
    """Load the settings of one app.

    Args:
        app_settings: The app's own settings, by key.
        read_environment: Whether to read the file and the environment too.

    Raises:
        SettingsError: A source cannot be read, a key is unknown (the nearest is named), or a
            value is not what its key takes.
    """
    values: dict[str, Any] = {}
    sources = dict.fromkeys(KEYS, "default")
    if not isinstance(app_settings or {}, Mapping):
        got = type(app_settings).__name__
        msg = f"settings= of the app: takes a mapping of keys and values, got {got}"
        raise SettingsError(msg)
    layers = [("app", dict(app_settings or {}))]
    file: str | None = None
    skipped: dict[str, str] = {}
    variables: dict[str, Any] = {}
    if read_environment:
        found = find(skipped)
        file = None if found is None else found[0]
        layers += [*([found] if found else ()), *_environment(variables)]
    for source, table in layers:
        for key, value in table.items():
            if key not in KEYS:
                raise _unknown(str(key), source)
            try:
                Settings(**{key: value})
            except SettingsError as error:
                msg = f"{_describe_source(source)}: {error}"
                raise SettingsError(msg) from None
            values[key] = value
            sources[key] = source
    return Loaded(Settings(**values), sources, file, skipped, variables)


def _describe_source(source: str) -> str:
    return "settings= of the app" if source == "app" else source


def _unknown(key: str, source: str) -> SettingsError:
    if source.startswith(ENVIRONMENT_PREFIX):
        known = [f"{ENVIRONMENT_PREFIX}{one.upper()}" for one in KEYS]
        meant = closest_match(source, [*known, FILE_VARIABLE])
        return SettingsError(f"{source}: unknown setting; did you mean {meant}?")
    shown = reprlib.repr(key)
    where, near = _describe_source(source), closest_match(key, KEYS)
    return SettingsError(f"{where}: unknown key {shown}; did you mean {near!r}?")


def _environment(variables: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the environment's settings; values for plugins' sections go into ``variables``."""
    for variable, text in sorted(os.environ.items()):
        if variable.startswith(PLUGIN_PREFIX):
            variables[variable] = _value(text)
            continue
        ours = variable.startswith(ENVIRONMENT_PREFIX) and variable != FILE_VARIABLE
        if not ours or KUBERNETES.fullmatch(variable):
            continue
        key = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if key not in KEYS:
            raise _unknown(key, variable)
        kind = KINDS[key]
        try:
            value = kind.read(text)
        except (ValueError, RecursionError) as error:
            # A JSON error says where it stopped, and shows nothing of the text.
            got = f"({error})" if kind.read is json.loads else f"got {reprlib.repr(text)}"
            msg = f"{variable}: expected {kind.text}, {got}"
            raise SettingsError(msg) from None
        yield variable, {key: value}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
