"""The plugin side: what is registered, and how a hook asks it; it knows no run, engine or app.

===================  ===========================================================================
``manager.py``       ``PluginManager``: what is registered, and each hook's chain
``discovery.py``     the installed plugins
``validation.py``    plugins that ask to be registered, and their faults
``sections.py``      a plugin's own section of the settings, as the class that it declares
``adapter.py``       a ``BasePlugin`` as hookimpls
``caller.py``        ``pm.hook.<name>``, plain and async
``dispatch.py``      THE RULE: everybody is asked, the last answer wins
``ask.py``           asking one hookimpl, and all that can go wrong there
``call.py``          one call of a hook, and what was answered so far
``answers.py``       which answers count
``chain.py``         the links of a hook's chain, and their order
``filters.py``       which links are asked: by error, end and task
``quarantine.py``    leaving alone what keeps failing
``report.py``        what becomes known of a dispatch
``trail.py``         who was asked, what each answered, what won
===================  ===========================================================================
"""
