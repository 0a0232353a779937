"""What a model sees of each flow: tokens, with the flow they were made of."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from capture.decode import DecodeOptions, Decoder
from capture.flow_batch import EndReason, FlowBatch
from capture.flow_table import FlowTable, FlowTableConfig
from capture.readers import open_capture
from capture.representations import Representation, TokenBatch, build, representation_id
from netcls.event import as_dict, events_of
from netcls.event_batch import EventBatch
from netcls.formats import refuse_terminal
from netcls.output import Output

_ROW_GROUP_FLOWS: Final = 10_000


def representation_of(model: str) -> Representation:
    """The representation that a checkpoint was trained with. Its weights are not loaded.

    Raises:
        CheckpointError: if there is no such checkpoint, or it is damaged.
    """
    from models.checkpoint import read_files, resolve_name

    files = read_files(resolve_name(model))
    return build(files.representation, files.representation_settings)


def tokens_of_capture(
    path: str,
    representation: Representation,
    config: FlowTableConfig,
    *,
    decode_options: DecodeOptions | None = None,
    strict: bool = False,
) -> Iterator[tuple[FlowBatch, TokenBatch]]:
    """Flows as they were when they were ready, with their tokens, row for row.

    Raises:
        CaptureError: if the capture cannot be read.
    """
    table = FlowTable(config, representation.keep)
    decoder = Decoder(decode_options)
    with open_capture(path, strict=strict) as reader:
        for block in reader:
            for step in table.push(block, decoder.decode(block)):
                if len(step.ready):
                    yield step.ready, representation.tokenize(step.ready)
    for step in table.flush(EndReason.FORCED):
        if len(step.ready):
            yield step.ready, representation.tokenize(step.ready)


class TokenWriter(Protocol):
    """Takes the tokens of captures, batch by batch."""

    def write(self, path: str, flows: FlowBatch, tokens: TokenBatch) -> None:
        """Take the flows of a batch with their tokens, row for row; ``path`` names their capture."""

    def finish(self) -> None:
        """End what needs an end."""


def token_writer(name: str, output: Output, representation: Representation) -> TokenWriter:
    """The writer of ``jsonl``, ``npz`` or ``parquet``.

    Raises:
        UsageError: if the format cannot go there, or its library is missing.
    """
    if name == "jsonl":
        return TokensAsJsonLines(output, representation)
    refuse_terminal(output, name)
    return TokensAsNumpy(output, representation) if name == "npz" else TokensAsParquet(output, representation)


class TokensAsJsonLines:
    """One object a flow: its key, and each token array in hexadecimal (bytes) or as numbers."""

    def __init__(self, output: Output, representation: Representation) -> None:
        self._output = output
        self._name = representation_id(representation)

    def write(self, path: str, flows: FlowBatch, tokens: TokenBatch) -> None:
        """One line a flow."""
        arrays = tokens.arrays.items()
        for row, event in enumerate(events_of(EventBatch(path, flows.records))):
            plain = as_dict(event)
            plain["event_type"] = "tokens"
            del plain["flow"], plain["netcls"]
            plain["tokens"] = {
                "representation": self._name,
                "packets_used": int(tokens.packets_used[row]),
            } | {name: _row_text(array[row]) for name, array in arrays}
            self._output.write(json.dumps(plain, separators=(",", ":")).encode() + b"\n")
        self._output.flush()

    def finish(self) -> None:
        """Nothing."""


class TokensAsNumpy:
    """One .npz: ``flow_id``, ``packets_used`` and every token array, F rows each; all are held until the end."""

    def __init__(self, output: Output, representation: Representation) -> None:
        self._output = output
        # An empty batch gives the arrays their dtype and shape where there is no flow at all.
        no_flows = _no_flows(representation)
        self._columns = {name: [column] for name, column in _columns(*no_flows).items()}

    def write(self, path: str, flows: FlowBatch, tokens: TokenBatch) -> None:
        """Keep the rows; ``path`` is not part of the arrays."""
        del path
        for name, column in _columns(flows, tokens).items():
            self._columns[name].append(column)

    def finish(self) -> None:
        """Write the archive."""
        with zipfile.ZipFile(self._output, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, columns in self._columns.items():
                member = io.BytesIO()
                np.lib.format.write_array(member, np.concatenate(columns), allow_pickle=False)
                archive.writestr(f"{name}.npy", member.getbuffer())


class TokensAsParquet:
    """Columns ``pcap_filename``, ``flow_id``, ``packets_used``, and a list of numbers for every token array."""

    def __init__(self, output: Output, representation: Representation) -> None:
        from netcls.arrow import RowGroups, require_pyarrow

        require_pyarrow()
        schema = _parquet_batch("", *_no_flows(representation)).schema
        self._groups = RowGroups(output, schema, _ROW_GROUP_FLOWS)

    def write(self, path: str, flows: FlowBatch, tokens: TokenBatch) -> None:
        """Take the rows; a row group is written when it is full."""
        self._groups.write(_parquet_batch(path, flows, tokens))

    def finish(self) -> None:
        """Write the last rows and the footer."""
        self._groups.close()


def _parquet_batch(path: str, flows: FlowBatch, tokens: TokenBatch) -> Any:
    import pyarrow as pa

    columns = {"pcap_filename": pa.array([path] * len(tokens), pa.string())}
    for name, column in _columns(flows, tokens).items():
        if column.ndim == 1:
            columns[name] = pa.array(column)
        else:
            n_values = int(np.prod(column.shape[1:]))
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(column.reshape(-1)), n_values)
    return pa.RecordBatch.from_pydict(columns)


def _columns(flows: FlowBatch, tokens: TokenBatch) -> dict[str, NDArray[Any]]:
    return {"flow_id": flows.records["flow_id"], "packets_used": tokens.packets_used, **tokens.arrays}


def _no_flows(representation: Representation) -> tuple[FlowBatch, TokenBatch]:
    from capture.flow_batch import FLOW_DTYPE, PACKET_DTYPE

    keep = representation.keep
    flows = FlowBatch(
        np.zeros(0, FLOW_DTYPE),
        np.zeros((0, keep.n_packets), PACKET_DTYPE),
        np.zeros((0, keep.n_byte_packets, keep.row_bytes), np.uint8),
    )
    return flows, representation.tokenize(flows)


def _row_text(row: NDArray[Any]) -> Any:
    return row.tobytes().hex() if row.dtype == np.uint8 else row.tolist()
