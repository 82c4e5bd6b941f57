"""The diffusion classifier (DC), with likelihood maximisation (RDC), and its noised forms for certificates (NDC).

Chen et al. 2024, "Robust classification via a single diffusion model", ICML, arXiv 2305.15241; Chen et al. 2024,
"Diffusion models are certifiably robust classifiers", NeurIPS, arXiv 2402.02316.
"""
