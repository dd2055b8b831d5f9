"""How benchmarks print their figures."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import output
import partial_allreduce


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0412, "0.0412"), (0.004, "0.004"), (4.167, "4.17"), (416.7, "417"), (41670.2, "41670")],
)
def test_no_figure_is_rounded_to_nothing_or_written_with_an_exponent(value, text):
    assert output.short(value) == text


def test_two_times_are_compared_in_words_that_need_no_key():
    assert output.compared(2.0, 3.6) == "1.8x faster"
    assert output.compared(3.6, 2.0) == "1.8x slower"
    assert output.compared(1.0, 1.02) == "as fast"


def rows(ranks, nbytes, late, in_place, mpi):
    times = {"in_place": in_place, "mpi_allreduce": mpi}
    about = {"ranks": ranks, "bytes": nbytes, "late": late}
    return [{**about, "path": path, "median_us": time} for path, time in times.items()]


def test_the_sentence_to_quote_is_of_a_world_with_a_core_for_each_rank():
    measured = [
        *rows(2, 4096, 0, 2, 2),
        *rows(2, 16 << 20, 0, 900, 1800),
        *rows(2, 16 << 20, 1, 800, 8000),
        *rows(4, 16 << 20, 0, 5000, 10),
    ]
    assert partial_allreduce.sentence(measured, cores=2) == (
        "a partial all-reduce of 16 MB in place takes 900 us on 2 ranks, 2x faster than "
        "MPI_Allreduce; 800 us with 1 of them late, 10x faster than MPI_Allreduce."
    )


META = {"cores": 2, "cpu": "Model T", "command": "python nodes.py", "load_before": 0.1}


def test_a_sentence_names_the_machine(capsys):
    output.quote("it flies.", META)
    assert capsys.readouterr().out == "\nIn a sentence: on 2 cores (Model T), it flies.\n"


@pytest.mark.parametrize(
    ("change", "why"),
    [({"load_before": 3.0}, "load was 3.0"), ({"command": "python nodes.py --quick"}, "--quick")],
)
def test_what_was_measured_badly_is_not_to_be_quoted(change, why, capsys):
    output.quote("it flies.", META | change)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("Do not quote it: ")
    assert why in last
