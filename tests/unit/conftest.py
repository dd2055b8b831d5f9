"""Fixtures of several files."""

import pytest
from unit.boards import Nodes


@pytest.fixture
def boards():
    return Nodes(range(3)).boards


@pytest.fixture
def nodes():
    """Ranks 0 and 1 on one node, 2 and 3 on another."""
    return Nodes([0, 1], [2, 3])
