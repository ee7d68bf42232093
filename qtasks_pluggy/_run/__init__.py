"""The run side: the life of one run.

===================  ===========================================================================
``executor.py``      START HERE: the life of one run
``view.py``          what plugins may read of a run
``decisions.py``     what the plugins' decision means for the run
``function.py``      calling a task's function
===================  ===========================================================================
"""
