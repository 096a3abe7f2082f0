"""Entry point of ``python -m a2d_lightning``."""

import os
import sys

from a2d_lightning import __version__
from a2d_lightning.cli.usage import USAGE
from a2d_lightning.cpu.cores import let_waiting_threads_sleep


def main(args: list[str]) -> None:
    """Print help or version without importing torch; run :func:`a2d_lightning.cli.main.main` otherwise.

    Args:
        args: Command-line arguments without the program name.
    """
    if not args:
        sys.exit(USAGE.rstrip())
    if args[0] in ("-h", "--help"):
        print(USAGE, end="")
    elif args[0] == "--version":
        print(f"a2d_lightning {__version__}")
    else:
        let_waiting_threads_sleep()
        from a2d_lightning.cli.main import main as command  # noqa: PLC0415 (takes seconds)

        command(args)


def run() -> None:
    """Run the command line: entry point of the console script ``a2d``.

    Packages in the current folder can be named in settings, as with ``python -m a2d_lightning``.
    """
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    main(sys.argv[1:])


if __name__ == "__main__":
    run()
