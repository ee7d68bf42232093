"""``pm.hook.<name>``: pluggy's hook caller, with our call convention."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final

import pluggy

from qtasks_hookspecs import OutcomeStatus, _hooks
from qtasks_hookspecs._on_error import SHORT_NAMES, TRIGGER
from qtasks_pluggy._plugins.answers import ARGUMENTS
from qtasks_pluggy._plugins.chain import NO_LINKS, Chain, Values
from qtasks_pluggy._plugins.dispatch import dispatch
from qtasks_pluggy._waiting import ASYNCIO, SYNC, Backend, run_to_completion

# What each of our hooks is about: the parameter that holds the run or the app.
_SUBJECTS: Final = ("task_executor", "app")


def _never(*_: Any) -> None:  # pragma: no cover  # ``__call__`` below takes its place
    """Stand in for the function by which pluggy would call the hook."""


class HookCaller(pluggy.HookCaller):
    """A hook that is called by our convention, plainly or by ``call_async``."""

    __slots__ = (
        "anytrue",
        "chain",
        "has_error",
        "lastresult",
        "manager",
        "names",
        "pipeline",
        "subject",
    )

    def __init__(self, name: str, manager: Any, namespace: Any, options: Mapping[str, Any]) -> None:
        super().__init__(name, _never, namespace, options)  # type: ignore[arg-type]  # our hookspec's options hold pluggy's
        assert self.spec is not None  # noqa: S101  # pluggy sets it with a namespace
        self.manager: Any = manager
        # None if no plugin implements the hook: then no run calls it.
        self.chain: Chain | None = None
        self.names: frozenset[str] = frozenset(self.spec.argnames)
        self.lastresult: bool = options.get("lastresult", False)
        self.anytrue: bool = options.get("anytrue", False)
        pipeline = options.get("pipeline")
        self.pipeline: tuple[str, ...] = () if pipeline is None else (pipeline,)
        if pipeline == ", ".join(ARGUMENTS):
            self.pipeline = ARGUMENTS
        # Parameters of a hook that an app added mean nothing to us, whatever their names.
        ours = namespace is _hooks
        self.subject: str | None = next(
            (one for one in _SUBJECTS if one in self.names and ours), None
        )
        self.has_error: bool = ours and "e" in self.names
        self._check(options, self.spec.argnames)
        if self.name == TRIGGER and ours:
            # pluggy checks a hookimpl's parameters by these, and ``on_error`` offers two more.
            self.spec.argnames = (*self.spec.argnames, *sorted(SHORT_NAMES))

    def _check(self, options: Mapping[str, Any], names: Sequence[str]) -> None:
        """Refuse a specification that this convention cannot call."""
        refused = [one for one in ("firstresult", "historic") if options.get(one)]
        if refused:
            msg = (
                f"hook {self.name!r}: {refused[0]}=True is pluggy's own convention, and hooks here"
                " are called by another; mark it with hookspec from qtasks_hookspecs"
            )
            raise ValueError(msg)
        if not self.names.issuperset(self.pipeline):
            msg = (
                f"hook {self.name!r}: pipeline={', '.join(self.pipeline)!r} is not one of its"
                f" parameters; name one of {', '.join(names) or 'its own'}"
            )
            raise ValueError(msg)

    def __call__(self, **values: Any) -> Any:
        """Call the hook from plain code; its async hookimpls run on the background loop.

        Returns:
            The winning answer or None; of a pipeline its final value.

        Raises:
            PluginError: A hookimpl failed under ``strict``, or while starting.
            TypeError: A parameter of the hook is missing, or one is not the hook's.
        """
        self._check_names(values)
        return run_to_completion(self.call(SYNC, values))

    def call_async(self, **values: Any) -> Coroutine[Any, Any, Any]:
        """Call the hook from async code.

        Returns:
            The same as a plain call, to be awaited.

        Raises:
            TypeError: A parameter of the hook is missing, or one is not the hook's.
        """
        self._check_names(values)
        return self.call(ASYNCIO, values)

    def call(self, backend: Backend, values: Values) -> Coroutine[Any, Any, Any]:
        """Call the hook as a part of a run, which waits by ``backend``; to be awaited."""
        return dispatch(self, self.chain or NO_LINKS, values, backend)

    def call_apart(self, backend: Backend, values: Values) -> Coroutine[Any, Any, Any]:
        """Call the hook past every quarantine: none keeps a hookimpl out, and none counts this."""
        chain = (self.chain or NO_LINKS).without_quarantine()
        return dispatch(self, chain, values, backend)

    def call_only(
        self, backend: Backend, plugins: Iterable[str], values: Values
    ) -> Coroutine[Any, Any, Any]:
        """Call the hookimpls of some plugins alone, by name, in the order of the hook's chain."""
        wanted, whole = frozenset(plugins), self.chain or NO_LINKS
        some = Chain(
            *(
                tuple(link for link in links if link.plugin in wanted)
                for links in (whole.links, whole.wrappers)
            )
        )
        return dispatch(self, some, values, backend)

    def _check_names(self, values: Values) -> None:
        """Refuse a call without exactly the hook's parameters."""
        if values.keys() != self.names:
            msg = (
                f"hook {self.name!r} takes {sorted(self.names)}, but was called with"
                f" {sorted(values)}"
            )
            raise TypeError(msg)

    def call_extra(self, methods: Any, kwargs: Any) -> Any:  # noqa: ARG002  # pluggy's
        """Refuse with a ``TypeError``: a function of no plugin has no name to report."""
        msg = (
            f"hook {self.name!r}: call_extra is not offered, because a function that no plugin has"
            " could not be ordered, limited or named; register a plugin, and unregister it after"
        )
        raise TypeError(msg)

    def listens(self, status: OutcomeStatus) -> bool:
        """Return whether some hookimpl may want an attempt that ended so."""
        return self.chain is not None and status in self.chain.statuses

    def consents(self, error: BaseException) -> bool:
        """Return whether a handler names this error's class, and so is asked about it."""
        return self.chain is not None and self.chain.consents(error)
