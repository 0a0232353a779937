"""Several processes that pre-train together compute what one process with the whole batch computes."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from capture.errors import UsageError
from models.learning.pretrain import pretrain
from models.learning.team import Place, Team, place_in_team, refuse_team
from tests.unit.models.team_worker import CONFIG, FAMILY, SETTINGS, TOKENS, losses

N_SCENARIOS = 6


def free_ports(n: int) -> list[str]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [str(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """What each of two processes said of each scenario."""
    folder = tmp_path_factory.mktemp("team")
    ports = free_ports(N_SCENARIOS)
    processes = []
    for rank in range(2):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "tests.unit.models.team_worker", str(folder), *ports]
        processes.append(
            subprocess.Popen(
                command, env=environment, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, text=True
            )
        )
    said = [process.communicate(timeout=300)[0] for process in processes]
    return [[json.loads(line) for line in text.splitlines()] for text in said]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One process with the batch of both: 2 processes x 2 parts x 4 flows."""
    settings = dataclasses.replace(SETTINGS, batch=16, accumulate=1)
    return pretrain(FAMILY, CONFIG, TOKENS, settings, run_dir=tmp_path_factory.mktemp("alone"))


def test_two_processes_learn_what_one_with_the_double_batch_learns(
    answers: list[list[dict[str, Any]]], alone: Any
) -> None:
    weight_sum = float(sum(t.abs().sum() for t in alone.state.values()))
    for rank in range(2):
        answer = answers[rank][0]["answer"]
        assert answer["losses"] == pytest.approx(losses(alone.history), rel=1e-5)
        assert answer["weight_sum"] == pytest.approx(weight_sum, rel=1e-4)
    assert [a[0]["answer"]["is_first"] for a in answers] == [True, False]
    assert [a[0]["answer"]["told"] for a in answers] == [[1, 2, 3, 4], []], "the first one alone reports"


def test_a_signal_to_one_process_stops_and_saves_all(answers: list[list[dict[str, Any]]]) -> None:
    assert [a[1]["answer"] for a in answers] == ["KeyboardInterrupt: "] * 2
    resumed = [a[2]["answer"] for a in answers]
    assert resumed[0]["told"] == [2, 3, 4], "the state of the first step was saved"
    assert resumed[0]["losses"] == answers[0][0]["answer"]["losses"]


def test_a_parameter_that_no_loss_depends_on_holds_nobody_up(answers: list[list[dict[str, Any]]]) -> None:
    for rank in range(2):
        expected = answers[rank][0]["answer"]["losses"]
        assert answers[rank][3]["answer"]["losses"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("scenario", "name"), [(4, "seed"), (5, "flows")])
def test_processes_that_disagree_are_told_about_what(
    answers: list[list[dict[str, Any]]], scenario: int, name: str
) -> None:
    for rank in range(2):
        answer = answers[rank][scenario]["answer"]
        assert answer.startswith("TrainingError: the processes of this run disagree: got " + name)
        assert "in process 1, expected" in answer


def test_without_torchrun_a_process_is_alone() -> None:
    assert place_in_team({}) == place_in_team({"WORLD_SIZE": "1"}) == Place(0, 1, 0)
    assert Team(Place()).sums(1.5, 2.0) == [1.5, 2.0]


def test_variables_that_torchrun_would_not_set_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UsageError, match="WORLD_SIZE is '2', but RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set"
    ):
        place_in_team({"WORLD_SIZE": "2"})
    given = {"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    with pytest.raises(UsageError, match="got RANK=2, WORLD_SIZE=2, LOCAL_RANK=0, expected whole numbers"):
        place_in_team(given)
    for name, value in (given | {"RANK": "1"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="finetune: got 2 processes, expected one"):
        refuse_team("finetune")
