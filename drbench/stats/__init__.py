"""Statistics of certification: exact binomial bounds, radii, curves and intervals. numpy and scipy only.

Everything here is a pure function of counts, so each table can be recomputed from stored evidence, for another alpha
or another formula, without torch.

binomial     exact limits and tests of a share
radii        what votes under noise certify, and what n votes can certify at most
gaussian, cascade
             certificates from votes, at one noise level and at several
decisions    from evidence to a certificate, as the header of a run says
averages     curves, average radii and their intervals over the images
noises       smoothing distributions
sequential   tests that may be looked at at any time
stopping     when an image has been drawn often enough
robustness   robust accuracy from the answers of attacked images
"""

# ruff: noqa: F401  (this file hands names on)

from drbench.stats.averages import Curve, average_certified_radius, bootstrap_mean, certified_accuracy, share_interval
from drbench.stats.binomial import (
    cp_lower,
    cp_upper,
    hypergeometric,
    interval,
    paired_interval,
    randomized_upper,
    sign_test,
)
from drbench.stats.cascade import (
    PROTOCOLS,
    Empirical,
    cascade_level,
    check_cascade,
    decide_cascade,
    empirical,
    goodman_upper,
    passes,
)
from drbench.stats.decisions import (
    DECISIONS,
    VERSIONS,
    check_reach,
    conclusion,
    decide,
    decide_as,
    decide_lipschitz,
    levels,
    noise,
    norm,
    reach,
)
from drbench.stats.gaussian import MODES, decide_gaussian, predict, top_class, vote_share
from drbench.stats.radii import ceiling_radius, check_budget, gaussian_radius, multiclass_radius, smallest_votes
