"""Training: the loop, objectives, recipes, dead features, optimiser, checkpoints and runs."""
