"""Weights and scenes that cross the package's border: checkpoints of the original in, files for other viewers out."""
