"""What every part of the command needs: from APP to objects, and from objects to a terminal.

=================  ======================================================================
``load.py``        from APP and TASK on the command line to the objects
``problems.py``    settings and filters that have no effect
``say.py``         how anything is printed, so that nothing in it changes a terminal
``table.py``       tables, on a terminal and on a pipe
``traceback.py``   tracebacks that begin in the user's own code
=================  ======================================================================
"""
