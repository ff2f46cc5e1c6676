"""Scenes composed on the fly: what they hold, how they are painted, and their batches."""
