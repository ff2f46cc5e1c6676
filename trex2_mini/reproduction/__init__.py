"""The paper's numbers, its claims as inequalities, ablations, scorecards, and the notebooks as a batch."""
