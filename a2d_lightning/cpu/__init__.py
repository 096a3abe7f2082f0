"""Kernels and thread settings that make training on CPUs faster. Without them torch computes the same, slower."""
