"""Adversarial training: a classifier trained on the worst images that projected gradient descent finds near each one.

Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks", arXiv 1706.06083.
"""
