"""Agents that come with the package: weights and cards."""
