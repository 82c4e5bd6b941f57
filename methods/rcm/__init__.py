"""RCM: one time-conditioned ViT, pre-trained along noising paths, tuned for each noise level; a single pass per draw.

Lei et al. 2025, "Robust representation consistency model via contrastive denoising", ICLR 2025, arXiv 2501.13094.
"""
