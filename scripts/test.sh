#!/usr/bin/env bash
# Everything `make test` runs, from a fresh clone on: setup, build, lit, GoogleTest, the
# runtime's tests with sanitizers, pytest and a minute of fuzzing the importer. Goes on
# after a failing suite, closes with one line of totals ("123 passed, 0 failed") and
# exits 1 if anything failed.
# PREFILL_FUZZ_SECONDS (60) and PREFILL_PYTEST_ARGS change the long parts.
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# The calibration's page is looked at in a real browser.
PREFILL_EXTRA_PACKAGES=chromium-headless-shell "$ROOT/scripts/setup.sh" || exit 1
"$ROOT/scripts/build.sh" || exit 1
# Not part of the default build: they compile the importer and the runtime once more.
"$ROOT/scripts/build.sh" prefill-import-fuzzer PrefillRuntimeTestsAsan \
  PrefillRuntimeTestsTsan || exit 1
# Tests that need the compiler must not be skipped for want of it.
export PREFILL_TESTS=1

RESULTS="$BUILD/test-results"
rm -rf "$RESULTS"
mkdir -p "$RESULTS"
started=$SECONDS
# Suites that could not report (a crash before its result file) count as one failure.
extra_failed=0

has_target() { ninja -C "$BUILD" -t query "$1" >/dev/null 2>&1; }

suite() {
  local name="$1" result="$2"
  shift 2
  if ! logged "$name" "$@" && [ ! -s "$result" ]; then
    extra_failed=$((extra_failed + 1))
  fi
}

if has_target check-prefill; then
  export LIT_OPTS="-v --xunit-xml-output=$RESULTS/lit.xml"
  suite lit "$RESULTS/lit.xml" ninja -C "$BUILD" check-prefill
  unset LIT_OPTS
else
  say "lit: no target check-prefill in this build"
fi

suite gtest "$RESULTS/gtest.xml" ctest --test-dir "$BUILD" --no-tests=ignore \
  --output-on-failure -j "$JOBS" --output-junit "$RESULTS/gtest.xml"

for sanitizer in Asan Tsan; do
  result="$RESULTS/runtime-${sanitizer,,}.xml"
  suite "runtime-${sanitizer,,}" "$result" "$BUILD/bin/PrefillRuntimeTests$sanitizer" \
    --gtest_output="xml:$result"
done

# shellcheck disable=SC2086  # several arguments are allowed
suite pytest "$RESULTS/pytest.xml" "$VENV/bin/python" -m pytest "$ROOT/python/tests" -q \
  -p no:cacheprovider --junitxml="$RESULTS/pytest.xml" ${PREFILL_PYTEST_ARGS:-}
tail -n 1 "$LOGS/pytest.log" 2>/dev/null || true

fuzzer="$BUILD/bin/prefill-import-fuzzer"
if [ -x "$fuzzer" ]; then
  seeds="$BUILD/fuzz/seeds"
  corpus="$BUILD/fuzz/corpus"
  mkdir -p "$corpus"
  "$VENV/bin/python" "$ROOT/scripts/make_fuzz_seeds.py" "$seeds" ||
    extra_failed=$((extra_failed + 1))
  suite fuzz "$RESULTS/fuzz.xml" "$VENV/bin/python" "$ROOT/scripts/run_fuzzer.py" \
    "$fuzzer" --seconds "${PREFILL_FUZZ_SECONDS:-60}" --corpus "$corpus" --seeds "$seeds" \
    --artifacts "$BUILD/fuzz" --junit "$RESULTS/fuzz.xml"
else
  say "fuzz: no prefill-import-fuzzer in this build"
fi

say "tests took $((SECONDS - started)) s"
exec "$VENV/bin/python" "$ROOT/scripts/total_tests.py" "$RESULTS" --extra-failed "$extra_failed"
