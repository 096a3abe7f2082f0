"""A2D (Auto-Agent-Distiller, arXiv 2012.13091): small, fast agents for deep RL by distillation-guided search."""

__version__ = "0.1.0"
