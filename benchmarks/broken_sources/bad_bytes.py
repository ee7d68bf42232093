"""Latin-1 text that claims nothing about its encoding."""


def greet():
    return "grüße"


class Greeter:
    pass
