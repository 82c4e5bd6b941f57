"""One self-contained HTML page of recorded runs, down to the votes of each image. No torch.

book         the runs of a page, numbered
marks        badges: what to know of a run before its numbers
grid         tables, before they are text
leaderboard, attacked, claimed
             certified accuracy; robust accuracy; claims, and all rows at equal draws
figures      what the interactive figures draw
detail, evidence
             all that a run says about itself; what it observed for each image
gather       all of this, as plain data from run folders
gallery      pictures that `drbench gallery` wrote
render       the page as one file
"""
