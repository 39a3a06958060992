"""Training: objectives that return sums, one step that divides them once, and checkpoints that survive a kill."""
