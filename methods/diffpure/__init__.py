"""DiffPure: diffuse an image a little, then reverse the diffusion. Nie et al. 2022, arXiv 2205.07460."""
