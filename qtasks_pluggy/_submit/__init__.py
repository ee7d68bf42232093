"""The interface between apps and engines.

===================  ===========================================================================
``protocol.py``      what an engine has to implement: ``Engine``
``outcome.py``       what an attempt comes to, and how a submitted run ends
``lookup.py``        the adapter for a URL or an engine's own object
``calls.py``         calling an engine's methods, plain or async
``submit.py``        handing runs to the app's engine
``replay.py``        running a message's task again
``handle.py``        what ``submit`` returns
===================  ===========================================================================
"""
