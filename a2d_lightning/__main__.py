"""``python -m a2d_lightning``."""

from a2d_lightning.cli import main

if __name__ == "__main__":
    main()
