"""The checks behind `drbench.testing`: what makes an adapter's certificates and attacks mean something.

A check is a function of a `Case` (an adapter at one input size). It builds a fresh miniature and returns if
all is well. Otherwise it raises `Failure`, whose message says what was expected, what came and what to do, or
`Skip` if the declarations leave nothing to check.

case         what a check receives and raises, and how it calls an adapter
calls        one call of `logits`: values, state, randomness, rows
slopes       the function that an attacker differentiates
engines      what the engines do with an adapter: certify, train
adapter      constructor, declarations, cost, storage, devices, documents
"""
