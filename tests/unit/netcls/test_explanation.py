"""An explanation names what the answer really rests on, and says when it cannot be trusted."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from capture.errors import DataError, UsageError
from capture.representations import REPRESENTATIONS, build
from capture.representations.base import TokenBatch
from capture.representations.packets import FLAGS
from capture.representations.places import FIELDS, NOWHERE, field_number
from models.checkpoint import Calibration, Checkpoint, save_checkpoint
from models.families import family
from netcls.cli.main import main
from netcls.explaining import explain_flow
from netcls.explanation import ExplainOptions, Explanation, explain
from netcls.flow_choice import ChosenFlow, FlowChoice, choose_flow
from tests.pcap_writer import ACK, START_S, SYN, icmp_echo, tcp, udp_flow, write_pcap

SETTINGS = {"n_packets": 4, "header_bytes": 44, "payload_bytes": 4, "stride": 4}
CLIENT, SERVER = "10.0.0.1", "10.9.0.1"


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Flow 0: TCP, three packets. Flows 1 to 9: UDP. Flow 10: ICMP."""
    packets = [
        (START_S, tcp(CLIENT, 4000, SERVER, 80, SYN)),
        (START_S + 0.01, tcp(SERVER, 80, CLIENT, 4000, SYN | ACK)),
        (START_S + 0.02, tcp(CLIENT, 4000, SERVER, 80, ACK, b"abcdefgh")),
    ]
    for number in range(9):
        packets += udp_flow(
            CLIENT, 3000 + number, [20 + number, 2], start_s=START_S + 1 + number, fill=number + 1
        )
    packets.append((START_S + 20, icmp_echo(CLIENT, SERVER)))
    return write_pcap(tmp_path_factory.mktemp("explain") / "mixed.pcap", packets)


@pytest.fixture(scope="module")
def chosen(capture: Path) -> ChosenFlow:
    return choose_flow(str(capture), build("netmamba", SETTINGS), FlowChoice(index=0))


def windows(places: Any) -> Any:
    return places["bytes"].field[0] == field_number("tcp_window")


def planted(chosen: ChosenFlow, **options: Any) -> Explanation:
    """A model that looks at the TCP windows and at nothing else; every other byte is noise."""
    places = build("netmamba", SETTINGS).token_places(chosen.flow)
    at = windows(places)
    rng = np.random.default_rng(0)
    own, others = (rng.integers(0, 256, (n, at.size), dtype=np.uint8) for n in (1, 12))
    own[:, at], others[:, at] = 250, 10

    def logits(tokens: TokenBatch) -> Any:
        sums = tokens.arrays["bytes"][:, at].sum(axis=1, dtype=float)
        return np.stack([np.zeros(len(sums)), 0.01 * sums - 7.0], axis=1)

    def batch(rows: Any) -> TokenBatch:
        return TokenBatch({"bytes": rows}, np.full(len(rows), 3, np.uint16))

    return explain(batch(own), places, batch(others), 1, logits, ExplainOptions(**options))


def test_a_model_that_looks_at_one_field_is_explained_by_that_field_alone(chosen: ChosenFlow) -> None:
    said = planted(chosen)
    assert said.fields[0].field == "tcp_window"
    assert said.fields[0].effect > 10
    assert said.fields[0].probability < 0.01 < 0.99 < said.probability
    assert [part.effect for part in said.fields[1:]] == [0.0] * (len(said.fields) - 1)
    assert {(part.packet, part.field) for part in said.parts if part.effect} == {
        (packet, "tcp_window") for packet in (1, 2, 3)
    }
    assert sorted(part.packet or 0 for part in said.packets) == [1, 2, 3]
    assert all(part.effect > 3 for part in said.packets)


def test_deletion_and_insertion_of_what_counts_beat_every_random_order(chosen: ChosenFlow) -> None:
    said = planted(chosen)
    assert said.deletion is not None
    assert said.insertion is not None
    assert said.deletion.area < min(said.deletion.random_areas)
    assert said.insertion.area > max(said.insertion.random_areas)
    assert said.faithful.startswith("Faithful: better than all 8 random orders; deletion area 0.")
    assert (said.deletion.share[0], said.deletion.share[-1]) == (0.0, 1.0)
    assert said.deletion.probability[0] == pytest.approx(said.probability)
    assert said.deletion.probability[-1] == pytest.approx(said.baseline_probability)
    assert said.insertion.probability[-1] == pytest.approx(said.probability)


def test_the_work_is_bounded_and_counted(chosen: ChosenFlow) -> None:
    small = planted(chosen, donors=2, curve_donors=1, steps=3, orders=2)
    n_units = len(small.packets) + len(small.fields) + len(small.parts)
    assert small.donors == 2
    # Three times the flow itself, the donors, each unit with each donor, two curves of 4 points along 3 orders.
    assert small.asked <= 4 + 2 + 2 * n_units + 2 * 4 * 3


def test_the_same_seed_gives_the_same_account(chosen: ChosenFlow) -> None:
    assert planted(chosen) == planted(chosen)
    assert planted(chosen).deletion != planted(chosen, seed=1).deletion


def test_where_nothing_differs_from_other_flows_nothing_is_claimed(chosen: ChosenFlow) -> None:
    places = build("netmamba", SETTINGS).token_places(chosen.flow)
    said = explain(chosen.tokens, places, chosen.tokens, 0, lambda tokens: np.zeros((len(tokens), 2)))
    assert all(part.effect == 0 for part in said.parts)
    assert said.deletion is None
    assert said.faithful.startswith("Cannot be judged")


def test_against_flows_of_the_same_answer_no_account_is_called_faithful(chosen: ChosenFlow) -> None:
    places = build("netmamba", SETTINGS).token_places(chosen.flow)
    rng = np.random.default_rng(4)
    own, others = (rng.integers(0, 256, (n, 4 * 48), dtype=np.uint8) for n in (1, 9))

    def sure(tokens: TokenBatch) -> Any:
        little = 0.001 * tokens.arrays["bytes"].astype(float).sum(axis=1)
        return np.stack([little, np.full(len(little), -5.0)], axis=1)

    batch = [TokenBatch({"bytes": rows}, np.full(len(rows), 3, np.uint16)) for rows in (own, others)]
    said = explain(batch[0], places, batch[1], 0, sure)
    assert said.deletion is not None
    assert said.faithful.startswith("Cannot be judged: the other flows get this label as surely")


def test_an_account_of_parts_that_only_act_together_is_not_called_faithful(chosen: ChosenFlow) -> None:
    places = build("netmamba", SETTINGS).token_places(chosen.flow)
    rng = np.random.default_rng(2)
    own, others = (rng.integers(0, 256, (n, 4 * 48), dtype=np.uint8) for n in (1, 9))

    def parity(tokens: TokenBatch) -> Any:
        odd = tokens.arrays["bytes"].sum(axis=1) % 2
        return np.stack([4.0 * odd, 4.0 - 4.0 * odd], axis=1)

    batch = [TokenBatch({"bytes": rows}, np.full(len(rows), 3, np.uint16)) for rows in (own, others)]
    said = explain(batch[0], places, batch[1], int(own.sum() % 2 == 0), parity)
    assert not said.faithful.startswith("Faithful")


def test_explaining_against_nothing_is_refused(chosen: ChosenFlow) -> None:
    with pytest.raises(UsageError, match="got 0 other flows"):
        explain(chosen.tokens, {}, chosen.tokens.take(slice(0, 0)), 0, lambda tokens: np.zeros((1, 2)))
    with pytest.raises(UsageError, match="orders: got 0, expected 1 or more"):
        ExplainOptions(orders=0)


@pytest.mark.parametrize(
    ("choice", "flow"),
    [
        ({"index": 3}, (17, 3002)),
        ({"src_port": 3004}, (17, 3004)),
        ({"dest_ip": CLIENT, "dest_port": 4000}, (6, 4000)),
        ({"src_ip": SERVER, "src_port": 80, "dest_ip": CLIENT, "dest_port": 4000, "proto": 6}, (6, 4000)),
        ({"proto": 1}, (1, 8)),
    ],
)
def test_a_flow_is_found_by_index_or_by_its_ends_in_either_direction(
    capture: Path, choice: dict[str, Any], flow: tuple[int, int]
) -> None:
    record = choose_flow(str(capture), build("netmamba", SETTINGS), FlowChoice(**choice)).record[0]
    assert (record["protocol"], record["client_port"]) == flow


def test_a_flow_is_found_by_its_id_and_its_record_is_the_final_one(capture: Path) -> None:
    representation = build("netmamba", SETTINGS | {"n_packets": 1})
    first = choose_flow(str(capture), representation, FlowChoice(index=0))
    again = choose_flow(str(capture), representation, FlowChoice(flow_id=int(first.record["flow_id"][0])))
    assert int(again.record["packets"].sum()) == 3  # ready after one packet, ended after three
    assert int(again.flow.records["packets"].sum()) == 1


def test_no_flow_or_several_are_an_error_that_names_them(capture: Path) -> None:
    representation = build("netmamba", SETTINGS)
    with pytest.raises(DataError, match=r"none of 11 flows is index 11; see `netcls flows`"):
        choose_flow(str(capture), representation, FlowChoice(index=11))
    with pytest.raises(
        DataError, match=r"9 flows are proto 17, expected one; choose one with --index: 1 \(flow_id \d+"
    ):
        choose_flow(str(capture), representation, FlowChoice(proto=17))
    with pytest.raises(DataError, match="11 flows are any flow, expected one"):
        choose_flow(str(capture), representation, FlowChoice())
    with pytest.raises(UsageError, match=r"--src-ip: got '10.0.0', expected an IPv4 or IPv6 address"):
        FlowChoice(src_ip="10.0.0")


def test_neutral_values_come_from_flows_of_the_same_kind_never_from_the_flow_itself(capture: Path) -> None:
    representation = build("netmamba", SETTINGS)
    udp = choose_flow(str(capture), representation, FlowChoice(index=1), n_others=20)
    assert len(udp.others) == 8
    assert not (udp.others.arrays["bytes"] == udp.tokens.arrays["bytes"]).all(axis=1).any()
    alone = choose_flow(str(capture), representation, FlowChoice(index=0), n_others=3)
    assert len(alone.others) == 3  # no other TCP flow: any kind


def test_places_name_each_byte_s_packet_and_field(chosen: ChosenFlow) -> None:
    places = build("netmamba", SETTINGS | {"field_policy": "none"}).token_places(chosen.flow)["bytes"]
    packet, field = (array[0].reshape(4, 48) for array in (places.packet, places.field))
    assert packet[:, 0].tolist() == [0, 1, 2, NOWHERE]
    names = {
        name: np.flatnonzero(field[2] == field_number(name)).tolist()
        for name in ("ip_len", "ttl", "tcp_flags")
    }
    assert names == {"ip_len": [2, 3], "ttl": [8], "tcp_flags": [33]}
    assert np.flatnonzero(field[2] == field_number("tcp_window")).tolist() == [34, 35]
    assert np.flatnonzero(field[2] == field_number("payload")).tolist() == [44, 45, 46, 47]
    assert np.flatnonzero(field[2] == field_number("padding")).tolist() == [40, 41, 42, 43]
    assert (field[3] == NOWHERE).all()
    hidden = build("netmamba", SETTINGS).token_places(chosen.flow)["bytes"].field[0].reshape(4, 48)
    assert not np.isin(
        hidden, [field_number(name) for name in ("ttl", "ports", "addresses", "seq_ack")]
    ).any()


def test_every_representation_names_the_places_of_its_tokens(chosen: ChosenFlow, capture: Path) -> None:
    for name in REPRESENTATIONS:
        representation = build(name)
        flow = choose_flow(str(capture), representation, FlowChoice(index=0)).flow
        tokens, places = representation.tokenize(flow), representation.token_places(flow)
        assert places.keys() <= tokens.arrays.keys(), name
        for array, place in places.items():
            assert place.packet.shape == place.field.shape == tokens.arrays[array].shape, (name, array)
            assert set(np.unique(place.packet)) == {NOWHERE, 0, 1, 2}, (name, array)
            assert place.field.max() < len(FIELDS)


def test_columns_of_packets_have_their_fields(capture: Path) -> None:
    representation = build("packets")
    flow = choose_flow(str(capture), representation, FlowChoice(index=0)).flow
    places = representation.token_places(flow)
    assert [FIELDS[field] for field in places["numbers"].field[0, 2]] == [
        "ip_len",
        "payload_len",
        "iat",
        "iat",
        "tcp_window",
    ]
    assert places["flags"].field.shape[2] == len(FLAGS)
    assert (places["flags"].packet[0, 3:] == NOWHERE).all()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    kind = family("netmamba")
    settings = build("netmamba", SETTINGS).settings()
    config = kind.config_for(settings, d_model=16, n_layers=1, d_state=4)
    torch.manual_seed(0)
    network = kind.build_classifier(config, 3)
    with torch.no_grad():
        network.head.weight.normal_(std=2.0)  # type: ignore[union-attr, operator]
    return save_checkpoint(
        tmp_path_factory.mktemp("model") / "tiny",
        kind="classifier",
        family="netmamba",
        model_config=asdict(config),
        representation="netmamba",
        representation_settings=settings,
        labels=["chat", "dns", "<b>web</b>"],
        calibration=Calibration(),
        card={},
        state=network.state_dict(),
    )


def test_a_checkpoint_s_answer_to_a_flow_of_a_capture(capture: Path, model: Checkpoint) -> None:
    said = explain_flow(str(capture), FlowChoice(index=2), model=model, draws=4, threads=1)
    assert said.event["src_port"] == 3001
    assert said.label == said.answer
    assert said.baseline == "other_flows"
    values = json.loads(json.dumps(said.as_dict()))
    assert values["packets"][0].keys() >= {"packet", "to", "ip_len", "effect", "spread", "probability"}
    assert {part["packet"]: part["to"] for part in values["packets"]} == {1: "server", 2: "client"}
    assert {"payload", "udp_len", "ip_len"} <= {part["field"] for part in values["fields"]}


def test_without_another_flow_zeros_are_neutral_and_a_background_mends_it(
    capture: Path, model: Checkpoint, tmp_path: Path
) -> None:
    lone = write_pcap(tmp_path / "lone.pcap", udp_flow(CLIENT, 1, [9, 9, 9], fill=7))
    said = explain_flow(str(lone), FlowChoice(), model=model, threads=1)
    assert said.baseline == "zeros"
    assert "give --background" in said.warnings[0]
    better = explain_flow(str(lone), FlowChoice(), model=model, backgrounds=(str(capture),), threads=1)
    assert (better.baseline, better.explanation.donors) == ("background", 8)


def test_the_command_prints_a_table_or_json_and_refuses_in_one_line(
    capture: Path, model: Checkpoint, capfd: pytest.CaptureFixture[str]
) -> None:
    which = ["explain", str(capture), "--model", str(model.path), "--index", "0", "--threads", "1", "-q"]
    assert main(which) == 0
    out = capfd.readouterr().out
    assert out.startswith("flow ")
    assert "packet  to      IP bytes  effect  spread  probability without" in out
    assert "effect: log-odds" in out
    assert main([*which, "--json", "--label", "dns"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert (said["label"], said["flow"]["src_port"], said["model"]) == ("dns", 4000, "tiny")
    assert main([*which, "--label", "dsn"]) == 2
    err = capfd.readouterr().err
    assert "--label: tiny has no label 'dsn'; did you mean 'dns'?" in err
    assert err.count("\n") == 1
    assert main([*which, "--proto", "tpc"]) == 2
    assert "proto is 'tpc'" in capfd.readouterr().err
