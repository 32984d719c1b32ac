"""What the benchmarks share: targets, verdicts, result files."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from prefill_opt.demo.suite import machine, table

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass
class Target:
    """One number with what it must reach.

    Attributes:
        what: description, with the unit if it has one.
        value: measured; None: could not be measured.
        bound: what must be reached.
        at_least: True if larger is better.
        note: why there is no value, or a remark.
    """

    what: str
    value: float | None
    bound: float
    at_least: bool = True
    note: str = ""

    @property
    def verdict(self) -> str:
        """``pass``, ``FAIL`` or ``not measured``."""
        if self.value is None:
            return "not measured"
        good = self.value >= self.bound if self.at_least else self.value <= self.bound
        return "pass" if good else "FAIL"


def verdicts(targets: list[Target]) -> str:
    """A table of measured value, target and pass or fail."""
    rows = []
    for target in targets:
        value = "-" if target.value is None else f"{target.value:.3g}"
        sign = ">=" if target.at_least else "<="
        rows.append([target.what, value, f"{sign} {target.bound:g}", target.verdict, target.note])
    return table(["what", "measured", "target", "", ""], rows)


def commit() -> str:
    """The short hash of the checkout's commit, "+" appended if files differ; "" without git."""
    told = subprocess.run(
        ["git", "describe", "--always", "--exclude=*", "--dirty=+"],
        cwd=RESULTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return told.stdout.strip()


def save(name: str, record: dict, targets: list[Target]) -> Path:
    """Writes ``results/NAME.json`` with the machine and the date; returns the file."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    body = {"benchmark": name, "date": now, "machine": machine(), **record}
    body["targets"] = [{**asdict(t), "verdict": t.verdict} for t in targets]
    path.write_text(json.dumps(body, indent=1) + "\n")
    return path


def finish(name: str, record: dict, targets: list[Target]) -> int:
    """Prints the verdicts, writes the file; returns the exit status (1 on any FAIL)."""
    if targets:
        print("\n" + verdicts(targets))
    path = save(name, record, targets)
    print(f"\nresults: {path.parent.name}/{path.name}", file=sys.stderr)
    return 1 if any(t.verdict == "FAIL" for t in targets) else 0
