"""The paper's training data: readers of the official files (each yields `Row`s) and an index that millions fit in."""
