"""Overlays that fit every stage to a machine or a game."""
