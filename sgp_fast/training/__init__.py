"""Training: losses, the loop, checkpoints. `train` takes a data set and gives frozen models.

The loop library and the progress bar are imported when training starts, not before.
"""

from .config import TrainConfig
from .losses import reward_loss, score_matching_loss, simulation_loss
from .run import train

__all__ = ["TrainConfig", "reward_loss", "score_matching_loss", "simulation_loss", "train"]
