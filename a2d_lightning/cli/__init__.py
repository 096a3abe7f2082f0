"""The command line: LightningCLI's stages, and the commands that need no trainer."""
