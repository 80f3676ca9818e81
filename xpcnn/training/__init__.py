"""Training: steps, epochs, checkpoints."""

from xpcnn.training.evaluation import evaluate
from xpcnn.training.fitting import Epoch, History
from xpcnn.training.trainer import Trainer

__all__ = ["Epoch", "History", "Trainer", "evaluate"]
