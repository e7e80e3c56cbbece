"""The paper's ablations, on CO3D hydrants: each leaves one idea out."""

from lsplat_ns.plugin.recipes import NO_GAN, NO_VAR, co3d_trainer, variant

full_model = co3d_trainer("latentsplat-co3d-hydrant")

latentsplat_co3d_hydrant_det = variant(
    full_model,
    "latentsplat-co3d-hydrant-det",
    "Ablation: a deterministic model, without distributions and without adversarial losses.",
    {**NO_VAR, **NO_GAN},
)

latentsplat_co3d_hydrant_no_var = variant(
    full_model,
    "latentsplat-co3d-hydrant-no-var",
    "Ablation: plain features per Gaussian instead of distributions.",
    NO_VAR,
)

latentsplat_co3d_hydrant_no_gan = variant(
    full_model,
    "latentsplat-co3d-hydrant-no-gan",
    "Ablation: no adversarial losses.",
    NO_GAN,
)

latentsplat_co3d_hydrant_no_skip = variant(
    full_model,
    "latentsplat-co3d-hydrant-no-skip",
    "Ablation: the decoder sees the downsampled latents only.",
    # Differs from upstream: its experiment of this name keeps the skip connections by mistake.
    {"pipeline.model.network.autoencoder.skip_connections": False},
)

latentsplat_co3d_hydrant_no_extra = variant(
    full_model,
    "latentsplat-co3d-hydrant-no-extra",
    "Ablation: skip connections carry latents, but not the splatted colour.",
    {"pipeline.model.network.autoencoder.skip_extra": False},
)

latentsplat_co3d_hydrant_no_zero = variant(
    full_model,
    "latentsplat-co3d-hydrant-no-zero",
    "Ablation: skip connections start from random weights instead of zero.",
    {"pipeline.model.network.autoencoder.skip_zero": False},
)
