"""Tabs and blanks that do not agree."""


def mixed():
    if True:
        return 1
	return 2
