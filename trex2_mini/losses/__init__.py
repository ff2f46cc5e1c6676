"""Matching and losses (spec section 2 and 3)."""
