"""What papers printed, beside what is measured here.

published    printed numbers, and the runs that stand beside them
measured     what a run measures of them
reproduce    `drbench reproduce`: the table of a paper
"""
