#!/usr/bin/env bash
# `make sanitize`: the compiler and all C++ tests with AddressSanitizer and UBSan in
# build-sanitize/, then ctest and lit there. Not part of `make test`, which runs only the
# runtime's own tests sanitized: an instrumented build of everything takes minutes.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
"$ROOT/scripts/setup.sh"

export PREFILL_BUILD="${PREFILL_SANITIZE_BUILD:-$ROOT/build-sanitize}"
export PREFILL_CMAKE_ARGS="-DPREFILL_SANITIZE=address,undefined"
# libMLIR and libLLVM are not instrumented: containers and allocators that cross the
# border look wrong, and what they keep until the end looks leaked.
export ASAN_OPTIONS=detect_container_overflow=0:allow_user_poisoning=0:detect_leaks=0
export UBSAN_OPTIONS=print_stacktrace=1
source "$ROOT/scripts/common.sh"
"$ROOT/scripts/build.sh"
logged gtest ctest --test-dir "$BUILD" --output-on-failure -j "$JOBS"
logged lit ninja -C "$BUILD" check-prefill
say "no findings"
