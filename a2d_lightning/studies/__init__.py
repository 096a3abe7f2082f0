"""Studies: many small runs, a table of their scores, and statistics of how well searches rank the networks."""
