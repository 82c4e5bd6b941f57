"""Gaussian noise augmentation: one classifier per noise level, trained under that noise.

Cohen, Rosenfeld, Kolter 2019, "Certified adversarial robustness via randomized smoothing", arXiv 1902.02918.
"""
