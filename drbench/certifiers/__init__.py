"""Certification: `observe` halves (torch) that turn a defense into stored evidence.

The `decide` halves are pure functions in `drbench.stats`.
"""
