"""Adaptive attacks: update rules over one gradient oracle, judged and evaluated on randomness they never saw.

threat     which perturbations are allowed: projection, steps, random starts, repair
losses     what an attack maximises, from the logits of several draws
views      what the attacker differentiates
oracle     mean loss, gradient and failures over draws, in one batched call
problem    images under attack: the oracle with its keys, its cost, and parts of the batch
evaluate   the deployed decision rule on fresh randomness
apgd, pgd, fab, square, smoothadv, stadv, autoattack_rand, crosscheck
           update rules: candidates for each image
flow       images moved by a flow field, the perturbation of stadv
cascade, diffusion
           more views: the deployed cascade, purification, diffusion classifiers
names      what a config may name
presets    named lists of attacks
suite      which attacks, in which order, and which of their examples is kept
lockstep   attacks that run at the same time and share calls
parallel   attacks side by side, on the CPU one a core
audit, outcomes, probes
           signs that an attack was too weak or was misled
"""
