"""``python -m a2d_lightning``."""

import sys

from a2d_lightning import __version__
from a2d_lightning.cli.usage import USAGE
from a2d_lightning.cpu.cores import let_waiting_threads_sleep


def main(args: list[str]) -> None:
    """Answers what needs no import of torch; :func:`a2d_lightning.cli.main.main` does the rest."""
    if not args:
        sys.exit(USAGE.rstrip())
    if args[0] in ("-h", "--help"):
        print(USAGE, end="")
    elif args[0] == "--version":
        print(f"a2d_lightning {__version__}")
    else:
        let_waiting_threads_sleep()
        from a2d_lightning.cli.main import main as run  # noqa: PLC0415 (takes seconds)

        run(args)


if __name__ == "__main__":
    main(sys.argv[1:])
