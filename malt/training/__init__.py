"""Training: a dataset version becomes a model version. torch is imported by `worker` alone, in a process of its own."""
