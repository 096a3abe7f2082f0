"""Environments and the collection of rollouts."""
