"""The examples in the docstrings of TensorFlow's names run."""

import pytest
from docstring_examples import MAIN_OF_TENSORFLOW, failures
from mpi_tf import models  # noqa: F401, sets TensorFlow up

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(120)]


@pytest.mark.parametrize("where", MAIN_OF_TENSORFLOW, ids=".".join)
def test_the_example_gives_what_it_says_on_every_rank(where):
    assert not failures(where)
