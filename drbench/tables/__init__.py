"""What run folders say, as frames and tables. No torch.

summary      runs as one tidy frame
quantities, halting
             numbers beside the curve; where cascades stop
beside       a section that stands beside the ACR
certified_tables, robust_tables
             Markdown, LaTeX, CSV
pareto       certified accuracy against cost
frames, saving
             rows as named tuples; files of one stem
"""
