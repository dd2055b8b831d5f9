"""Training on ranks of several hosts: programs/train.py."""

import sys
import time
from pathlib import Path

import pytest
from hosts.network import Hosts, told

TRAIN = Path(__file__).parent / "programs" / "train.py"
STEPS = 30

pytestmark = pytest.mark.usefixtures("hosts_possible")


def train(hosts, *args, ranks_per_host):
    return checked(hosts, hosts.mpirun([sys.executable, TRAIN, *args], ranks_per_host))


def checked(hosts, run, steps=STEPS):
    assert run.returncode == 0, str(run)
    ranks = told(run)
    assert len({facts["digest"] for facts in ranks}) == 1
    assert {facts["rounds"] for facts in ranks} == {steps}
    assert {facts["hosts"] for facts in ranks} == {hosts.count}
    return ranks


def assert_it_learned(ranks):
    for facts in ranks:
        assert sum(facts["losses"][-5:]) < 0.8 * sum(facts["losses"][:5])


@pytest.mark.parametrize(("count", "ranks_per_host"), [(1, 2), (3, 1)], ids=["one", "three"])
def test_all_hosts_end_with_the_same_parameters(count, ranks_per_host):
    with Hosts(count) as hosts:
        ranks = train(hosts, 0, STEPS, ranks_per_host=ranks_per_host)
    assert {facts["contributed"] for facts in ranks} == {STEPS}
    assert_it_learned(ranks)


def test_a_host_that_is_slow_costs_the_others_nothing():
    sleep_s = 0.1
    with Hosts(3) as hosts:
        ranks = train(hosts, 1, STEPS, hosts.names[2], sleep_s, ranks_per_host=1)
    assert ranks[2]["contributed"] < STEPS / 2
    assert ranks[0]["took"] < STEPS * sleep_s / 2
    assert_it_learned(ranks[:2])


@pytest.mark.parametrize("backups", [0, 1])
def test_a_host_whose_processor_and_cable_are_slow_gets_the_same_parameters(backups):
    steps = 40
    with Hosts(3) as hosts:
        command = [sys.executable, TRAIN, backups, steps, hosts.names[0], 0.01]
        with hosts.start(command, ranks_per_host=[1, 2, 1]) as ranks:
            ranks.wait_for("ten steps done", timeout=60)
            hosts.slow_down(1, cpu=0.3, mbit=5)
            facts = checked(hosts, ranks.wait(timeout=60), steps)
    assert sum(rank["contributed"] for rank in facts) == steps * (len(facts) - backups)


@pytest.mark.parametrize("backups", [0, 1])
def test_a_cable_that_is_cut_for_a_second_loses_nothing(backups):
    steps = 100
    with Hosts(3) as hosts:
        command = [sys.executable, TRAIN, backups, steps, hosts.names[0], 0.02]
        with hosts.start(command, ranks_per_host=1) as ranks:
            ranks.wait_for("ten steps done", timeout=60)
            hosts.cut(2)
            time.sleep(1)
            hosts.restore(2)
            facts = checked(hosts, ranks.wait(timeout=60), steps)
    assert sum(rank["contributed"] for rank in facts) == steps * (3 - backups)
