"""The nerfstudio plugin: the only part of the package that knows nerfstudio."""
