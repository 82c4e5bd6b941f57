"""Certification: `observe` halves (torch) that turn a defense into stored evidence.

The `decide` halves are pure functions in `drbench.stats`.

noise        noisy copies of images
engine       their votes, in full batches
gaussian, adaptive
             votes at one noise level; the same, looked at before the budget ends
cascade      votes at several levels, from the largest down
lipschitz    logits of the clean image
kinds        which of these the header of a run asks for
batching, batch_size
             rows of a batch, halved when memory runs out; how many, measured
"""
