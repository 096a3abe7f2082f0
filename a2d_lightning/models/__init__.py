"""Networks: hand-designed backbones (App. C), the two-headed agent, normalization, MACs."""
