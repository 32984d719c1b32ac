#!/usr/bin/env bash
# `make demo`: setup, build, then the demo's table and picture. Arguments go to
# `python -m prefill_opt.demo` (for example --tokens 2048).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
"$ROOT/scripts/setup.sh"
"$ROOT/scripts/build.sh"
exec "$VENV/bin/python" -m prefill_opt.demo "$@"
