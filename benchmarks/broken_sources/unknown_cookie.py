# -*- coding: klingon-8 -*-
"""An encoding that nobody knows."""


def nuqneH():
    return 1
