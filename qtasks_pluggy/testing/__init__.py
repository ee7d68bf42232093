"""The test kit, for authors of plugins and for tests of apps that use plugins.

==================  ==========================================================================
``run.py``          runs one function under one plugin: START HERE
``isolation.py``    apps without environment, files and installed plugins
``given.py``        a plugin as tests name it: a module, an object, a class, an entry point
``recording.py``    a plugin that records the calls of its hooks
``clock.py``        a clock that tests move
``delays.py``       retries that do not wait
``contract.py``     the contract of every plugin, as a class of tests
``questions.py``    the errors that the contract asks a plugin about
``trial.py``        runs within a time limit, and findings
``probe.py``        what importing a module does, in a Python of its own
``project.py``      a new plugin's files
``command.py``      the commands ``qtasks-pluggy check`` and ``new-plugin``
``templates/``      the files of a new plugin
==================  ==========================================================================

Nothing here imports pytest: the fixtures are those of ``pytest_qtasks_pluggy``.
"""

from __future__ import annotations

from qtasks_pluggy.testing.clock import FakeClock
from qtasks_pluggy.testing.contract import PluginContract
from qtasks_pluggy.testing.delays import no_delays
from qtasks_pluggy.testing.isolation import installed_app, isolated_app, isolated_settings
from qtasks_pluggy.testing.recording import Heard, RecordingPlugin
from qtasks_pluggy.testing.run import Run, assert_outcome, assert_trail, run_with
from qtasks_pluggy.testing.trial import ContractError, Finding

__all__ = [
    "ContractError",
    "FakeClock",
    "Finding",
    "Heard",
    "PluginContract",
    "RecordingPlugin",
    "Run",
    "assert_outcome",
    "assert_trail",
    "installed_app",
    "isolated_app",
    "isolated_settings",
    "no_delays",
    "run_with",
]
