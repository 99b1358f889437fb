"""What every system shares: settings, the training loop, checkpoints, logs, batches."""
