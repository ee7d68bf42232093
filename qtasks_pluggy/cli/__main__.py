"""``python -m qtasks_pluggy.cli``: the command, if it is not on the PATH."""

from __future__ import annotations

from qtasks_pluggy.cli import main

if __name__ == "__main__":
    main()
