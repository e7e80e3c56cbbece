"""What this package adds to nerfstudio. Each module holds specifications and nothing else.

Methods (``ns-train <name>``)

| name               | what                                                                          | needs          |
|--------------------|-------------------------------------------------------------------------------|----------------|
| latentsplat        | the published RealEstate10k model: DINO ViT-B/8, 256x256, GAN from step 125k   | a 40 GB GPU    |
| latentsplat-tiny   | the same code with small networks, 64x64, nothing pretrained                   | a CPU          |

Dataparsers (``ns-train <method> <name>``)

| name        | what                                                     |
|-------------|----------------------------------------------------------|
| re10k-data  | RealEstate10k chunks in pixelSplat's layout, many scenes |
"""
