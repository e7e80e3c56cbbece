"""Splatting: from Gaussians and cameras to maps of colour, features, opacity and depth."""
