"""Files of others are read without being trusted, and fitted without leftovers."""

from __future__ import annotations

import datetime
import os
import pickle
import sys
from pathlib import Path, PurePosixPath
from types import ModuleType

import numpy as np
import pytest
import torch

from lsplat_ns.checkpoints.state_dicts import LISTED, read_checkpoint, require_fit, tensors_of
from lsplat_ns.errors import CheckpointMismatch


class Payload:
    """Pickles as a call of ``os.system``."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


class Evaluation(Payload):
    """Pickles as a call of ``eval``."""

    def __reduce__(self) -> tuple:
        return eval, (f"open({str(self.marker)!r}, 'w')",)


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    whole = torch.arange(24.0)
    return {
        "matrix": whole[:12].view(3, 4),
        "turned": whole[12:].view(3, 4).T,
        "half": torch.tensor([1.5, -2.0], dtype=torch.float16),
        "brain": torch.tensor([3.0], dtype=torch.bfloat16),
        "count": torch.tensor(7),
        "empty": torch.empty(0),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }


@pytest.fixture
def foreign_objects(monkeypatch: pytest.MonkeyPatch) -> dict:
    """What training frameworks leave in checkpoints."""
    module = ModuleType("omegaconf")
    config = type("DictConfig", (), {"__module__": "omegaconf", "__qualname__": "DictConfig"})
    module.DictConfig = config
    monkeypatch.setitem(sys.modules, "omegaconf", module)
    instance = config()
    instance.content = {"a": [1, 2]}
    return {
        "config": instance,
        "path": PurePosixPath("/x/y"),
        "time": datetime.datetime(2024, 9, 1),
        "number": np.float64(2.5),
        "array": np.arange(3),
        "set": {1, 2},
        "type": torch.float32,
        "device": torch.device("cpu"),
    }


@pytest.mark.parametrize("payload", [Payload, Evaluation])
@pytest.mark.parametrize("place", ["state_dict", "hyper_parameters", "callbacks"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_tries_to_run_code_is_refused_and_runs_nothing(
    payload: type, place: str, zipped: bool, state: dict, tmp_path: Path
) -> None:
    marker, path = tmp_path / "marker", tmp_path / "hostile.ckpt"
    content = {"state_dict": state, "hyper_parameters": {}, "callbacks": {}}
    content[place] = {**content[place], "x": payload(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointMismatch) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    if zipped:
        assert ("system" if payload is Payload else "eval") in str(caught.value)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the payload of this test must work where files are trusted"


def test_the_tensors_of_a_file_with_foreign_objects_equal_the_saved_ones(
    state: dict, foreign_objects: dict, tmp_path: Path
) -> None:
    path = tmp_path / "lightning.ckpt"
    torch.save({"global_step": 12, "state_dict": state, "hyper_parameters": foreign_objects}, path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    content = read_checkpoint(path)
    assert content["global_step"] == 12
    found = tensors_of(content, path)
    assert list(found) == list(state)
    for key, value in state.items():
        assert found[key].dtype == value.dtype
        torch.testing.assert_close(found[key], value.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_plain_file_of_either_format_is_read(zipped: bool, state: dict, tmp_path: Path) -> None:
    path = tmp_path / "plain.pt"
    torch.save({f"module.{key}": value for key, value in state.items()}, path, _use_new_zipfile_serialization=zipped)
    assert list(tensors_of(read_checkpoint(path), path)) == list(state)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 broken"])
def test_a_damaged_file_is_one_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "damaged.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointMismatch, match=r"damaged\.ckpt"):
        read_checkpoint(path)


def test_a_file_that_was_cut_short_is_one_error(state: dict, tmp_path: Path) -> None:
    path = tmp_path / "short.ckpt"
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointMismatch, match=r"short\.ckpt"):
        read_checkpoint(path)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMismatch, match="no checkpoint file"):
        read_checkpoint(tmp_path / "absent.ckpt")


def test_a_misfit_lists_missing_unused_and_differently_shaped_keys_within_bounds() -> None:
    expected = {"a": torch.Size([2]), "b": torch.Size([3]), **{f"m{i}": torch.Size([1]) for i in range(LISTED + 5)}}
    found = {"a": torch.zeros(2), "b": torch.zeros(4), "c": torch.zeros(1)}
    with pytest.raises(CheckpointMismatch) as caught:
        require_fit(expected, found, Path("x.ckpt"))
    message = str(caught.value)
    assert f"{LISTED + 5} missing: m0 [1]" in message and "and 5 more" in message
    assert "1 not used: c" in message
    assert "1 differently shaped: b [4] instead of [3]" in message
    assert "\n" not in message
    require_fit({"a": torch.Size([2])}, {"a": torch.zeros(2)}, Path("x.ckpt"))
