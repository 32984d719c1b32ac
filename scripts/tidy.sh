#!/usr/bin/env bash
# `make tidy`: clang-tidy with .clang-tidy over all C and C++ files, or over those whose
# path matches the given regular expressions (`scripts/tidy.sh lib/Import runtime`).
# Exits 1 if it finds anything.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
"$ROOT/scripts/setup.sh"
# Generated and precompiled headers must exist; they are not looked at.
"$ROOT/scripts/build.sh"
"$ROOT/scripts/build.sh" prefill-import-fuzzer
[ "$#" -gt 0 ] || set -- "$ROOT/(lib|tools|runtime|unittests)/"
nice run-clang-tidy-22 -p "$BUILD" -j "$JOBS" -quiet -warnings-as-errors='*' \
  -header-filter="$ROOT/(include|lib|runtime|unittests)/" "$@" 2>"$LOGS/tidy.log"
