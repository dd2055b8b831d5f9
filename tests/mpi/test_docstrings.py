"""The examples in docstrings run in worlds of any size."""

import pytest
from docstring_examples import MAIN, failures

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("where", MAIN, ids=".".join)
def test_the_example_gives_what_it_says_on_every_rank(where):
    assert not failures(where)
