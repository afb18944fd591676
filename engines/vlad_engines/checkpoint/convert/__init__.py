"""Turns checkpoints of one layout into another: JAX to openpi PyTorch, LeRobot and openpi both ways."""
