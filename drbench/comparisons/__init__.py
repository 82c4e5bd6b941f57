"""One run against another: paired statistics, claims of papers, all methods side by side. No torch.

sides        which runs stand for a row
per_image    one number for each image of a run
thinning     what a recorded run would have told with fewer draws
paired, paired_stats
             differences on the same images, with intervals and tests
compare      two defenses, radius by radius
claims, claim_tables
             what papers claim, with verdicts
head_to_head, head_to_head_tables
             all methods on the same images
cost_factors, lineage
             how much cheaper a draw is; what weights cost to train
"""
