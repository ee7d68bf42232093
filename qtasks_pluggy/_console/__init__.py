"""What all commands share: finding the app that APP names, and printing.

=================  ======================================================================
``load.py``        finds the objects that APP and TASK name
``problems.py``    settings and filters that have no effect
``say.py``         prints text and tracebacks, so that nothing in them changes a terminal
``table.py``       tables, on a terminal and on a pipe
=================  ======================================================================
"""
