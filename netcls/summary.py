"""``--summary``: flows, packets and bytes of each label."""

from __future__ import annotations

import json
from typing import Any, Final

import numpy as np

from netcls.event_batch import EventBatch
from netcls.formats import EventWriter, csv_text, refuse_terminal
from netcls.output import Output

_COLUMNS: Final = ("label", "flows", "packets", "bytes")


class SummaryWriter(EventWriter):
    """Adds up the events instead of writing them; writes one row a label at the end, most flows first.

    Args:
        name: one of :data:`netcls.formats.FORMATS`.
        output: where to.
    """

    def __init__(self, name: str, output: Output) -> None:
        if name == "parquet":
            from netcls.arrow import require_pyarrow

            refuse_terminal(output, name)
            require_pyarrow()
        self._name = name
        self._output = output
        self._sums: dict[str, list[int]] = {}

    def write(self, batch: EventBatch) -> None:
        """Add the events of a batch."""
        answers = batch.answers
        if answers is None:
            raise ValueError("a summary needs labels; this batch has no answers")
        packets = batch.records["packets"].sum(axis=1)
        frame_bytes = batch.records["frame_bytes"].sum(axis=1)
        label_index = np.where(answers.unknown, -1, answers.label_index)
        for index in np.unique(label_index).tolist():
            rows = label_index == index
            sums = self._sums.setdefault(answers.model.labels[index] if index >= 0 else "unknown", [0, 0, 0])
            for i, n in enumerate((rows.sum(), packets[rows].sum(), frame_bytes[rows].sum())):
                sums[i] += int(n)

    def finish(self) -> None:
        """Write the rows."""
        order = sorted(self._sums.items(), key=lambda item: (-item[1][0], item[0]))
        rows = [dict(zip(_COLUMNS, (label, *sums), strict=True)) for label, sums in order]
        if self._name == "jsonl":
            lines = (json.dumps({"event_type": "summary"} | row, ensure_ascii=False) for row in rows)
            self._output.write("".join(f"{line}\n" for line in lines).encode())
        elif self._name == "csv":
            self._output.write(csv_text(_COLUMNS, rows))
        elif self._name == "parquet":
            self._write_parquet(rows)
        else:
            self._write_table(rows)

    def _write_parquet(self, rows: list[dict[str, Any]]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        types = [pa.string(), pa.int64(), pa.int64(), pa.int64()]
        schema = pa.schema(list(zip(_COLUMNS, types, strict=True)))
        parquet.write_table(pa.Table.from_pylist(rows, schema), self._output)

    def _write_table(self, rows: list[dict[str, Any]]) -> None:
        from netcls.table import table_text

        columns = ("label", ">flows", ">packets", ">bytes")
        cells = [[str(value) for value in row.values()] for row in rows]
        self._output.write(table_text(columns, cells, on_terminal=self._output.is_terminal).encode())
