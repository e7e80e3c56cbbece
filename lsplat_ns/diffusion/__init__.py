"""MV-LDM's parts: noise schedule, ray maps, the multi-view denoiser, guidance, view plans, sampling and its loss."""
