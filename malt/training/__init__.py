"""Training: a dataset version becomes a model version. Only the training process, `worker`, imports torch."""
