"""``python -m xpcnn``, and the command ``xpcnn``."""

import sys


def start() -> int:
    """Run the command line; an interrupt while it is imported is no traceback, either."""
    try:
        from xpcnn.cli import main
    except KeyboardInterrupt:
        sys.stderr.write("xpcnn: interrupted.\n")
        return 130
    return main()


if __name__ == "__main__":
    sys.exit(start())
