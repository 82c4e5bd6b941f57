"""What run folders say, as figures. No torch, no display.

curves       lines and panels, before anything is drawn
certified_plots, robust_plots
             accuracy against radius, and against eps
share_plot   votes for the right class, over the images
pareto_plot  certified accuracy against cost
saving       files of one stem, in one style
"""
