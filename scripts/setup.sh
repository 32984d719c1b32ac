#!/usr/bin/env bash
# Installs what the build needs: Debian packages (only those missing) and a Python
# environment in build/venv with the pinned requirements and `prefill_opt` importable.
# Does nothing when everything is there. PREFILL_SKIP_APT=1 leaves the system alone;
# PREFILL_EXTRA_PACKAGES names further Debian packages.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

PACKAGES="libmlir-22-dev mlir-22-tools llvm-22-dev llvm-22-tools clang-22 clang-format-22
  clang-tidy-22 lld-22 liblld-22-dev libclang-rt-22-dev ccache cmake ninja-build
  libprotobuf-dev protobuf-compiler libdlpack-dev libgtest-dev libgmock-dev libzstd-dev
  zlib1g-dev python3-venv ${PREFILL_EXTRA_PACKAGES:-}"

missing_packages() {
  local package
  for package in $PACKAGES; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' ||
      printf '%s ' "$package"
  done
}

if [ "${PREFILL_SKIP_APT:-0}" != 1 ]; then
  missing="$(missing_packages)"
  if [ -n "$missing" ]; then
    say "missing Debian packages: $missing"
    as_root=()
    [ "$(id -u)" -eq 0 ] || as_root=(sudo)
    logged apt-update "${as_root[@]}" apt-get update -qq
    # shellcheck disable=SC2086  # one word a package
    logged apt-install "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
      apt-get install -y --no-install-recommends $missing
  fi
fi

exec 9>"$BUILD/.setup.lock"
flock 9

# The stamp holds the text of the requirements that the environment was made from.
stamp="$VENV/requirements.stamp"
wanted="$(cat "$ROOT/requirements.txt" "$ROOT/requirements-nodeps.txt")"
if [ ! -x "$VENV/bin/python" ] || [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  [ -x "$VENV/bin/python" ] || logged venv python3 -m venv "$VENV"
  logged pip-install "$VENV/bin/pip" install --disable-pip-version-check \
    -r "$ROOT/requirements.txt"
  logged pip-install-nodeps "$VENV/bin/pip" install --disable-pip-version-check --no-deps \
    -r "$ROOT/requirements-nodeps.txt"
  printf '%s\n' "$wanted" >"$stamp"
fi
site="$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')"
if [ "$(cat "$site/prefill_opt.pth" 2>/dev/null)" != "$ROOT/python" ]; then
  printf '%s\n' "$ROOT/python" >"$site/prefill_opt.pth"
fi
say "setup is complete (python: ${VENV#"$ROOT/"}/bin/python)"
