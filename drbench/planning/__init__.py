"""What work will cost, before it is done.

plan             of a sweep, measured
attack_planning  of its attacks
first_calls      of a draw that takes too long to be timed whole
effort           on a GPU, from counted operations
"""
