"""Adds up what the suites of `make test` printed: `python tests/summary.py build/test SUITE…`.

The last line is the verdict. A suite whose log is missing or breaks off counts as a failure.
"""

import re
import sys
from collections import Counter
from pathlib import Path

COUNT = re.compile(r"(\d+) (passed|failed|skipped|errors?)\b")


def closing_counts(log: str) -> Counter[str]:
    """What the last line with counts says: pytest's or hvd_backup_tests' closing line."""
    for line in reversed(log.splitlines()):
        counts = Counter({word.rstrip("s"): int(number) for number, word in COUNT.findall(line)})
        if counts:
            return counts
    return Counter()


def main() -> int:
    """Print one line per suite, then the total. Return the exit status."""
    folder, *suites = sys.argv[1:]
    total: Counter[str] = Counter()
    for suite in suites:
        path = Path(folder) / f"{suite}.log"
        if not path.exists():
            print(f"{suite:>12}: not run")
            total["failed"] += 1
            continue
        counts = closing_counts(path.read_text(errors="replace"))
        if not counts:
            counts["failed"] = 1
        failed = counts["failed"] + counts["error"]
        print(f"{suite:>12}: {counts['passed']} passed, {failed} failed")
        total += counts
    failed = total["failed"] + total["error"]
    print(f"test: {total['passed']} passed, {failed} failed, {total['skipped']} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
