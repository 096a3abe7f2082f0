"""Trained agents as files that other runtimes can run."""
