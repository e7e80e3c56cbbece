"""latentSplat and MV-LDM for nerfstudio. Read ``scene.py`` first, then ``latentsplat.py``."""
