"""The training loop and what it stands on: order of samples, modes, checkpoints, random states, signals."""
