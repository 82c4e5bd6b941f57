"""The plain baseline: a classifier trained on clean images, smoothed or attacked as it is.

Under noise it shows what smoothing gives without any method (Cohen et al. 2019, arXiv 1902.02918, section 3.3).
"""
