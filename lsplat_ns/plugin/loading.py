"""Checkpoints into modules, strictly and with one line where they do not fit."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from lsplat_ns.errors import CheckpointMismatch


def load_strictly(module: nn.Module, state: Mapping[str, Any], **options: Any) -> Any:
    """``nn.Module.load_state_dict`` of exactly these keys and shapes.

    Raises:
        CheckpointMismatch: With the first differences.
    """
    try:
        return nn.Module.load_state_dict(module, state, strict=True, **options)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise CheckpointMismatch(
            f"the checkpoint does not fit this model's configuration: {' '.join(lines[1:4])[:400]}"
        ) from None


def model_state(pipeline_state: Mapping[str, Any]) -> dict[str, Any]:
    """The model's part of a pipeline's state dict, also of one written under DDP.

    Raises:
        CheckpointMismatch: If it holds no model.
    """
    found = {
        key.removeprefix("_model.").removeprefix("module."): value
        for key, value in pipeline_state.items()
        if key.startswith("_model.")
    }
    if not found:
        raise CheckpointMismatch("the checkpoint holds no model (no key starts with _model.)")
    return found
