"""The installed plugins: who claims which name in the entry point group, and loading them."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from typing import TypeAlias

import attrs

from qtasks_hookspecs._markers import ENTRY_POINT_GROUP
from qtasks_pluggy._plugins.validation import Candidate
from qtasks_pluggy._text import safe_str


@attrs.frozen
class PluginInfo:
    """What is known of one plugin.

    Attributes:
        name: Its name.
        distribution: The distribution that installed it; None for one that the app added, and for
            a built-in one.
        version: That distribution's version.
        hooks: The hooks that it implements; empty where it was not loaded.
        enabled: Whether it is asked.
        reason: Why not, if it is not.
        quarantined: The hooks in which it is skipped for now, for failing too often in a row.
        builtin: Whether it comes with qtasks-pluggy itself, which no app adds.
        keys: The keys that it declares for its section of the settings.
    """

    name: str
    distribution: str | None
    version: str | None
    hooks: tuple[str, ...]
    enabled: bool
    reason: str | None = None
    quarantined: tuple[str, ...] = ()
    builtin: bool = False
    keys: tuple[str, ...] = ()


def left_out(candidate: Candidate, reason: str) -> PluginInfo:
    """Describe a plugin that is not registered."""
    return PluginInfo(
        name=candidate.name,
        distribution=candidate.distribution,
        version=candidate.version,
        hooks=(),
        enabled=False,
        reason=reason,
    )


def installed() -> Iterator[tuple[Candidate, importlib.metadata.EntryPoint | None]]:
    """Find the installed plugins, sorted by name; nothing is imported.

    Yields:
        Each plugin with its entry point; without one where two distributions claim its name,
        which then is the plugin's problem.
    """
    for name, claims in sorted(_claims().items()):
        distribution, version, entry_point = claims[0]
        candidate = Candidate(name, None, distribution, version)
        if isinstance(entry_point, Exception):
            candidate.add_problem(
                f"its entry_points.txt cannot be read: {type(entry_point).__name__}:"
                f" {entry_point}; mend or uninstall it"
            )
            yield candidate, None
            continue
        if len(claims) == 1:
            yield candidate, entry_point
            continue
        others = " and ".join(sorted(f"{other} {its}" for other, its, _ in claims))
        candidate.add_problem(
            f"{others} both claim this name in the entry point group {ENTRY_POINT_GROUP!r};"
            " uninstall one of them"
        )
        yield candidate, None


def load(candidate: Candidate, entry_point: importlib.metadata.EntryPoint) -> None:
    """Import an installed plugin; a failure is its problem."""
    try:
        candidate.plugin = entry_point.load()
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever an import raises
        candidate.add_problem(
            f"entry point {entry_point.value!r} failed to import with"
            f" {type(error).__name__}: {safe_str(error)}; mend or uninstall it"
        )


Claim: TypeAlias = tuple[str, str, importlib.metadata.EntryPoint | Exception]


def _claims() -> dict[str, list[Claim]]:
    """Return who claims each plugin name: distribution, version, and entry point or why none.

    A distribution that stands twice on the import path counts once, as its first.
    """
    seen: set[str] = set()
    claims: dict[str, list[Claim]] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"] or "unknown"
        normalized = re.sub(r"[-_.]+", "-", name).lower()
        if normalized in seen:
            continue
        seen.add(normalized)
        try:
            found = distribution.entry_points.select(group=ENTRY_POINT_GROUP)
        except Exception as error:  # noqa: BLE001  # a file that no installer wrote
            if ENTRY_POINT_GROUP in (distribution.read_text("entry_points.txt") or ""):
                claims[name] = [(name, distribution.version, error)]
            continue
        for entry_point in found:
            claim = (name, distribution.version, entry_point)
            if claim not in claims.setdefault(entry_point.name, []):
                claims[entry_point.name].append(claim)
    return claims
