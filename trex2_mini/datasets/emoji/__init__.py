"""The embedded benchmark: its sets, styles, worlds and formats."""
