"""Prompting by hand: the canvas, the studio, and the session that keeps what was drawn."""
