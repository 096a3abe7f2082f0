"""Architecture search: what the search learns and how a network is derived from it."""
