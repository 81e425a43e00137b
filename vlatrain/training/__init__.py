"""The training loop and what it stands on: setup, order of samples, modes, precision, checkpoints, random states, signals."""
