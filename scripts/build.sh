#!/usr/bin/env bash
# Configures and builds into build/: build/bin/prefill-opt and the test programs.
# Arguments are ninja targets (none: everything). Configuring is skipped once done;
# ninja itself notices changed CMake files. PREFILL_BUILD names another build folder.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# One cache for all checkouts: hashes must not depend on where the source lies, and
# the precompiled header must not spoil them.
export CCACHE_BASEDIR=/ CCACHE_NOHASHDIR=1
export CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime

exec 9>"$BUILD/.build.lock"
flock 9

if [ ! -f "$BUILD/build.ninja" ]; then
  logged configure cmake -G Ninja -S "$ROOT" -B "$BUILD" \
    -DCMAKE_BUILD_TYPE="${PREFILL_BUILD_TYPE:-Release}" \
    -DCMAKE_C_COMPILER=clang-22 -DCMAKE_CXX_COMPILER=clang++-22 \
    -DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache \
    -DCMAKE_EXE_LINKER_FLAGS=-fuse-ld=lld -DCMAKE_SHARED_LINKER_FLAGS=-fuse-ld=lld \
    -DCMAKE_MODULE_LINKER_FLAGS=-fuse-ld=lld \
    -DPREFILL_PYTHON="$ROOT/build/venv/bin/python" ${PREFILL_CMAKE_ARGS:-}
fi

if [ -t 1 ]; then
  # A terminal sees ninja's own progress line.
  if ! ninja -C "$BUILD" -j "$JOBS" "$@" 2>&1 | tee "$LOGS/ninja.log"; then
    printf 'error: the build failed; its log: %s\n' "${LOGS#"$ROOT/"}/ninja.log" >&2
    exit 1
  fi
else
  logged ninja ninja -C "$BUILD" -j "$JOBS" "$@"
fi
