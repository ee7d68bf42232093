"""The plugin side: registration, and how hooks ask plugins. It knows no run, engine or app.

===================  ===========================================================================
``manager.py``       ``PluginManager``: what is registered, and each hook's chain
``discovery.py``     the installed plugins; entry points are loaded here
``validation.py``    plugins to register, and their problems
``sections.py``      a plugin's own settings, as an object of its class
``adapter.py``       a ``BasePlugin`` as hookimpls
``caller.py``        ``pm.hook.<name>``, plain and async
``dispatch.py``      THE RULE: every hookimpl is asked, the last answer wins
``ask.py``           asking one hookimpl: its time limit is applied here
``call.py``          one call of a hook, and the answers so far
``answers.py``       which answers count
``chain.py``         the links of a hook's chain, and their order
``filters.py``       which links are asked: by error, end and task
``quarantine.py``    the circuit breaker of a hookimpl that keeps failing
``report.py``        log events, notes on the task's error, ``strict``
``trail.py``         who was asked, what each answered, what won
===================  ===========================================================================
"""
