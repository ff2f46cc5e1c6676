"""The loop, one iteration, what an iteration asks for, and the batches it is made of."""
