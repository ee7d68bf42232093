"""The plugin manager: which plugins are registered, where they come from, and each hook's chain."""

from __future__ import annotations

import inspect
import pkgutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pkgutil import resolve_name
from types import FunctionType, MethodType
from typing import Any, Final

import attrs
import pluggy

from qtasks_hookspecs import OutcomeStatus, _hooks
from qtasks_hookspecs._markers import PROJECT_NAME
from qtasks_hookspecs.exc import PluginRegistrationError
from qtasks_pluggy import _log, _settings
from qtasks_pluggy._fork import lock_of
from qtasks_pluggy._plugins.adapter import original_plugin
from qtasks_pluggy._plugins.caller import HookCaller
from qtasks_pluggy._plugins.chain import Chain, Link, in_call_order
from qtasks_pluggy._plugins.discovery import PluginInfo, import_plugin, iter_installed, left_out
from qtasks_pluggy._plugins.quarantine import NO_BREAKER, Breaker
from qtasks_pluggy._plugins.sections import section_keys
from qtasks_pluggy._plugins.validation import (
    Candidate,
    find_name,
    hookimpl_faults,
    unregister_error,
    validate_all,
)
from qtasks_pluggy._text import describe_plugin

BUILTIN, INSTALLED, ADDED = range(3)
# By the places of their classes: who enables none imports none.
BUILTINS: Final = {
    "failures": "qtasks_pluggy.failures:Failures",
    "fallback": "qtasks_pluggy.builtin:Fallback",
    "retry": "qtasks_pluggy.builtin:RetryPlugin",
}
HOOKABLE: Final = (staticmethod, classmethod, FunctionType, MethodType)


class _Plugins(list[Any]):
    """Plugins of which ``in`` finds the very one."""

    def __contains__(self, plugin: object) -> bool:
        return any(one is plugin for one in self)


class _Table(dict[str, Any]):
    """Plugins by name, None for a blocked name: pluggy's own table, by identity."""

    def values(self) -> Any:
        """Return the plugins; ``in`` them compares identity, where pluggy would ask ``==``."""
        return _Plugins(super().values())


class PluginManager(pluggy.PluginManager):
    """The plugins of one app, and the hooks that ask them.

    A ``pluggy.PluginManager`` that knows our hooks from the start and calls them by our
    convention: see ``hook.<name>(...)`` and ``hook.<name>.call_async(...)``.

    Args:
        plugins: Modules or objects with hookimpls, or where to import them from (``"module"``,
            ``"module:attribute"``), in the order in which they are asked.
        discover: Whether to load the installed plugins at once, by their entry points.
        settings: Keys of the settings; see ``docs/reference/settings.md``.
        clock: Monotonic seconds, for the quarantine.

    Raises:
        PluginRegistrationError: Faults of the plugins, all of them; nothing is registered.
        SettingsError: Faults of the settings.
        TypeError: ``plugins`` is one plugin instead of several.
    """

    # Whether the settings come from the environment and a file too; not in an isolated test.
    _reads_environment = True

    def __init__(
        self,
        plugins: Iterable[Any] = (),
        *,
        discover: bool = False,
        settings: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(PROJECT_NAME)
        vars(self)["_name2plugin"] = _Table()
        self.clock: Final = clock
        self._lock = lock_of(self)
        self._app_settings: Any = dict(settings) if isinstance(settings, Mapping) else settings
        self._ranks: dict[str, tuple[int, str, int]] = {}
        self._origins: dict[str, Candidate] = {}
        self._skipped: dict[str, PluginInfo] = {}
        self._unusable: list[PluginInfo] = []
        self._logged: set[tuple[str | None, ...]] = set()
        self._links: dict[pluggy.HookImpl, Link] = {}
        self._added = 0
        self._discovered = False
        self._breakers: dict[pluggy.HookImpl, Breaker] = {}
        # Whether no plugin takes part in a run that meets no error.
        self._asked_on_success = self._asked_on_repeats = self._times_attempts = False
        self._apply(_settings.load(self._app_settings, read_environment=False))
        self.add_hookspecs(_hooks)
        self._load_builtins()
        self._register_candidates(
            [Candidate.from_plugin(one, self.get_canonical_name) for one in _several(plugins)],
            ADDED,
        )
        if discover:
            self.discover()

    def add_hookspecs(self, module_or_class: Any) -> None:
        """Add hooks that are called by our convention.

        Args:
            module_or_class: Holds functions marked with ``hookspec``.

        Raises:
            PluginRegistrationError: Plugins have hookimpls for them already, marked
                ``optionalhook=True``, and these have faults; nothing is added.
            ValueError: It holds no hook, or one that exists, or one marked for pluggy's convention.
        """
        specs = {
            name: options
            for name in dir(module_or_class)
            if (options := self.parse_hookspec_opts(module_or_class, name)) is not None
        }
        if not specs:
            msg = f"did not find any {self.project_name!r} hooks in {module_or_class!r}"
            raise ValueError(msg)
        with self._lock:
            known = self._callers()
            for name in specs:
                if name in known:
                    msg = f"hook {name!r} is known already; choose another name"
                    raise ValueError(msg)
            callers = [
                HookCaller(name, self, module_or_class, options) for name, options in specs.items()
            ]
            self._adopt_hookimpls(callers)
            for caller in callers:
                setattr(self.hook, caller.name, caller)
            self._rebuild()

    def _adopt_hookimpls(self, callers: Iterable[HookCaller]) -> None:
        """Give new hooks their optional hookimpls registered before, unless one has a fault."""
        waiting = [
            (caller, impl)
            for caller in callers
            if hasattr(self.hook, caller.name)
            for impl in getattr(self.hook, caller.name).get_hookimpls()
        ]
        problems: list[str] = []
        for caller, impl in waiting:
            origin = attrs.evolve(self._origins[impl.plugin_name], problems=[])
            for fault in hookimpl_faults(impl.function, impl.opts, caller.name, caller.names):
                origin.add_problem(f"hook {caller.name!r}: {fault}")
            problems += origin.problems
        if problems:
            raise PluginRegistrationError(problems)
        for caller, impl in waiting:
            caller._add_hookimpl(impl)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # as pluggy's own manager does

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        """Read an attribute's mark without evaluating properties, which pluggy 1.6 would."""
        static = inspect.getattr_static(plugin, name, None)
        if hasattr(type(static), "__get__") and not isinstance(static, HOOKABLE):
            return None
        above = (
            getattr(static, f"{PROJECT_NAME}_impl", None) if type(static) in HOOKABLE[:2] else None
        )
        return above or super().parse_hookimpl_opts(plugin, name)

    def register(
        self,
        plugin: Any,
        name: str | None = None,
        trigger_names: Iterable[str] | None = None,
    ) -> str | None:
        """Register a plugin, after those that are registered.

        Args:
            plugin: A module or an object with hookimpls, or where to import it from; a
                ``BasePlugin`` or a subclass of it.
            name: Its name; else its ``.name``, else the module's or class's name.
            trigger_names: The triggers that a ``BasePlugin`` is limited to.

        Returns:
            The name, or None if that name is blocked.

        Raises:
            PluginRegistrationError: Faults of the plugin, all of them; nothing is registered.
        """
        candidate = Candidate.from_plugin(plugin, self.get_canonical_name, name)
        with self._lock:
            self._register_candidates([candidate], ADDED, trigger_names)
            registered = self._origins.get(candidate.name) is candidate
        return candidate.name if registered else None

    def unregister(self, plugin: Any | None = None, name: str | None = None) -> Any | None:
        """Unregister a plugin; a dispatch in progress still asks it.

        Args:
            plugin: The plugin.
            name: Or its name.

        Returns:
            The plugin, or None if none has that name.

        Raises:
            PluginRegistrationError: This plugin is not registered, or under another name.
            TypeError: Neither is passed.
        """
        if plugin is None and name is None:
            msg = "unregister takes a plugin or a name="
            raise TypeError(msg)
        with self._lock:
            if plugin is not None:
                known = self.get_name(plugin)
                if known is None or name not in {None, known}:
                    raise unregister_error(plugin, name or known, self._origins)
                name = known
            removed = self._origins.pop(name or "", None)
            if removed is None:
                return None
            del self._name2plugin[removed.name], self._ranks[removed.name]
            # Not by pluggy's own unregister, which asks ``==`` who is who, and ``bool()``.
            for hook in vars(self.hook).values():
                kept = [one for one in hook.get_hookimpls() if one.plugin_name != removed.name]
                hook._hookimpls[:] = kept  # noqa: SLF001  # pluggy's own list
            for memory in (self._links, self._breakers):
                for impl in [one for one in memory if one.plugin_name == removed.name]:
                    del memory[impl]
            self._rebuild()
            return original_plugin(removed.plugin)

    def get_name(self, plugin: Any) -> str | None:
        """Return the name of a registered plugin, a ``BasePlugin`` too; None for any other."""
        with self._lock:
            return find_name(plugin, self._origins.values())

    def is_registered(self, plugin: Any) -> bool:
        """Return whether this very plugin is registered, not one that equals it."""
        return self.get_name(plugin) is not None

    def get_canonical_name(self, plugin: Any) -> str:
        """Name a plugin: its ``.name``, else the module's or class's name."""
        if isinstance(plugin, str):
            try:
                plugin = resolve_name(plugin)
            except Exception:  # noqa: BLE001  # whatever an import raises; registering reports it
                return str(plugin)
        for own in (getattr(plugin, "name", None), getattr(plugin, "__name__", None)):
            if isinstance(own, str) and own:
                return own
        return type(plugin).__name__

    def subset_hook_caller(self, name: str, remove_plugins: Iterable[Any]) -> HookCaller:  # noqa: ARG002  # pluggy's
        """Refuse with a ``TypeError``: the operator and the chain decide who is asked."""
        msg = (
            f"subset_hook_caller({name!r}): every plugin of a manager is asked; call the hook of"
            " another PluginManager, which has the plugins that you want"
        )
        raise TypeError(msg)

    def add_hookcall_monitoring(self, before: Any, after: Any) -> Any:  # noqa: ARG002  # pluggy's
        """Refuse with a ``TypeError``: pluggy's monitors expect its own way of calling."""
        msg = (
            f"{PROJECT_NAME} calls hooks by its own convention, no monitor sees that; read"
            " executor.trail, or log at debug level"
        )
        raise TypeError(msg)

    def configure(self, *, skip_faulty: bool = False) -> list[str]:
        """Load the settings from the current environment.

        Args:
            skip_faulty: Whether to continue with plugins whose section has faults.

        Returns:
            The faults of sections, if it continues.

        Raises:
            PluginRegistrationError: Faults of the sections of registered plugins, all of them.
            SettingsError: Faults of the settings; the old ones stay.
        """
        with self._lock:
            self._configure()
            self._log_unknown_names()
            problems = self._section_problems()
            if problems and not skip_faulty:
                raise PluginRegistrationError(problems)
            return problems

    def _configure(self) -> None:
        before = self._read
        self._apply(self._load_settings())
        try:
            self._load_builtins()
        except BaseException:
            self._apply(before)
            raise
        self._rebuild()
        if self.loaded.file is not None:
            self._log_once("info", "settings_file_used", file=self.loaded.file)
        for file, reason in self.loaded.skipped.items():
            self._log_once("warning", "settings_file_skipped", file=file, reason=reason)

    def _load_settings(self) -> _settings.Loaded:
        return _settings.load(self._app_settings, read_environment=self._reads_environment)

    def _section_problems(self) -> list[str]:
        """Return the problems of the sections of enabled plugins."""
        problems: list[str] = []
        for name, registered in self._origins.items():
            if self._is_enabled(name):
                candidate = attrs.evolve(registered, problems=problems)
                candidate.check_section(self.loaded)
        return problems

    def _apply(self, read: _settings.Loaded, new_names: Iterable[str] = ()) -> None:
        """Use loaded settings, for the plugins that are known or about to be registered."""
        self._read = read
        self.loaded: _settings.Loaded = read.for_plugins({*self._names(), *new_names})
        self.settings: _settings.Settings = self.loaded.settings
        self._links.clear()

    def _names(self) -> set[str]:
        return {*BUILTINS, *self._origins, *self._skipped, *(one.name for one in self._unusable)}

    def dead_settings(self) -> list[dict[str, str | None]]:
        """Return the names in the settings that no plugin has.

        Returns:
            For each the ``setting``, its ``source``, the ``name``, and ``did_you_mean``, a near
            name; None if there is none.
        """
        with self._lock:
            names = self._names()
            if not self._discovered and [*self.loaded.unknown_names(names, BUILTINS)]:
                # Settings are often shared, so the name of an installed plugin is not a mistake.
                names |= {claim.candidate.name for claim in iter_installed()}
            return [*self.loaded.unknown_names(names, BUILTINS)]

    def _log_unknown_names(self) -> None:
        for one in self.dead_settings():
            self._log_once("warning", "unknown_plugin_name", **one)

    def _log_once(self, level: str, name: str, /, **values: str | None) -> None:
        """Log an event, unless this very one was logged before: an app may start often."""
        known = (name, *values.values())
        if known not in self._logged:
            self._logged.add(known)
            _log.event(level, name, **values)

    def _load_builtins(self) -> None:
        """Load the built-in plugins that the settings enable."""
        loaded = {name for name, rank in self._ranks.items() if rank[0] == BUILTIN}
        wanted = [name for name in self.settings.enable if name in {*BUILTINS} - loaded]
        plugins = [Candidate(name, pkgutil.resolve_name(BUILTINS[name])()) for name in wanted]
        self._register_candidates(plugins, BUILTIN)

    def discover(self, *, skip_faulty: bool = False) -> list[str]:
        """Load the settings and, once, the installed plugins that they do not exclude.

        Args:
            skip_faulty: Whether to continue without the plugins that have faults.

        Returns:
            The faults, if it continues.

        Raises:
            PluginRegistrationError: Faults of the plugins, all of them; nothing is registered.
            SettingsError: Faults of the settings.
        """
        with self._lock:
            if self._discovered:
                return self.configure(skip_faulty=skip_faulty)
            self._configure()
            candidates = self._load_entry_points()
            if not skip_faulty:
                self._log_unusable()
            problems = self._register_candidates(
                candidates,
                INSTALLED,
                skip_faulty=skip_faulty,
                problems=self._section_problems(),
            )
            self._discovered = True
            self._log_unknown_names()
            return problems + [_describe_skipped(one) for one in self._unusable]

    def list_plugin_info(self) -> list[PluginInfo]:
        """Return what is known of every plugin, the disabled ones included."""
        with self._lock:
            known = [
                self._info(name) for name in sorted(self._origins, key=self._ranks.__getitem__)
            ]
            off = [self._skipped[name] for name in sorted(self._skipped)]
            return [*known, *off, *self._unusable]

    def _info(self, name: str) -> PluginInfo:
        origin, asked = self._origins[name], self._is_enabled(name)
        hooks = {
            hook: [impl for impl in caller.get_hookimpls() if impl.plugin_name == name]
            for hook, caller in self._callers().items()
        }
        return PluginInfo(
            name=name,
            distribution=origin.distribution,
            version=origin.version,
            hooks=tuple(hook for hook, impls in hooks.items() if impls),
            enabled=asked,
            reason=None if asked else self.loaded.exclusion_reason(name) or "not enabled",
            quarantined=tuple(
                hook
                for hook, impls in hooks.items()
                if any(self._breakers[impl].until for impl in impls if impl in self._breakers)
            ),
            builtin=self._ranks[name][0] == BUILTIN,
            keys=tuple(key for function in origin.starts for key in section_keys(function)),
        )

    def _register_candidates(
        self,
        candidates: Sequence[Candidate],
        tier: int,
        trigger_names: Iterable[str] | None = None,
        *,
        skip_faulty: bool = False,
        problems: Iterable[str] = (),
    ) -> list[str]:
        """Register all of them, or none if one has a fault; or skip the faulty ones.

        ``problems`` were found before, and are reported together with these.
        """
        with self._lock:
            wanted = [one for one in candidates if not self.is_blocked(one.name)]
            if self._read.variables:
                self._apply(self._read, [one.name for one in wanted])
            hooks = {name: caller.names for name, caller in self._callers().items()}
            validate_all(wanted, self._origins, hooks, self.parse_hookimpl_opts, trigger_names)
            for one in wanted if tier == INSTALLED else ():
                # The app's own are checked when it starts: only then the settings are complete.
                one.check_section(self.loaded)
            faulty = self._skip_disabled([one for one in wanted if one.problems])
            may_skip = tier == INSTALLED and self.settings.on_fault == "skip"
            stops = bool(problems) or (bool(faulty) and not may_skip)
            problems = [*problems, *(text for one in faulty for text in one.problems)]
            if stops and not skip_faulty:
                raise PluginRegistrationError(problems)
            for one in faulty:
                self._skipped[one.name] = left_out(one, "faulty")
                if not skip_faulty:
                    _log.event("error", "plugin_left_out", **one.place, faults=one.problems)
            for one in wanted:
                if not one.problems:
                    self._register_candidate(one, tier)
            if wanted:
                self._rebuild()
            return problems

    def _skip_disabled(self, faulty: Sequence[Candidate]) -> list[Candidate]:
        """Skip the faulty plugins that are disabled, and return the others.

        By the current settings, because disabling a plugin is the remedy that its faults name.
        """
        if not faulty:
            return []
        disable = self._load_settings().settings.disable
        for one in faulty:
            if one.name in disable:
                self._skipped[one.name] = left_out(one, "disabled, and faulty")
        return [one for one in faulty if one.name not in disable]

    def _register_candidate(self, candidate: Candidate, tier: int) -> None:
        """Register a plugin without faults, after those of its tier."""
        name = candidate.name
        super().register(candidate.plugin, name)
        self._added += 1
        self._ranks[name] = (tier, name if tier == INSTALLED else "", self._added)
        self._origins[name] = candidate
        self._skipped.pop(name, None)

    def _load_entry_points(self) -> list[Candidate]:
        """Load the installed plugins that no setting excludes; each failure is the plugin's own."""
        candidates: list[Candidate] = []
        self._unusable.clear()
        for claim in iter_installed():
            candidate = claim.candidate
            reason = "blocked" if self.is_blocked(candidate.name) else None
            reason = reason or self.loaded.exclusion_reason(candidate.name)
            if reason is not None:
                self._skipped[candidate.name] = left_out(candidate, reason)
                continue
            if claim.unusable is not None:
                self._unusable.append(left_out(candidate, claim.unusable))
                continue
            if claim.entry_point is not None:
                import_plugin(candidate, claim.entry_point)
                candidate.call_factory()
            candidates.append(candidate)
        return candidates

    def _log_unusable(self) -> None:
        """Log which installed plugins are skipped because their files are damaged."""
        for one in self._unusable:
            self._log_once(
                "warning",
                "distribution_left_out",
                plugin=one.name,
                distribution=one.distribution,
                version=one.version,
                reason=one.reason,
            )

    def _callers(self) -> dict[str, HookCaller]:
        return {
            name: caller
            for name, caller in vars(self.hook).items()
            if isinstance(caller, HookCaller)
        }

    def _rebuild(self) -> None:
        """Rebuild every hook's chain, and compute once what all chains want from each run."""
        callers = self._callers().values()
        for hook in callers:
            hook.chain = self._chain(hook)
        of_runs = [
            hook for hook in callers if hook.subject == "task_executor" and not hook.has_error
        ]
        good = OutcomeStatus.succeeded
        listening = [hook.chain for hook in of_runs if hook.chain and hook.listens(good)]
        self._asked_on_repeats = bool(listening)
        self._asked_on_success = any(good not in one.statuses_of_repeats for one in listening)
        self._times_attempts = any(hook.chain and "outcome" in hook.names for hook in of_runs)

    def _chain(self, hook: HookCaller) -> Chain | None:
        """Make a hook's chain; None without hookimpls."""
        links, wrappers = in_call_order(
            [impl for impl in hook.get_hookimpls() if self._is_enabled(impl.plugin_name)],
            self.settings.order,
            lambda impl: self._ranks[impl.plugin_name],
        )
        if not (links or wrappers):
            return None
        if hook.name == "qtasks_stop":
            links.reverse()
        return Chain(
            tuple(self._link(hook, impl) for impl in links),
            tuple(self._link(hook, impl) for impl in wrappers),
        )

    def _is_enabled(self, name: str) -> bool:
        """Return whether a registered plugin is asked, by the current settings."""
        if name not in self._origins or name in self.settings.disable:
            return False
        return self._ranks[name][0] != BUILTIN or name in self.settings.enable

    def _link(self, hook: HookCaller, impl: pluggy.HookImpl) -> Link:
        known = self._links.get(impl)
        if known is None:
            origin = self._origins[impl.plugin_name]
            breaker = self._breaker(impl) if hook.subject == "task_executor" else NO_BREAKER
            known = Link.from_hookimpl(hook, impl, origin, self.settings, breaker)
            self._links[impl] = known
        return known

    def _breaker(self, impl: pluggy.HookImpl) -> Breaker:
        bounds = self.settings.quarantine_after, self.settings.quarantine_seconds
        breaker = self._breakers.setdefault(impl, Breaker(*bounds, self.clock))
        breaker.configure(*bounds)
        return breaker


def _several(plugins: Any) -> Iterable[Any]:
    """Refuse a single plugin in place of a list of plugins."""
    if isinstance(plugins, Iterable) and not isinstance(plugins, (str, Mapping)):
        return plugins
    kind = plugins if isinstance(plugins, type) else type(plugins)
    msg = f"plugins=: expected a list of plugins, got one, {kind.__name__}; put it in []"
    raise TypeError(msg)


def _describe_skipped(one: PluginInfo) -> str:
    who = describe_plugin(one.name, one.distribution, one.version)
    return f"{who} is left out: {one.reason}"
