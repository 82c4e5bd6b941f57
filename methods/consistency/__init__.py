"""Consistency purification: a consistency function in front of a classifier trained on clean images, one call.

Li et al. 2024, "Consistency Purification", arXiv 2407.00623; Song et al. 2023, "Consistency Models", arXiv 2303.01469.
"""
