"""Our experiments beside their peers: the same sums, timed in one run."""
