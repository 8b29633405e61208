"""wandb and mlflow, each in a process of its own: they cannot stop a training or change its numbers."""
