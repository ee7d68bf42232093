"""Sections: a plugin's own settings, as an object of the class that it declares.

A plugin declares the class by annotating ``settings`` of its ``qtasks_start``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, datetime, time
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import attrs

from qtasks_hookspecs.exc import SettingsError
from qtasks_pluggy._settings import Settings
from qtasks_pluggy._text import closest_match, describe_error, safe_str

# The types in which files and the environment deliver each; TOML has no tuple.
_ACCEPTED: Final[Mapping[Any, tuple[type, ...]]] = {
    float: (int, float),
    list: (list, tuple),
    tuple: (list, tuple),
    dict: (Mapping,),
}
# All that files and the environment deliver; dates come from TOML.
_DELIVERED: Final = (bool, int, float, str, list, tuple, dict, datetime, date, time)
_ANYTHING: Final = (Any, object)
_UNSUPPORTED: Final = (
    ", and no file can give one; the plugin has to declare bool, int, float, str, list, dict,"
    " tuple, Literal, an Enum or Any, or give the field a converter="
)


def section_for(function: Callable[..., Any], name: str, settings: Settings) -> Any:
    """Return what a plugin's ``qtasks_start`` gets as ``settings``.

    An object of the declared class; a dict without one, or if ``section_problems`` finds faults,
    which keep the app from starting.
    """
    section = dict(settings.plugin.get(name, {}))
    cls = _declared_class(function)
    made, problems = (None, ["no class"]) if cls is None else _build(cls, section)
    return section if problems else made


def section_problems(
    function: Callable[..., Any],
    name: str,
    settings: Settings,
    origins: Mapping[tuple[str, str], str] | None = None,
) -> list[str]:
    """Return a text for each fault of a plugin's section; no text shows a value.

    Args:
        function: The plugin's ``qtasks_start``.
        name: The plugin's name.
        settings: The settings.
        origins: Where values came from, by plugin and key.
    """
    cls = _declared_class(function)
    if cls is None:
        return []
    told = {key: f", from {one}" for (owner, key), one in (origins or {}).items() if owner == name}
    return _build(cls, settings.plugin.get(name, {}), told)[1]


def section_keys(function: Callable[..., Any]) -> list[str]:
    """Return the keys that a plugin declares for its section."""
    cls = _declared_class(function)
    return [] if cls is None else [*_fields(cls)]


def _declared_class(function: Callable[..., Any]) -> Any:
    """Return the attrs class that annotates ``settings``, or None."""
    parameter = inspect.signature(function).parameters.get("settings")
    annotation: Any = None if parameter is None else parameter.annotation
    if isinstance(annotation, str):
        # This annotation alone: others may need names that only type checkers import.
        names = annotation.strip("'\"").split(".")
        annotation = getattr(inspect.unwrap(function), "__globals__", {}).get(names[0])
        for name in names[1:]:
            annotation = getattr(annotation, name, None)
    return annotation if isinstance(annotation, type) and attrs.has(annotation) else None


def _fields(cls: Any) -> dict[str, attrs.Attribute[Any]]:
    return {field.alias or field.name: field for field in attrs.fields(cls) if field.init}


def _build(
    cls: Any, section: Mapping[str, Any], told: Mapping[str, str] | None = None
) -> tuple[Any, list[str]]:
    """Return the section's object, or every reason why it cannot be built.

    ``told`` has for a key what to add about where its value came from.
    """
    told = told or {}
    fields = _fields(cls)
    try:
        kinds = get_type_hints(cls)
    except Exception as error:  # noqa: BLE001  # whatever evaluating foreign annotations raises
        return None, [f"the annotations of {cls.__qualname__} fail with {describe_error(error)}"]
    problems = [*_unknown_keys(section, fields, told)]
    values: dict[str, Any] = {}
    for key, field in fields.items():
        kind = Any if field.converter is not None else kinds.get(field.name, Any)
        if key not in section:
            if field.default is attrs.NOTHING:
                problems.append(f"settings: {key!r} is missing; it takes {_describe(kind)}")
            continue
        try:
            values[key] = _convert(section[key], kind)
        except (TypeError, OverflowError):
            got = type(section[key]).__name__
            hint = "" if _is_supported(kind) else _UNSUPPORTED
            problems.append(
                f"settings: {key!r} takes {_describe(kind)}, got {got}{told.get(key, '')}{hint}"
            )
    if problems:
        return None, problems
    try:
        return cls(**values), []
    except Exception as error:  # noqa: BLE001  # whatever the plugin's own checks raise
        return None, [_describe_refusal(error, values)]


def _unknown_keys(
    section: Iterable[str], fields: Mapping[str, Any], told: Mapping[str, str]
) -> Iterator[str]:
    for key in section:
        if key not in fields:
            near = closest_match(str(key), fields) if fields else None
            hint = "it takes none" if near is None else f"did you mean {near!r}?"
            yield f"settings: unknown key {key!r}{told.get(key, '')}; {hint}"


def _describe_refusal(error: Exception, keys: Iterable[str]) -> str:
    """Name the keys that the plugin's own checks refuse; only a SettingsError shows no value."""
    text = safe_str(error)
    if isinstance(error, SettingsError):
        return f"settings: {text}"
    named = ", ".join(repr(key) for key in keys if repr(key) in text) or "the section"
    kind = type(error).__name__
    return f"settings: the plugin refuses {named} with {kind}; its documentation says what it takes"


def _is_supported(kind: Any) -> bool:
    """Return whether some setting can be what a field is declared as."""
    if kind in _ANYTHING or _choices(kind):
        return True
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin in {Union, UnionType}:
        return any(_is_supported(one) for one in inner if one is not NoneType)
    try:
        can_be = any(issubclass(one, origin) for one in _DELIVERED)
    except TypeError:  # it is no class, or one that cannot be asked
        return kind is NoneType
    items = {dict: inner[1:], list: inner, tuple: inner}.get(origin, ())
    return can_be and all(_is_supported(one) for one in items if one is not Ellipsis)


def _choices(kind: Any) -> list[tuple[Any, Any]]:
    """Return what a ``Literal`` or an ``Enum`` accepts, each with what the plugin gets."""
    if get_origin(kind) is Literal:
        return [(one, one) for one in get_args(kind)]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [(key, one) for one in kind for key in (one.value, one)]
    return []


def _convert(value: Any, kind: Any) -> Any:
    """Return a value as its key takes it; raise a ``TypeError`` if it does not fit."""
    if kind in _ANYTHING or (kind is NoneType and value is None):
        return value
    for accepted, one in _choices(kind):
        # By type too: to Python, True is 1.
        if type(value) is type(accepted) and value == accepted:
            return one
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin in {Union, UnionType}:
        for one in inner:
            try:
                return _convert(value, one)
            except TypeError:
                continue
        raise TypeError
    if not _fits(value, origin):
        raise TypeError
    if origin is dict:
        return {key: _convert(one, *(inner[1:] or (Any,))) for key, one in value.items()}
    if origin is list:
        return [_convert(one, *(inner or (Any,))) for one in value]
    if origin is tuple:
        return _convert_tuple(value, inner)
    return float(value) if origin is float else value


def _fits(value: Any, kind: Any) -> bool:
    accepted = _ACCEPTED.get(kind, (kind,)) if isinstance(kind, type) else ()
    # A bool is an int to Python, but not to people who write settings.
    return isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))


def _convert_tuple(value: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    if not kinds or kinds[-1] is Ellipsis:
        kinds = (kinds[0] if kinds else Any,) * len(value)
    if len(kinds) != len(value):
        raise TypeError
    return tuple(_convert(one, kind) for one, kind in zip(value, kinds, strict=True))


def _describe(kind: Any) -> str:
    choices = [repr(one) for one, _ in _choices(kind) if not isinstance(one, Enum)]
    if get_origin(kind) in {Union, UnionType}:
        choices = ["None" if one is NoneType else _describe(one) for one in get_args(kind)]
    if choices:
        return " or ".join(choices)
    plain = isinstance(kind, type) and not get_args(kind)
    return kind.__name__ if plain else str(kind).replace("typing.", "")
