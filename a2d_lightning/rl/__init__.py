"""Reinforcement learning of the paper: losses (Eq. 3 to 8), advantages, algorithms, distillation modes, schedules."""
