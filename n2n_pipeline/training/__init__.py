"""Training: random patches of random halves of random windows, until the budget is spent."""

from n2n_pipeline.training.train import train_model

__all__ = ["train_model"]
