"""Networks: hand-made backbones (App. C), the agent with two heads, normalization, MACs."""
