"""Kernels and thread settings that speed up training on CPUs; without them torch computes the same, slower."""
