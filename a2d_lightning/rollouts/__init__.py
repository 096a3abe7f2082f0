"""Games and the rollouts that are collected from them."""
