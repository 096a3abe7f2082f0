"""The paper's reinforcement learning: losses (Eq. 3 to 8), advantages, algorithms, distillation, schedules."""
