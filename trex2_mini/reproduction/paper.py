"""The numbers of the paper's tables 1 to 10 (arXiv 2403.14610v1), as data: paper.json beside this file. AP in percent;
None: not given."""

import json
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("paper.json")


@cache
def _tables() -> dict:
    return json.loads(FILE.read_text(encoding="utf-8"))


def paper_table(number: int) -> tuple[list[str], list[list]]:
    """(columns, rows) of a table. Raises ValueError for a number outside 1 to 10."""
    for name, table in _tables().items():
        if name.startswith(f"table{number}_"):
            return list(table["columns"]), [list(row) for row in table["rows"]]
    raise ValueError(f"the paper has tables 1 to 10, got {number!r}")


def paper_number(number: int, column: str, **row) -> float | None:
    """One number: `column` of the row of table `number` in which every given column has the given value.

    Raises ValueError for an unknown column, and unless exactly one row fits.
    """
    columns, rows = paper_table(number)
    if unknown := {column, *row} - set(columns):
        raise ValueError(f"table {number} has no column {sorted(unknown)}; it has {', '.join(columns)}")
    fitting = [own for own in rows if all(own[columns.index(key)] == value for key, value in row.items())]
    if len(fitting) != 1:
        raise ValueError(f"table {number}: expected one row with {row}, found {len(fitting)}")
    return fitting[0][columns.index(column)]
