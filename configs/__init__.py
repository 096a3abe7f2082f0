"""Configs of the stages; ``scale`` holds overlays."""
