"""Tables of results: pandas DataFrames, and how they are written as Markdown."""

import pandas as pd
from tabulate import tabulate


def as_markdown(table: pd.DataFrame, numbers: str = ".4g") -> str:
    """A table for a Markdown page or a terminal: `numbers` is the format of floats; what is missing stays empty."""
    rows = [
        [None if pd.isna(value) else value.replace("|", "/") if isinstance(value, str) else value for value in row]
        for row in table.itertuples(index=False)
    ]
    return tabulate(rows, list(table.columns), tablefmt="pipe", floatfmt=numbers, missingval="") + "\n"
