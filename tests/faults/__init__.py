"""Faults on purpose: what a run, a folder or a machine can suffer, and whether the run survives."""
