"""What this package adds to nerfstudio. Each module holds specifications and nothing else.

Methods (``ns-train <name>``)

| name                              | what                                                             | needs       |
|-----------------------------------|------------------------------------------------------------------|-------------|
| latentsplat                       | the published RealEstate10k model at 256x256, GAN from step 125k | a GPU       |
| latentsplat-co3d-hydrant          | the published CO3D model: dataset units, wide target margins     | a GPU       |
| latentsplat-co3d-teddybear        | the same for another category of objects                         | a GPU       |
| latentsplat-co3d-hydrant-kl       | with a KL loss on features, for uncertainty maps                 | a GPU       |
| latentsplat-co3d-teddybear-kl     | the same, gradients clipped at 0.05                              | a GPU       |
| latentsplat-co3d-hydrant-det      | ablation: deterministic features, no GAN                         | a GPU       |
| latentsplat-co3d-hydrant-no-var   | ablation: deterministic features                                 | a GPU       |
| latentsplat-co3d-hydrant-no-gan   | ablation: no GAN                                                 | a GPU       |
| latentsplat-co3d-hydrant-no-skip  | ablation: decoder without skip connections                       | a GPU       |
| latentsplat-co3d-hydrant-no-extra | ablation: skip connections without colour                        | a GPU       |
| latentsplat-co3d-hydrant-no-zero  | ablation: skip connections start at random                       | a GPU       |
| latentsplat-tiny                  | the same code with small networks, 64x64, nothing pretrained     | a CPU       |
| latentsplat-encode                | a capture through the networks of a run, without training        | a run       |
| mvldm                             | MV-LDM as published: generates views, from Stable Diffusion 2.1  | a GPU       |
| mvldm-tiny                        | the same code with small networks, 64x64, nothing pretrained     | a CPU       |
| mvldm-latentsplat                 | generated views as a latentSplat scene, without training         | a run       |

Dataparsers (``ns-train <method> <name>``)

| name        | what                                                     |
|-------------|----------------------------------------------------------|
| re10k-data  | RealEstate10k chunks in pixelSplat's layout, many scenes |
| co3d-data   | CO3D v2 by category; the CO3D methods read their own one |
"""
