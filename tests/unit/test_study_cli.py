"""The command `hvd-backup`, as far as it starts no ranks."""

import pytest
from typer.testing import CliRunner

from hvd_backup.cli import app


def run(*arguments: str):
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "120", "NO_COLOR": "1"})


def test_version_names_the_packages_that_matter():
    result = run("version")
    assert result.exit_code == 0
    for name in ("hvd_backup", "torch", "mpi4py", "numpy"):
        assert f"\n{name} " in f"\n{result.stdout}"


def test_help_names_the_options_of_the_demo():
    result = run("demo", "--help")
    options = (
        "--ranks",
        "--backup-workers",
        "--rounds",
        "--seed",
        "--repeats",
        "--data",
        "--out",
        "--quick",
    )
    assert all(option in result.stdout for option in options)


def test_a_wrong_folder_is_a_friendly_error(tmp_path):
    result = run("demo", "--data", str(tmp_path))
    assert result.exit_code == 2
    assert f"Error: no data set found in {tmp_path}" in result.stderr
    assert "train-images-idx3-ubyte" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--backup-workers", "5"), "5 backup workers among 5 ranks"),
        (("--ranks", "1"), "--ranks"),
        (("--rounds", "1"), "--rounds"),
        (("--seed", "-1"), "--seed"),
        (("--target", "2"), "--target"),
        (("--ranks", "many"), "--ranks"),
    ],
)
def test_wrong_options_are_friendly_errors(arguments, words):
    result = run("demo", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.output
