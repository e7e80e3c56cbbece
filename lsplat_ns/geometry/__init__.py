"""Cameras, rays and harmonics: pure functions on tensors, without weights."""
