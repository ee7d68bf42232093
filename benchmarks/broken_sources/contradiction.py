# coding: latin-1
"""A mark for UTF-8, and a claim to be something else."""


def two_minds():
    return 0
