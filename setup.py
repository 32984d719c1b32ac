"""Puts the compiler into the Python package; everything else is in pyproject.toml.

A wheel holds prefill-opt and the runtime archive that it links into every model, from the
build folder ($PREFILL_BUILD or build/). It is not built here: that takes LLVM's packages.
"""

import os
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
BUILD = Path(os.environ.get("PREFILL_BUILD", ROOT / "build"))
#: As prefill-opt expects them: it looks for ../lib beside itself.
FILES = ("bin/prefill-opt", "lib/libprefill_runtime.a", "lib/libprefill_host.so")


class BuildPackage(build_py):
    """Copies the compiler to prefill_opt/_compiler. An editable install uses build/ itself."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        for name in FILES:
            source = BUILD / name
            if not source.is_file():
                raise SystemExit(f"error: {source} is missing: run 'make build' first")
            target = Path(self.build_lib, "prefill_opt", "_compiler", name)
            self.mkpath(str(target.parent))
            self.copy_file(str(source), str(target))


class BuildWheel(bdist_wheel):
    """Any Python 3, but this platform."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


class BinaryDistribution(Distribution):
    """Makes setuptools take the package for one with machine code."""

    def has_ext_modules(self):
        return True


setup(
    cmdclass={"build_py": BuildPackage, "bdist_wheel": BuildWheel},
    distclass=BinaryDistribution,
    # setuptools would put its files into build/, which is CMake's.
    options={"build": {"build_base": "build-python"}},
)
