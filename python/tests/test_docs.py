"""Every pattern and option of -sparsify is in the manual."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from prefill_opt.compiler import find_compiler

DOCS = Path(__file__).resolve().parents[2] / "docs"


def refusal(pattern: str) -> str:
    """What prefill-opt says of a pattern that it does not take."""
    command = [str(find_compiler()), "-", f"-sparsify-attention=pattern={pattern}"]
    run = subprocess.run(command, input="module {}", capture_output=True, text=True, check=False)
    assert run.returncode != 0
    return run.stderr


def names() -> list[str]:
    found = re.search(r"there are (.*) and config:FILE", refusal("nosuchpattern"))
    assert found
    return found[1].split(", ")


def options(name: str) -> list[str]:
    """Options of a pattern, but for dense-below, which all have."""
    found = re.search(r"this pattern has (.*)", refusal(f"{name}:nosuchoption=1"))
    return found[1].strip().split(", ") if found else []


def test_names_are_found():
    assert {"auto", "dense", "sampled", "sale", "duo", "longgen"} <= set(names())
    assert options("duo") == ["init", "local", "heads", "sparsity", "rest"]
    assert options("dense") == []


@pytest.mark.parametrize("name", names())
def test_pattern_is_described(name):
    page = (DOCS / "patterns" / f"{name}.md").read_text()
    row = re.search(rf"^\| `{name}` \|.*$", (DOCS / "CLI.md").read_text(), re.M)
    assert row, f"docs/CLI.md has no row for {name}"
    assert f"({name}.md)" in (DOCS / "patterns" / "README.md").read_text()
    if name == "auto":
        return
    for option in options(name):
        assert f"| `{option}` |" in page, f"{name}.md: {option}"
        assert option == "similarity" or f"`{option}" in row[0], f"CLI.md, {name}: {option}"
    for option in re.findall(r"^\| `([a-z-]+)` \|", page, re.M):
        assert option in options(name), f"{name}.md has an option {option} that is none"


def test_pictures_exist_and_are_small():
    for page in (DOCS / "patterns").glob("*.md"):
        for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text()):
            assert (page.parent / picture).stat().st_size < 20 * 1024, picture
