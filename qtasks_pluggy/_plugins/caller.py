"""``pm.hook.<name>``: pluggy's hook caller, with our call convention."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

import pluggy

from qtasks_pluggy._plugins.adapter import unwrap
from qtasks_pluggy._plugins.answers import ARGUMENTS
from qtasks_pluggy._plugins.chain import NO_LINKS, Chain, Link
from qtasks_pluggy._plugins.dispatch import dispatch
from qtasks_pluggy._waiting import ASYNCIO, SYNC, Backend, run_to_completion


class HookCaller(pluggy.HookCaller):
    """A hook that is called by our convention, plainly or by ``call_async``."""

    __slots__ = ("chain", "lastresult", "manager", "names", "pipeline", "size")

    def __init__(self, name: str, manager: Any, namespace: Any, options: Mapping[str, Any]) -> None:
        # The chain is None where nobody implements the hook: then no run calls it.
        super().__init__(name, manager.call_hookimpls, namespace, options)  # type: ignore[arg-type]  # our hookspec's options hold pluggy's
        assert self.spec is not None  # noqa: S101  # pluggy sets it where a namespace is given
        self.manager: Any = manager
        self.chain: Chain | None = None
        self.lastresult: bool = options.get("lastresult", False)
        self.pipeline: str | None = options.get("pipeline")
        self.names: frozenset[str] = frozenset(self.spec.argnames)
        self.size: int = len(self.names)
        refused = [one for one in ("firstresult", "historic") if options.get(one)]
        if refused:
            msg = (
                f"hook {name!r}: {refused[0]}=True is pluggy's own convention, and hooks here are"
                " called by another; mark it with hookspec from qtasks_hookspecs"
            )
            raise ValueError(msg)
        carries = ("args", "kwargs") if self.pipeline == ARGUMENTS else (self.pipeline,)
        if self.pipeline is not None and not self.names.issuperset(carries):
            msg = (
                f"hook {name!r}: pipeline={self.pipeline!r} is no parameter of it; name one of"
                f" {', '.join(self.spec.argnames) or 'its own'}"
            )
            raise ValueError(msg)

    def __call__(self, **values: Any) -> Any:
        """Call the hook from plain code; its async hookimpls run on the background loop.

        Returns:
            The winning answer or None; of a pipeline what is left at its end.
        """
        return run_to_completion(dispatch(self, self.chain or NO_LINKS, values, SYNC))

    def call_async(self, **values: Any) -> Coroutine[Any, Any, Any]:
        """Call the hook from async code.

        Returns:
            The same as a plain call, to be awaited.
        """
        return dispatch(self, self.chain or NO_LINKS, values, ASYNCIO)

    def call(self, backend: Backend, /, **values: Any) -> Coroutine[Any, Any, Any]:
        """Call the hook as a part of a run, which waits in its own way; to be awaited."""
        return dispatch(self, self.chain or NO_LINKS, values, backend)


class SubsetHookCaller(HookCaller):
    """A hook without the hookimpls of some plugins, as ``subset_hook_caller`` gives it."""

    __slots__ = ("original", "removed")

    def __init__(self, original: HookCaller, removed: Sequence[Any]) -> None:
        assert original.spec is not None  # noqa: S101  # one of our hooks
        options: Any = original.spec.opts
        super().__init__(original.name, original.manager, original.spec.namespace, options)
        self.original = original
        self.removed = removed

    def __call__(self, **values: Any) -> Any:
        """Call what is left of the hook from plain code."""
        return run_to_completion(dispatch(self, self._left(), values, SYNC))

    def call_async(self, **values: Any) -> Coroutine[Any, Any, Any]:
        """Call what is left of the hook from async code."""
        return dispatch(self, self._left(), values, ASYNCIO)

    def _left(self) -> Chain:
        """Return the original's chain of this moment, less the removed plugins."""

        def kept(links: tuple[Link, ...]) -> tuple[Link, ...]:
            return tuple(link for link in links if self._keeps(link.impl.plugin))

        whole = self.original.chain or NO_LINKS
        return Chain(kept(whole.links), kept(whole.wrappers))

    def get_hookimpls(self) -> list[pluggy.HookImpl]:
        """Return the hookimpls that are left."""
        return [impl for impl in self.original.get_hookimpls() if self._keeps(impl.plugin)]

    def _keeps(self, plugin: Any) -> bool:
        return not any(one is plugin or one is unwrap(plugin) for one in self.removed)
