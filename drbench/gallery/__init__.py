"""Pictures of recorded runs, with the text below each.

contents     what a gallery shows
words        its words, from records alone
gathering    what defenses make of images, asked again: the one file with torch
drawing      the figure
"""
