"""The published sizes, held: 73 tokens a burst, 876 a flow, every id within the published table."""

from __future__ import annotations

import pytest

from capture.representations import netfound_layout as layout


def test_a_burst_has_73_tokens_and_a_flow_876():
    assert layout.NetFoundLayout().burst_tokens == 73
    assert layout.NetFoundLayout().flow_tokens == 876


@pytest.mark.parametrize(("protocol", "n_tokens"), [(6, 12), (17, 6), (1, 7), (58, 7), (132, 5)])
def test_a_packet_has_as_many_tokens_as_published(protocol, n_tokens):
    fields = layout.PACKET_FIELDS[layout.protocol_row(protocol)]
    assert len(fields) == len(set(fields)) == n_tokens <= layout.MOST_PACKET_TOKENS


def test_ids_do_not_meet_and_fit_the_table():
    largest_value = layout.FIRST_VALUE + layout.N_VALUES - 1
    special = [layout.PAD, layout.CLS, layout.MASK, layout.END]
    assert len(set(special)) == len(special)
    assert not any(layout.FIRST_VALUE <= token <= largest_value for token in special)
    assert max(*special, largest_value) < layout.VOCABULARY
    assert max(layout.PACKET_FIELDS) < layout.N_PROTOCOL_ROWS
