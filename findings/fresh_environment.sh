# Sourced with the packages that a script pins: makes $folder, removed at the end, with an environment that holds them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/environment"
"$folder/environment/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
cd "$folder"
export JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8
run() { "$folder/environment/bin/python" "$@"; }
