"""What a config may name: attacks and views."""

from drbench.attacks import (
    apgd,
    autoattack_rand,
    cascade,
    crosscheck,
    diffusion,
    fab,
    pgd,
    smoothadv,
    square,
    stadv,
    views,
)

# name -> update rule, see `drbench.attacks.problem`
ATTACKS = {
    "apgd": apgd.apgd,
    "apgd_t": apgd.apgd_t,
    "autoattack_rand": autoattack_rand.autoattack_rand,
    "fab_t": fab.fab_t,
    "noise": pgd.noise,
    "pgd": pgd.pgd,
    "smoothadv": smoothadv.smoothadv,
    "square": square.square,
    "stadv": stadv.stadv,
    "torchattacks": crosscheck.library_attack,
}
# name -> view of a defense at a noise level
VIEWS = {
    "exact": views.Direct,
    "logits": lambda defense, sigma: views.Direct(defense, sigma, surrogate=False),
    "clean": lambda defense, sigma: views.Direct(defense, 0.0, own=sigma == 0),
    "identity": views.Identity,
    "bare": views.Bare,
    "bypass": diffusion.Bypass,
    "deviated": diffusion.Deviated,
    "grafted": diffusion.Grafted,
    "halt1": lambda defense, sigma: cascade.Route(defense, 1),
    "halt2": lambda defense, sigma: cascade.Route(defense, 2),
    "halt3": lambda defense, sigma: cascade.Route(defense, 3),
    "pass": lambda defense, sigma: cascade.Route(defense, None),
}
