"""Long runs of disorder: `make soak`."""
