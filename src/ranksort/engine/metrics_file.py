"""The log of a run, as a table."""

import csv
import io
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from ..whole_file import replace_file


class MetricsFile(Logger):
    """Write `metrics.csv`: a row each time something is logged, with `epoch`, `step` and everything that was ever logged as columns.

    Checkpoints store the number of rows. A resumed run drops the rows after that, because it logs them again.

    Args:
        path: the file.
        rows: how many of its existing rows to keep; None: all of them.

    Attributes:
        rows: the rows of the file.
    """

    name, version = "", ""

    def __init__(self, path: Path, rows: int | None = 0) -> None:
        super().__init__()
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if rows != 0 and path.is_file():
            read = csv.DictReader(path.read_text(encoding="utf-8", errors="replace").splitlines())
            # A row truncated by a power failure has too few fields.
            whole = [row for row in read if None not in row and None not in row.values()]
            self.rows = whole[:rows]
        self._columns: list[str] = []  # of the file; empty: it has not been written yet

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: `recipe.json` has them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add a row, unless it equals the last one: a step that is followed by a checkpoint is logged twice."""
        row: dict[str, Any] = {**metrics, "step": len(self.rows) if step is None else step}
        if self.rows and row == self.rows[-1]:
            return
        self.rows.append(row)
        if row.keys() <= set(self._columns):
            with self.path.open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        else:
            self._columns = sorted(set().union(*self.rows))
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, self._columns)
            writer.writeheader()
            writer.writerows(self.rows)
            replace_file(self.path, text.getvalue().encode())
