"""What does the work of benchmark files: from a resolved config to rows of evidence in a run folder.

runner       the cells of benchmark files, one after the other
certify_job, attack_job, audit_job
             what a cell of each task observes
needs        what a run lacks, and what brings it
worker       one worker's share of a certification
header       what run.json says
build        images, device and defense of a config
restricted, stated
             classes that may be answered; what converted weights say of their network
execution    precision, compilation, CUDA graphs
fitting      `drbench train`
listeners    who is told how it goes
"""
