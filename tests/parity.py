"""Access to the recorded outputs of the originals (``../shared/parity``), for tests that compare with them.

Weights follow a rule (numpy only), so nothing is downloaded. Tests skip with a reason where the recordings are absent.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

SHARED = Path(__file__).resolve().parents[2] / "shared"
PARITY = SHARED / "parity"


@cache
def _module(name: str) -> ModuleType:
    if name == "inputs":
        _module("weights")  # `inputs` imports it by its plain name
    spec = importlib.util.spec_from_file_location(f"parity_{name}", PARITY / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(name, module)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Recording:
    """One recorded case: its inputs, its outputs and its weights by rule."""

    name: str
    meta: dict
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]

    def state(self, part: str, strip: str = "") -> dict[str, Tensor]:
        """State dict of one part; ``strip`` is removed from the front of each key."""
        make = _module("weights").make
        entries = self.meta["state_dict"][part]
        return {key.removeprefix(strip): torch.from_numpy(make(key, shape, dtype)) for key, shape, dtype in entries}

    def input(self, name: str) -> Tensor:
        return torch.from_numpy(self.inputs[name])

    def images(self, name: str = "image_u8") -> Tensor:
        return torch.from_numpy(_module("inputs").to_float(self.inputs[name]))

    def error(self, name: str, actual: Tensor | np.ndarray) -> dict:
        """Error measures: max_abs, rel (over the recorded standard deviation), rel_p999; mismatch for integers."""
        array = actual.detach().cpu().numpy() if isinstance(actual, Tensor) else actual
        return _module("compare").check(self.outputs, name, array)

    def assert_close(self, name: str, actual: Tensor | np.ndarray, rel: float) -> None:
        """Fail unless every element lies within ``rel`` standard deviations of the recorded one."""
        error = self.error(name, actual)
        if error["kind"] == "float":
            assert error["rel"] <= rel and error["nonfinite_mismatch"] == 0, f"{self.name}/{name}: {error}, limit {rel}"
        else:
            assert error["mismatch"] == 0, f"{self.name}/{name}: {error}"


def recording(name: str) -> Recording:
    """Load a case, or skip the test where the recordings are absent."""
    folder = PARITY / "golden" / name
    if not folder.is_dir():
        pytest.skip(f"no recording {name}: ../shared/parity is not beside this checkout")
    inputs = folder / "inputs.npz"
    with np.load(folder / "outputs.npz") as archive:
        outputs = {key: archive[key] for key in archive.files}
    arrays = {}
    if inputs.exists():
        with np.load(inputs) as archive:
            arrays = {key: archive[key] for key in archive.files}
    return Recording(name, json.loads((folder / "meta.json").read_text()), arrays, outputs)


def uniform(tag: str, shape: tuple[int, ...]) -> Tensor:
    """Recorded uniform numbers of a tag, by rule."""
    return torch.from_numpy(_module("inputs").uniform(tag, shape))


def normal(tag: str, shape: tuple[int, ...]) -> Tensor:
    """Recorded normal numbers of a tag, by rule."""
    return torch.from_numpy(_module("inputs").normal(tag, shape))


def load_exactly(module: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """Load a state dict strictly and return the module in eval mode."""
    module.load_state_dict(state, strict=True)
    return module.eval()
