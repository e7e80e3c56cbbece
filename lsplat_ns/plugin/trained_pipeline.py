"""What the pipelines of both systems share: how they are built, trained by a step, and loaded from a checkpoint."""

from dataclasses import dataclass
from typing import Any, Dict, Literal, Mapping, Optional, Tuple

from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from nerfstudio.utils import profiler

from lsplat_ns.plugin.datamanager import LatentSplatDataManager
from lsplat_ns.plugin.loading import model_state
from lsplat_ns.plugin.ranks import unwrapped
from lsplat_ns.plugin.trainer import one_line_errors


@dataclass
class TrainedPipelineConfig(VanillaPipelineConfig):
    """Data and model of a method that is trained on many scenes."""

    def setup(self, **kwargs: Any) -> Any:
        """Build the pipeline; a user error ends the program with one line."""
        with one_line_errors():
            return super().setup(**kwargs)


class TrainedPipeline(VanillaPipeline):
    """nerfstudio's pipeline over many scenes. Its model computes its own losses, and draws by the step's seed."""

    datamanager: LatentSplatDataManager

    def __init__(
        self,
        config: TrainedPipelineConfig,
        device: str,
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        grad_scaler: Optional[Any] = None,
    ) -> None:
        super().__init__(config, device, test_mode, world_size, local_rank, grad_scaler)
        self._model = unwrapped(self._model)
        if test_mode == "val":
            self.model.prepare_training()

    @profiler.time_function
    def get_train_loss_dict(self, step: int) -> Tuple[Dict, Dict, Dict]:
        """Outputs, losses and metrics of one step."""
        batch, skips = self.datamanager.next_train(step)
        outputs = self.model(batch, self.datamanager.stream.noise_seed(step))
        return outputs, outputs["losses"], {**outputs["metrics"], **skips}

    def load_pipeline(self, loaded_state: Dict[str, Any], step: int) -> None:
        """Load a checkpoint strictly.

        Raises:
            SystemExit: With one line, if it does not fit; nerfstudio would silently load what fits.
        """
        with one_line_errors():
            state = {key.removeprefix("module."): value for key, value in loaded_state.items()}
            self.model.update_to_step(step)
            self.load_state_dict(state)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: Optional[bool] = None) -> None:
        """Load the model's part of a checkpoint, also one written under DDP.

        Raises:
            CheckpointMismatch: If keys or shapes differ.
        """
        self.model.load_state_dict(model_state(state_dict))
