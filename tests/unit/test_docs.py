"""The docs: links and files exist, and words that the glossary has replaced stay away."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))
PAGES = ["README.md", "CONTRIBUTING.md", *DOCS]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(r"`((?:csrc|hvd_backup|tests|benchmarks|examples|docs)/[\w/.-]+\.\w+)`")

# What the glossary says instead.
REPLACED = {
    "Vigil": "Waiter",
    "Patience": "SpinLimits",
    "Errand": "ProgressEngine",
    "Interchange": "NodeCollective",
    "SumExchange": "SumAllreduce",
    "Coordination": "CoordinatorServer",
    "csrc/engine": "csrc/round, csrc/internode",
    "horovod_env.py": "hvd_backup/horovod/environment.py",
}
ELSEWHERE = ("CHANGELOG.md", "tests/unit/test_docs.py", "csrc/third_party")


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    path = ROOT / page
    for link in LINK.findall(path.read_text()):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), f"{page}: {link}"
        assert not anchor or anchor in anchors(target), f"{page}: {link}"


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page):
    for name in FILE.findall((ROOT / page).read_text()):
        assert (ROOT / name).exists() or name.startswith("docs/your"), f"{page}: {name}"


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_words_that_were_replaced_do_not_come_back():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in tracked:
        path = ROOT / name
        if name.startswith(ELSEWHERE) or path.suffix not in {".py", ".pyi", ".cpp", ".hpp", ".md"}:
            continue
        text = path.read_text() if path.exists() else ""
        for word, instead in REPLACED.items():
            assert not re.search(rf"\b{re.escape(word)}\b", text), f"{name}: {word}: use {instead}"
