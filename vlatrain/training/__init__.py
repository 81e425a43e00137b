"""The training loop and what it stands on: order of samples, modes, checkpoints, random states, signals; and `train`."""

from vlatrain.training.run import Finished, train

__all__ = ["Finished", "train"]
