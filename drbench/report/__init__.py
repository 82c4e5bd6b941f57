"""One self-contained HTML page of recorded runs, down to the votes of each image. No torch.

`gather` collects plain data from run folders, `render` writes them into the page.
"""
