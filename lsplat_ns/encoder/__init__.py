"""From posed images to variational Gaussians: backbone, epipolar transformer, depth and Gaussian heads."""
