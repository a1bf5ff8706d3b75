"""Several runs on the same tokens: one table, Pareto fronts at the measured L0, and what the figures show."""
