"""A few of the cases of `fuzz.py`: damaged and hostile files end a command with a sentence, or do no harm."""

import subprocess
import sys
from pathlib import Path

import fuzz


def test_a_few_cases_of_each_kind(tmp_path: Path) -> None:
    # As a process of its own, which has no other threads when it forks.
    most = str(4 * len(fuzz.KINDS))
    options = ["--seconds", "100", "--most", most, "--keep", str(tmp_path)]
    done = subprocess.run([sys.executable, fuzz.__file__, *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith(" 0 broke a rule\n")
