"""What tests on several hosts need; see network.py."""

import pytest
from hosts.network import missing


@pytest.fixture(scope="session")
def hosts_possible():
    """Skips, saying what is missing, where there can be no hosts."""
    if reason := missing():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def delay_possible(hosts_possible):
    """The same for hosts with `delay_ms`."""
    if reason := missing(delay_ms=1):
        pytest.skip(reason)
