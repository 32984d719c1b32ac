"""Runs a libFuzzer program for a given time and reports the outcome as one JUnit test.

A crash, leak, timeout or out-of-memory makes the exit status 1; the input that caused it is
left in the artifact folder and named.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr


def main() -> int:
    """Builds the command line, runs it, writes the JUnit file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fuzzer", type=Path)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, required=True, help="grows with each run")
    parser.add_argument("--seeds", type=Path, help="read only")
    parser.add_argument("--artifacts", type=Path, required=True)
    parser.add_argument("--junit", type=Path)
    options = parser.parse_args()
    options.artifacts.mkdir(parents=True, exist_ok=True)
    before = set(options.artifacts.glob("*-*"))
    command = [str(options.fuzzer), f"-max_total_time={options.seconds}", "-timeout=10"]
    command += ["-rss_limit_mb=4096", "-max_len=65536", "-print_final_stats=1"]
    command += [f"-artifact_prefix={options.artifacts}/", str(options.corpus)]
    if options.seeds and options.seeds.is_dir():
        command.append(str(options.seeds))
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    seconds = time.monotonic() - start
    print(done.stderr[-6000:])
    found = sorted(p.name for p in set(options.artifacts.glob("*-*")) - before)
    message = ""
    if done.returncode:
        message = f"fuzzer exit status {done.returncode}; inputs: {', '.join(found) or 'none'}"
        print(f"error: {message}")
    if options.junit:
        body = f"<failure message={quoteattr(message)}>{escape(message)}</failure>" if message else ""
        options.junit.write_text(
            f'<testsuite name="fuzz"><testcase classname="fuzz" name={quoteattr(options.fuzzer.name)}'
            f' time="{seconds:.1f}">{body}</testcase></testsuite>\n'
        )
    return 1 if done.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
