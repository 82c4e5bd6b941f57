"""The floor of every table: a classifier that ignores the image.

It is certified everywhere (up to the ceiling radius) and right for one class only: the degenerate case that average
certified radius rewards (Sun et al. 2024, arXiv 2410.06895).
"""
