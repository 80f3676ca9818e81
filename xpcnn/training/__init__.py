"""Training: steps, epochs, metrics."""

from xpcnn.training.trainer import Epoch, History, Trainer, evaluate

__all__ = ["Epoch", "History", "Trainer", "evaluate"]
