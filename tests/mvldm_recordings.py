"""The recorded runs of MV-LDM, repeated by our code: configurations, weights, and outputs by their recorded names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

import torch
from parity import PARITY, Recording, normal, recording
from torch import Tensor, nn

from lsplat_ns.autoencoder import AutoencoderConfig
from lsplat_ns.diffusion.multiview_unet import MultiViewUNet, MultiViewUNetConfig
from lsplat_ns.diffusion.objective import TrainingDraw
from lsplat_ns.diffusion.ray_maps import RayMapConfig, ray_maps, relative_to
from lsplat_ns.diffusion.sampler import GroupNoise, SamplingConfig
from lsplat_ns.diffusion.schedule import SolverConfig, add_noise, signal_shares, solve
from lsplat_ns.mvldm import MultiViewDiffusion, MultiViewDiffusionConfig
from lsplat_ns.scene import Cameras, SceneBatch, Views

DENOISERS = (
    "mv_unet_small",
    "mv_unet_small_uncond",
    "mv_unet_small_nomid",
    "mv_unet_small_standard",
    "mv_unet_scratch",
    "mv_unet_scratch_cross",
)
SAMPLERS = ("mv_sample_small", "mv_sample_small_nocfg")
RAYS = {
    "raw": RayMapConfig(),
    "plucker": RayMapConfig(moments=True),
    "pe": RayMapConfig("positional"),
    "pe_plucker": RayMapConfig("positional", moments=True),
    "srt": RayMapConfig("srt"),
    "pe_small": RayMapConfig("positional", origin_octaves=3, direction_octaves=2),
}


def denoiser_config(meta: dict) -> MultiViewUNetConfig:
    """The configuration of a recorded denoiser."""
    recorded, unet = meta["config_model"]["denoiser"], meta["unet_config"]
    channels = tuple(unet["block_out_channels"])
    kinds = {"spatial_transformer_3d": "spatial", "standard": "standard"}
    shared = {
        "block_out_channels": channels,
        "multiview": kinds[recorded["multi_view_attention"]["name"]],
        "multiview_places": tuple(p for p in ("encoder", "mid", "decoder") if recorded[f"{p}_conditioning"]),
    }
    if recorded["pretrained_from"] is not None:  # Stable Diffusion's own configuration
        return MultiViewUNetConfig(attention_heads=tuple(unet["attention_head_dim"]), **shared)
    blocks = recorded["autoencoder"]
    attends = tuple(name.startswith("CrossAttn") for name in blocks["down_block_types"])
    return MultiViewUNetConfig(
        image_attention=attends,
        mid_attention=blocks["mid_block_type"] == "UNetMidBlock2DCrossAttn",
        up_attention=any(attends),
        attention_heads=(8,) * len(channels),
        linear_projections=False,
        text_channels=channels,
        **shared,
    )


def diffusion_config(meta: dict) -> MultiViewDiffusionConfig:
    """The configuration of a recorded denoiser and autoencoder."""
    vae = meta["vae_config"]
    autoencoder = AutoencoderConfig(
        block_out_channels=tuple(vae["block_out_channels"]),
        layers_per_block=vae["layers_per_block"],
        norm_groups=vae["norm_num_groups"],
        skip_connections=False,
    )
    return MultiViewDiffusionConfig(denoiser=denoiser_config(meta), autoencoder=autoencoder)


def recorded_state(case: Recording, part: str, strip: str, config: MultiViewUNetConfig) -> dict[str, Tensor]:
    """Recorded weights, without those of the transformers that the original stores but never runs."""
    entries = case.meta["state_dict"][part]
    if not config.up_attention:
        entries = [entry for entry in entries if not re.search(r"up_blocks\.\d+\.attentions\.", entry[0])]
    return replace(case, meta={"state_dict": {part: entries}}).state(part, strip)


def filled(build: Callable[[], nn.Module], state: dict[str, Tensor]) -> nn.Module:
    """A module made of the given weights, strictly, in eval mode."""
    with torch.device("meta"):
        module = build()
    module.load_state_dict(state, assign=True)
    return module.eval()


@cache
def loaded_denoiser(name: str) -> tuple[Recording, MultiViewUNet]:
    case = recording(name)
    config = denoiser_config(case.meta)
    state = recorded_state(case, "denoiser", "denoiser.", config)
    return case, filled(lambda: MultiViewUNet(config, 11, 4), state)


def build_model(name: str) -> tuple[Recording, MultiViewDiffusion]:
    case = recording(name)
    config = diffusion_config(case.meta if "vae_config" in case.meta else recording("mv_sample_small").meta)
    state = recorded_state(case, "wrapper", "", config.denoiser)
    state = {key.replace("autoencoder.", "autoencoder.model.", 1): value for key, value in state.items()}
    return case, filled(lambda: MultiViewDiffusion(config), state)


loaded_model = cache(build_model)


def cameras_of(case: Recording) -> Cameras:
    poses = case.input("extrinsics")
    ones = torch.ones(poses.shape[:2])
    return Cameras(poses, case.input("intrinsics"), ones, 100 * ones)


def split_views(case: Recording) -> tuple[Views, Views]:
    """Recorded context and target views."""
    count, image = int(case.inputs["num_context"]), case.images()
    views = Views(image, cameras_of(case), torch.arange(image.shape[1]).expand(image.shape[:2]))
    return views.select(slice(0, count)), views.select(slice(count, None))


def relative_pose_outputs(case: Recording) -> dict[str, Tensor]:
    cameras = cameras_of(case)
    return {f"absolute_to_relative/{r}": relative_to(cameras, r).world_from_camera for r in (0, 1, 4)}


def ray_outputs(case: Recording) -> dict[str, Tensor]:
    cameras = cameras_of(case)
    maps = {f"ray_encode/{name}": ray_maps(cameras, (6, 8), config) for name, config in RAYS.items()}
    return {**maps, "ray_encode/raw_relative0": ray_maps(relative_to(cameras, 0), (6, 8), RayMapConfig())}


def schedule_outputs(case: Recording) -> dict[str, Tensor]:
    """Shares of signal, noise added, and whole runs of DDIM with the recorded stand-in for a network."""
    x, noise = case.input("x"), case.input("eps")
    outputs = {"alphas_cumprod": signal_shares()}
    for steps in (5, 50, 70):
        path = list(solve(lambda latents, _: 0.1 * noise + 0.05 * latents, x, SolverConfig(steps=steps)))
        outputs[f"trajectory/{steps}"] = path[-1]
    outputs["add_noise"] = add_noise(x, noise, torch.tensor([10, 900]))
    return outputs


def run_denoiser(case: Recording, denoiser: MultiViewUNet) -> dict[str, Tensor]:
    """The output of a denoiser, and its stages, by their recorded names."""
    images, timesteps = case.input("latents"), case.input("timesteps")
    shape = images.shape[:2]
    if timesteps.ndim == 1:
        timesteps = timesteps[:, None].expand(shape)
    stages, hooks = {}, []

    def note(module: nn.Module, name: str, views: bool) -> None:
        def hook(_: nn.Module, inputs: tuple, output: Tensor) -> None:
            if views:
                stages[f"stage/mv_attn_in/{name}"] = inputs[0].unflatten(0, shape)
                stages[f"stage/mv_attn/{name}"] = output.unflatten(0, shape)
            else:
                stages[f"stage/{name}"] = output

        hooks.append(module.register_forward_hook(hook))

    note(denoiser.unet.conv_in, "conv_in", False)
    note(denoiser.unet.time_embedding, "time_embedding", False)
    for place in ("encoder", "mid", "decoder"):
        for level, block in enumerate(getattr(denoiser, f"cross_attn_blocks_{place}")):
            note(block, f"{place}_{level}", True)
    with torch.no_grad():
        out = denoiser(images.flatten(0, 1), timesteps.flatten(), (tuple(shape),)).unflatten(0, shape)
    for hook in hooks:
        hook.remove()
    return {"out": out, **stages}


def run_sampler(case: Recording, model: MultiViewDiffusion) -> dict[str, Tensor]:
    """A whole sampling run of five steps: latents of the context and of each step, and images."""
    context, targets = split_views(case)
    guidance = 3.0 if case.meta["config_model"]["use_cfg"] else 1.0
    noise = GroupNoise(case.input("noise_0").unflatten(0, (1, -1)), case.input("noise_1"))
    steps = []
    capture = model.denoiser.register_forward_pre_hook(lambda _, inputs: steps.append(inputs[0]))
    images = model.sample(context, targets.cameras, noise, SamplingConfig(SolverConfig(steps=5), guidance))
    capture.remove()
    known, wanted = context.frame.shape[1], targets.frame.shape[1]
    outputs = {"context_latents": steps[0][None, :known, :4], "images": images}
    outputs["relative_extrinsics"] = relative_to(cameras_of(case), 0).world_from_camera
    return outputs | {f"x_t/{i}": x[None, known : known + wanted, :4] for i, x in enumerate(steps)}


@cache
def full_size_outputs() -> tuple[tuple[Recording, dict[str, Tensor]], ...]:
    """The published denoiser, then a whole run of the published model. Weights take 4 GB and are not kept."""
    denoised, (sampled, model) = recording("mv_unet_full_16"), build_model("mv_sample_full_128")
    return (denoised, run_denoiser(denoised, model.denoiser)), (sampled, run_sampler(sampled, model))


def training_draw(case: Recording, row: dict) -> TrainingDraw:
    """The recorded random choices of a training step: torch's generator is replayed, the noise follows the rule."""
    seed = row["seed"]
    generator = torch.Generator().manual_seed(seed)
    kept = int(torch.randint(1, 3, (1,), generator=generator))
    index = int(torch.randint(0, 2, (1,), generator=generator))
    timesteps = torch.randint(0, 1000, (2,), generator=generator)
    assert timesteps.tolist() == [levels[-1] for levels in row["timesteps"]]
    shapes = [tuple(shape) for _, shape in row["noise_calls"]]
    encoding, target = (normal(f"{case.name}:{seed}:randn:{i}", shape) for i, shape in enumerate(shapes))
    return TrainingDraw(
        views=(0, 1, 2, 3, 4) if kept == 2 else (index, 2, 3, 4, 1 - index),
        context_count=kept,
        reference=None if row["absolute_poses"] else index,  # of the second view alone, this is the first target
        drop_context=row["unconditional"],
        timesteps=timesteps,
        encoding_noise=encoding.unflatten(0, (2, 5)),
        target_noise=target,
    )


def training_outputs(case: Recording, model: MultiViewDiffusion) -> dict[str, Tensor]:
    """Losses of all recorded training steps, and what the denoiser was given."""
    batch = SceneBatch(*split_views(case), ("a", "b"))
    outputs, given = {}, []
    capture = model.denoiser.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    for row in case.meta["rows"]:
        with torch.no_grad():
            outputs[f"seed{row['seed']}/loss"] = model.training_loss(batch, training_draw(case, row))
        outputs[f"seed{row['seed']}/denoiser_input"] = given[-1].unflatten(0, (2, -1))
    capture.remove()
    recorded = {key.split("@")[0] for key in case.outputs}
    return {key: value for key, value in outputs.items() if key in recorded}


def recorded_plans() -> list[dict]:
    """What the original generated of sequences of many lengths."""
    recording("mv_schedule")
    return json.loads((PARITY / "golden" / "mv_schedule" / "schedule.json").read_text())


def comparisons() -> Iterator[tuple[Recording, str, dict[str, Tensor], float]]:
    """Everything that is compared: recording, stage, outputs by recorded names, and the limit."""
    case = recording("mv_rays")
    yield case, "relative poses", relative_pose_outputs(case), 1e-6
    yield case, "ray maps in every mode", ray_outputs(case), 1e-6
    case = recording("mv_scheduler")
    yield case, "noise schedule, DDIM runs of 5, 50 and 70 steps", schedule_outputs(case), 1e-6
    runs = [(case, run_denoiser(case, denoiser)) for case, denoiser in map(loaded_denoiser, DENOISERS)]
    runs += [(case, run_sampler(case, model)) for case, model in map(loaded_model, SAMPLERS)]
    for case, outputs in (*runs, *full_size_outputs()):
        is_run = "images" in outputs
        final = "images" if is_run else "out"
        stages = {name: value for name, value in outputs.items() if name != final}
        yield case, "latents of every step" if is_run else "stages of the denoiser", stages, 1e-4
        yield case, "generated images" if is_run else "predicted noise", {final: outputs[final]}, 1e-4
    case, model = loaded_model("mv_training_step")
    outputs = training_outputs(case, model)
    for ending, stage in (("denoiser_input", "inputs of the denoiser"), ("loss", "losses of training steps")):
        yield case, stage, {name: value for name, value in outputs.items() if name.endswith(ending)}, 1e-5
