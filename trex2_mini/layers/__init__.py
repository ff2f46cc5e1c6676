"""Building blocks that know nothing of T-Rex2."""
