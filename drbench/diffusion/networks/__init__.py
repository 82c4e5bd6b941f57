"""Raw networks: modules called as `network(x, c_noise, labels) -> tensor` that know nothing of noise levels.

`drbench.diffusion.precond` turns them into denoisers.
"""
