"""The plugin manager: what is registered, where it came from, and each hook's chain."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FunctionType, MethodType
from typing import Any, Final

import pluggy

from qtasks_hookspecs import _hooks
from qtasks_hookspecs._markers import PROJECT_NAME
from qtasks_hookspecs.exc import PluginRegistrationError
from qtasks_pluggy import _log, _settings
from qtasks_pluggy._fork import lock_of
from qtasks_pluggy._plugins.adapter import given
from qtasks_pluggy._plugins.caller import HookCaller
from qtasks_pluggy._plugins.chain import Chain, Link, in_call_order
from qtasks_pluggy._plugins.discovery import PluginInfo, installed, left_out, load
from qtasks_pluggy._plugins.quarantine import NO_BREAKER, Breaker
from qtasks_pluggy._plugins.registry import Table, candidate_of, check_all, name_of, not_registered
from qtasks_pluggy._plugins.validation import Candidate

BUILTIN, INSTALLED, ADDED = range(3)
BUILTINS: Final = ("fallback", "retry")
HOOKABLE: Final = (staticmethod, classmethod, FunctionType, MethodType)


class PluginManager(pluggy.PluginManager):
    """The plugins of one app, and the hooks that ask them.

    A ``pluggy.PluginManager`` that knows our hooks from the start and calls them by our
    convention: see ``hook.<name>(...)`` and ``hook.<name>.call_async(...)``.

    Args:
        plugins: Modules or objects with hookimpls, in the order in which they are asked.
        discover: Whether to load the installed plugins at once, by their entry points.
        settings: Keys of the settings; see ``docs/reference/settings.md``.
        clock: Seconds, for what depends on time.

    Raises:
        PluginRegistrationError: Faults of the plugins, all of them; nothing is registered.
        SettingsError: Faults of the settings.
    """

    def __init__(
        self,
        plugins: Iterable[Any] = (),
        *,
        discover: bool = False,
        settings: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(PROJECT_NAME)
        vars(self)["_name2plugin"] = Table()
        self.clock: Final = clock
        self._lock = lock_of(self)
        self._given: Any = dict(settings) if isinstance(settings, Mapping) else settings
        self._ranks: dict[str, tuple[int, str, int]] = {}
        self._origins: dict[str, Candidate] = {}
        self._skipped: dict[str, PluginInfo] = {}
        self._links: dict[pluggy.HookImpl, Link] = {}
        self._added = 0
        self._discovered = False
        self._breakers: dict[pluggy.HookImpl, Breaker] = {}
        self._use(_settings.load(self._given, outside=False))
        self.add_hookspecs(_hooks)
        self._load_builtins()
        self._register_candidates(
            [candidate_of(one, self.get_canonical_name) for one in plugins], ADDED
        )
        if discover:
            self.discover()

    def add_hookspecs(self, module_or_class: Any) -> None:
        """Add hooks that are called by our convention.

        Args:
            module_or_class: Holds functions marked with ``hookspec``.

        Raises:
            ValueError: It holds none, or one is known already or marked for what is not done here.
        """
        found = {
            name: options
            for name in dir(module_or_class)
            if (options := self.parse_hookspec_opts(module_or_class, name)) is not None
        }
        if not found:
            msg = f"did not find any {self.project_name!r} hooks in {module_or_class!r}"
            raise ValueError(msg)
        for name, options in found.items():
            if hasattr(self.hook, name):
                msg = f"hook {name!r} is known already; choose another name"
                raise ValueError(msg)
            setattr(self.hook, name, HookCaller(name, self, module_or_class, options))

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        """Read an attribute's mark, without evaluating properties, as pluggy 1.6 would."""
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
        """Register a plugin, behind those that are registered.

        Args:
            plugin: A module or an object with hookimpls; a ``BasePlugin`` or a subclass of it.
            name: Its name; else its ``.name``, else the module's or class's name.
            trigger_names: The triggers that a ``BasePlugin`` is limited to.

        Returns:
            The name, or None where that name is blocked.

        Raises:
            PluginRegistrationError: Faults of the plugin, all of them; nothing is registered.
        """
        candidate = candidate_of(plugin, self.get_canonical_name, name)
        return self._register_candidates([candidate], ADDED, trigger_names)[0]

    def unregister(self, plugin: Any | None = None, name: str | None = None) -> Any | None:
        """Unregister a plugin; a dispatch that has begun still asks it.

        Args:
            plugin: The plugin.
            name: Or its name.

        Returns:
            The plugin, or None where none has that name.

        Raises:
            PluginRegistrationError: This plugin is not registered, or under another name.
            TypeError: Neither is given.
        """
        if plugin is None and name is None:
            msg = "unregister takes a plugin or a name="
            raise TypeError(msg)
        with self._lock:
            if plugin is not None:
                known = self.get_name(plugin)
                if known is None or name not in {None, known}:
                    raise not_registered(plugin, name or known, self._origins)
                name = known
            gone = self._origins.pop(name or "", None)
            if gone is None:
                return None
            del self._name2plugin[gone.name], self._ranks[gone.name]
            # Not by pluggy's own unregister, which asks ``==`` who is who, and ``bool()``.
            for hook in vars(self.hook).values():
                kept = [one for one in hook.get_hookimpls() if one.plugin_name != gone.name]
                hook._hookimpls[:] = kept  # noqa: SLF001  # pluggy's own list
            for memory in (self._links, self._breakers):
                for impl in [one for one in memory if one.plugin_name == gone.name]:
                    del memory[impl]
            self._rebuild()
            return given(gone.plugin)

    def get_name(self, plugin: Any) -> str | None:
        """Return the name of a registered plugin, a ``BasePlugin`` too; None if it is none."""
        with self._lock:
            return name_of(plugin, self._origins.values())

    def is_registered(self, plugin: Any) -> bool:
        """Say whether this very plugin is registered, not one that equals it."""
        return self.get_name(plugin) is not None

    def get_canonical_name(self, plugin: Any) -> str:
        """Name a plugin: its ``.name``, else the module's or class's name."""
        for own in (getattr(plugin, "name", None), getattr(plugin, "__name__", None)):
            if isinstance(own, str) and own:
                return own
        return type(plugin).__name__

    def subset_hook_caller(self, name: str, remove_plugins: Iterable[Any]) -> Any:  # noqa: ARG002  # pluggy's
        """Refuse, with a ``TypeError``: who is asked is for the operator to say."""
        msg = (
            f"hook {name!r}: subset_hook_caller is not offered; use the setting disable, or a"
            " PluginManager with the plugins that you want"
        )
        raise TypeError(msg)

    def add_hookcall_monitoring(self, before: Any, after: Any) -> Any:  # noqa: ARG002  # pluggy's
        """Refuse, with a ``TypeError``: pluggy's monitors expect its own way of calling."""
        told = "read executor.trail, or log at debug level"
        msg = f"{PROJECT_NAME} calls hooks by its own convention, no monitor sees that; {told}"
        raise TypeError(msg)

    def configure(self) -> None:
        """Take the settings of this moment's environment.

        Raises:
            SettingsError: Faults of the settings; the old ones stay.
        """
        with self._lock:
            before = self.loaded
            self._use(_settings.load(self._given, outside=True))
            try:
                self._load_builtins()
            except BaseException:
                self._use(before)
                raise
            self._rebuild()

    def _use(self, loaded: _settings.Loaded) -> None:
        self.loaded: _settings.Loaded = loaded
        self.settings: _settings.Settings = loaded.settings
        self._links.clear()

    def _load_builtins(self) -> None:
        """Load the built-in plugins that the settings enable."""
        loaded = {name for name, rank in self._ranks.items() if rank[0] == BUILTIN}
        wanted = [name for name in self.settings.enable if name in {*BUILTINS} - loaded]
        if not wanted:
            return
        from qtasks_pluggy.builtin import Fallback, RetryPlugin  # noqa: PLC0415  # rarely wanted

        plugins = {one.name: one for one in (Fallback(), RetryPlugin())}
        self._register_candidates([Candidate(name, plugins[name]) for name in wanted], BUILTIN)

    def discover(self, faults: list[str] | None = None) -> None:
        """Load the installed plugins that the settings do not switch off, once.

        Args:
            faults: Takes the faults instead of an error; the plugins without any are registered.

        Raises:
            PluginRegistrationError: Faults of the plugins, all of them; nothing is registered.
            SettingsError: Faults of the settings.
        """
        with self._lock:
            if self._discovered:
                return
            self.configure()
            self._load_entry_points(faults)
            self._discovered = True
            for one in self.loaded.unknown_names({*self._origins, *self._skipped}, BUILTINS):
                _log.event("warning", "unknown_plugin_name", **one)

    def list_plugin_info(self) -> list[PluginInfo]:
        """Return what is known of every plugin, those that are switched off included."""
        with self._lock:
            known = [
                self._info(name) for name in sorted(self._origins, key=self._ranks.__getitem__)
            ]
            return known + [self._skipped[name] for name in sorted(self._skipped)]

    def _info(self, name: str) -> PluginInfo:
        origin, asked = self._origins[name], self._asks(name)
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
            reason=None if asked else self.loaded.keeps_out(name) or "not enabled",
            quarantined=tuple(
                hook
                for hook, impls in hooks.items()
                if any(self._breakers[impl].until for impl in impls if impl in self._breakers)
            ),
            builtin=self._ranks[name][0] == BUILTIN,
        )

    def _register_candidates(
        self,
        candidates: Sequence[Candidate],
        tier: int,
        trigger_names: Iterable[str] | None = None,
        faults: list[str] | None = None,
    ) -> list[str | None]:
        """Register all of them or, where there is a fault and nobody takes it, none."""
        with self._lock:
            wanted = [one for one in candidates if not self.is_blocked(one.name)]
            hooks = {name: caller.names for name, caller in self._callers().items()}
            check_all(wanted, self._origins, hooks, self.parse_hookimpl_opts, trigger_names)
            if any(one.problems for one in wanted):
                # The operator's own switch counts here too: it is the remedy that faults name.
                disable = _settings.load(self._given, outside=True).settings.disable
                for one in [one for one in wanted if one.problems and one.name in disable]:
                    wanted.remove(one)
                    self._skipped[one.name] = left_out(one, "disabled, and faulty")
            faulty = [one for one in wanted if one.problems]
            problems = [text for one in faulty for text in one.problems]
            if problems and faults is None:
                raise PluginRegistrationError(problems)
            for one in faulty:
                wanted.remove(one)
                self._skipped[one.name] = left_out(one, "faulty")
            if faults is not None:
                faults += problems
            for one in wanted:
                super().register(one.plugin, one.name)
                self._added += 1
                order = one.name if tier == INSTALLED else ""
                self._ranks[one.name] = (tier, order, self._added)
                self._origins[one.name] = one
                self._skipped.pop(one.name, None)
            self._rebuild()
            names = {one.name for one in wanted}
            return [one.name if one.name in names else None for one in candidates]

    def _load_entry_points(self, faults: list[str] | None) -> None:
        candidates: list[Candidate] = []
        for candidate, entry_point in installed():
            reason = "blocked" if self.is_blocked(candidate.name) else None
            reason = reason or self.loaded.keeps_out(candidate.name)
            if reason is not None:
                self._skipped[candidate.name] = left_out(candidate, reason)
                continue
            if entry_point is not None:
                load(candidate, entry_point)
            candidates.append(candidate)
        # Where one cannot be loaded the others are looked at all the same: faults come together.
        self._register_candidates(candidates, INSTALLED, faults=faults)

    def _callers(self) -> dict[str, HookCaller]:
        return {
            name: caller
            for name, caller in vars(self.hook).items()
            if isinstance(caller, HookCaller)
        }

    def _rebuild(self) -> None:
        for hook in self._callers().values():
            chain = self._chain(hook, hook.get_hookimpls())
            hook.chain = chain if chain.links or chain.wrappers else None

    def _chain(self, hook: HookCaller, hookimpls: Sequence[pluggy.HookImpl]) -> Chain:
        links, wrappers = in_call_order(
            [impl for impl in hookimpls if impl.plugin is None or self._asks(impl.plugin_name)],
            self.settings.order,
            lambda impl: self._ranks.get(impl.plugin_name, (ADDED, "", self._added + 1)),
        )
        if hook.name == "qtasks_stop":
            links.reverse()
        return Chain(
            tuple(self._link(hook, impl) for impl in links),
            tuple(self._link(hook, impl) for impl in wrappers),
        )

    def _asks(self, name: str) -> bool:
        """Say whether a registered plugin is asked, as the settings of this moment have it."""
        if name not in self._origins or name in self.settings.disable:
            return False
        return self._ranks[name][0] != BUILTIN or name in self.settings.enable

    def _link(self, hook: HookCaller, impl: pluggy.HookImpl) -> Link:
        known = self._links.get(impl)
        if known is None:
            origin = self._origins.get(impl.plugin_name) or Candidate(impl.plugin_name, None)
            breaker = NO_BREAKER if hook.subject == "app" else self._breaker(impl)
            known = Link.from_hookimpl(hook, impl, origin, self.settings, breaker)
            if impl.plugin is not None:
                self._links[impl] = known
        return known

    def _breaker(self, impl: pluggy.HookImpl) -> Breaker:
        bounds = self.settings.quarantine_after, self.settings.quarantine_seconds
        breaker = self._breakers.get(impl) or Breaker(*bounds, self.clock)
        breaker.configure(*bounds)
        if impl.plugin is not None:
            self._breakers[impl] = breaker
        return breaker
