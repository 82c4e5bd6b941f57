"""Multi-scale denoised smoothing: one-shot denoiser and clean classifier, certified by a cascade over noise levels.

Jeong and Shin 2023, "Multi-scale diffusion denoised smoothing", arXiv 2310.16779.
"""
