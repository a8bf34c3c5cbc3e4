#!/usr/bin/env bash
# Writes requirements/{runtime,dev,benchmarks}.txt: names, versions and hashes, no addresses, so that any mirror
# serves them. Arguments go to `uv pip compile`, for example --upgrade or --upgrade-package ruff.
set -euo pipefail
cd "$(dirname "$0")/.."

uv=$(command -v uv || echo .venv/bin/uv)

compile() {
    local target=$1
    shift
    "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-header --no-emit-index-url --no-emit-find-links --no-config \
        --output-file "$target" "$@"
}

# The second is constrained by the first: what is tested is what is shipped.
compile requirements/runtime.txt --extra uvloop "$@" pyproject.toml
compile requirements/dev.txt --constraints requirements/runtime.txt --extra local --extra uvloop --group dev "$@" pyproject.toml
compile requirements/benchmarks.txt "$@" requirements/benchmarks.in
if grep -nE '://|^-|file:|/(home|root|tmp|opt|work)/' requirements/*.txt; then
    echo "lock.sh: the lines above name an address or a path of this machine; they do not belong into a lock" >&2
    exit 1
fi
