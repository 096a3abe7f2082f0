"""Command line: the stages, which LightningCLI runs, and the commands that need no trainer."""
