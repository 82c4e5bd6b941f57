"""What run folders say, as figures. No torch, no display.

curves       lines and panels, before anything is drawn
looks        colour, dash and symbol of a method, the same everywhere
headline     the line above the panels
certified_plots, robust_plots
             accuracy against radius, and against eps
share_plot   votes for the right class, over the images
pareto_plot  certified accuracy against cost
saving       files of one stem, in one style
"""
