"""A string without an end."""


def first():
    return 1


def second():
    text = """it goes on
    def third():
        and on
