"""Studies: many small runs, the table of their scores, and how well a search ranks them."""
