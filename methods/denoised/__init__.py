"""Denoised smoothing: one diffusion denoiser for all noise levels in front of a classifier trained on clean images.

Carlini et al. 2023, "(Certified!!) adversarial robustness for free!", arXiv 2206.10550 (one shot), with the
probability-flow ODE (Karras et al. 2022, arXiv 2206.00364) and DensePure (Xiao et al. 2022, arXiv 2211.00322) as
options.
"""
