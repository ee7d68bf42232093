"""Discovery: the installed plugins by entry point, who claims which name, and importing them."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from typing import Any, Final

import attrs

from qtasks_hookspecs._markers import ENTRY_POINT_GROUP
from qtasks_pluggy._plugins.validation import Candidate
from qtasks_pluggy._text import describe_error

ENTRY_POINTS: Final = "entry_points.txt"


@attrs.frozen
class PluginInfo:
    """What is known about one plugin.

    Attributes:
        name: Its name.
        distribution: The distribution that installed it; None for one that the app added, and for
            a built-in one.
        version: That distribution's version.
        hooks: The hooks that it implements; empty if it was not loaded.
        enabled: Whether it is asked.
        reason: Why it is not asked, if so.
        quarantined: The hooks in which it is skipped for now, because it failed too often in a row.
        builtin: Whether it comes with qtasks-pluggy itself.
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
    """Describe an installed plugin that is not registered."""
    return PluginInfo(
        name=candidate.name,
        distribution=candidate.distribution,
        version=candidate.version,
        hooks=(),
        enabled=False,
        reason=reason,
    )


@attrs.frozen
class Claim:
    """One distribution's claim to a plugin name.

    Attributes:
        candidate: The plugin; it has a problem if it cannot be loaded.
        folder: Where the distribution is installed.
        entry_point: The entry point to load, if there is one.
        unusable: Why it is skipped: the distribution's files are damaged.
    """

    candidate: Candidate
    folder: str
    entry_point: importlib.metadata.EntryPoint | None = None
    unusable: str | None = None


def iter_installed() -> Iterator[Claim]:
    """Yield the installed plugins, sorted by name, then the skipped ones; nothing is imported.

    Equal claims count once. Of two versions of one distribution the first on the import path
    counts, as for Python itself. A name that two distributions claim is a problem of that plugin.
    """
    claims: dict[str, list[Claim]] = {}
    skipped: list[Claim] = []
    for distribution in importlib.metadata.distributions():
        for claim in _claims_in(distribution):
            known = claims.setdefault(claim.candidate.name, [])
            twin = next((one for one in known if _same_distribution(one, claim)), None)
            if claim.entry_point is None:
                skipped.append(claim)
            elif twin is None or (twin.folder == claim.folder and not _same_claim(twin, claim)):
                known.append(claim)
            elif not _same_claim(twin, claim):
                why = f"{_describe_claim(twin)} comes first on the import path, and differs"
                skipped.append(attrs.evolve(claim, entry_point=None, unusable=why))
    for name in sorted(claims):
        yield from _resolve_claims(claims[name])
    yield from skipped


def _resolve_claims(claims: list[Claim]) -> Iterator[Claim]:
    """Yield the one claim to a name; several are the plugin's problem."""
    if len(claims) > 1:
        others = " and ".join(sorted(map(_describe_claim, claims)))
        claims[0].candidate.add_problem(
            f"{others} both claim this name in the entry point group {ENTRY_POINT_GROUP!r};"
            " uninstall one of them"
        )
        yield attrs.evolve(claims[0], entry_point=None)
    else:
        yield from claims


def _describe_claim(claim: Claim) -> str:
    return f"{claim.candidate.distribution} {claim.candidate.version}"


def _same_distribution(one: Claim, other: Claim) -> bool:
    names = [str(claim.candidate.distribution) for claim in (one, other)]
    first, second = (re.sub(r"[-_.]+", "-", name).lower() for name in names)
    return first == second


def _same_claim(one: Claim, other: Claim) -> bool:
    return (
        one.entry_point is not None
        and other.entry_point is not None
        and one.entry_point.value == other.entry_point.value
    )


def _claims_in(distribution: importlib.metadata.Distribution) -> Iterator[Claim]:
    """Yield a distribution's claims, as far as its files can be read."""
    info: Any = getattr(distribution, "_path", None)  # as pip does: there is no public way
    stem = "" if info is None else info.name.rpartition(".")[0]
    folder = str(distribution.locate_file(""))
    try:
        points = distribution.entry_points.select(group=ENTRY_POINT_GROUP)
    except Exception as error:  # noqa: BLE001  # a file that no installer wrote
        if info is not None and ENTRY_POINT_GROUP.encode() in (info / ENTRY_POINTS).read_bytes():
            name, version, _ = _read_metadata(distribution, stem)
            nameless = Candidate(name, None, name, version)
            problem = f"its {ENTRY_POINTS} cannot be read: {describe_error(error)}"
            if isinstance(error, UnicodeError):
                yield Claim(nameless, folder, unusable=f"{problem}; reinstall it")
            else:
                nameless.add_problem(f"{problem}; fix or uninstall it")
                yield Claim(nameless, folder)
        return
    if points:
        name, version, unusable = _read_metadata(distribution, stem)
        for point in points:
            candidate = Candidate(point.name, None, name, version)
            yield Claim(candidate, folder, None if unusable else point, unusable)


def _read_metadata(
    distribution: importlib.metadata.Distribution, stem: str
) -> tuple[str, str, str | None]:
    """Return a distribution's name and version, and why it is unusable, or None."""
    name, _, version = stem.partition("-")
    if stem.startswith(("~", "-")):
        return stem, version, "what an interrupted pip left over; delete its folder"
    try:
        metadata = distribution.metadata
        if "Name" in metadata and "Version" in metadata:
            name, version = metadata["Name"], metadata["Version"]
    except Exception as error:  # noqa: BLE001  # such as one that is not UTF-8
        problem = f"its METADATA cannot be read: {type(error).__name__}; reinstall it"
        return name, version, problem
    return name, version, None


def import_plugin(candidate: Candidate, entry_point: importlib.metadata.EntryPoint) -> None:
    """Import an installed plugin; a failure is its problem."""
    try:
        candidate.plugin = entry_point.load()
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever an import raises
        candidate.add_problem(
            f"entry point {entry_point.value!r} failed to import with"
            f" {describe_error(error)}; fix or uninstall it"
        )
