"""Adds up JUnit result files and prints one line a suite, the failures, and the total.

The last line has the form ``123 passed, 0 failed, 4 skipped``. Exit status 1 if anything
failed or no test ran at all.
"""

from __future__ import annotations

import argparse
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path


def count(path: Path) -> tuple[int, list[str], int]:
    """Returns (passed, names of the failed, skipped) of one JUnit file.

    A file that is no XML counts as one failure under its own name.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        return 0, [f"{path.name}: not readable ({error})"], 0
    passed, failed, skipped = 0, [], 0
    for case in root.iter("testcase"):
        kinds = {child.tag for child in case}
        status = case.get("status", "run")
        if "failure" in kinds or "error" in kinds or status == "fail":
            failed.append(f"{case.get('classname', '')}.{case.get('name', '')}")
        elif "skipped" in kinds or status in ("notrun", "disabled"):
            skipped += 1
        else:
            passed += 1
    return passed, failed, skipped


def main() -> int:
    """Totals the files ``*.xml`` of the given folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--extra-failed", type=int, default=0, metavar="N")
    options = parser.parse_args()
    total_passed, total_failed, total_skipped = 0, options.extra_failed, 0
    for path in sorted(options.folder.glob("*.xml")):
        passed, failed, skipped = count(path)
        print(f"{path.stem:8} {passed} passed, {len(failed)} failed, {skipped} skipped")
        for name in failed:
            print(f"  FAILED {name}")
        total_passed += passed
        total_failed += len(failed)
        total_skipped += skipped
    if total_passed + total_failed == 0:
        print("error: no test ran")
        total_failed = 1
    line = f"{total_passed} passed, {total_failed} failed"
    print(line + (f", {total_skipped} skipped" if total_skipped else ""))
    return 1 if total_failed else 0


if __name__ == "__main__":
    sys.exit(main())
