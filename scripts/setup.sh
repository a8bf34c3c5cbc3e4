#!/usr/bin/env bash
# Makes .venv: what requirements/dev.txt locks, hashes checked, and this project itself, editable.
# Needs Python 3.11 or newer ($PYTHON says which) and a package index; takes uv where it is, else venv and pip.
set -euo pipefail
cd "$(dirname "$0")/.."

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if is_new_enough "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    echo "setup: no Python 3.11 or newer found; install one or name it: make setup PYTHON=/path/to/python3" >&2
    return 1
}

make_venv() {
    local python=$1
    if command -v uv >/dev/null; then
        uv venv --quiet --clear --python "$python" .venv
    elif "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        "$python" -m venv --clear .venv
    else
        install_venv_module "$python"
        "$python" -m venv --clear .venv
    fi
}

# Debian and Ubuntu keep ensurepip in a package of its own.
install_venv_module() {
    local package
    package="$("$1" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        echo "setup: $1 has no ensurepip; install it (on Debian and Ubuntu: apt-get install $package) or uv" >&2
        return 1
    fi
    echo "setup: installing $package"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >/dev/null
}

# --no-build-isolation: the build backend is locked as well, so the second step of each fetches nothing.
install_packages() {
    if command -v uv >/dev/null; then
        uv pip install --quiet --python .venv/bin/python --require-hashes --requirement requirements/dev.txt
        uv pip install --quiet --python .venv/bin/python --offline --no-build-isolation --no-deps --editable .
    else
        .venv/bin/python -m pip install --quiet --require-hashes --requirement requirements/dev.txt
        .venv/bin/python -m pip install --quiet --no-index --no-build-isolation --no-deps --editable .
    fi
}

has_what_it_needs() {
    is_new_enough .venv/bin/python && { command -v uv >/dev/null || .venv/bin/python -m pip --version >/dev/null 2>&1; }
}

if ! has_what_it_needs; then
    python=$(find_python)
    make_venv "$python"
fi
install_packages
echo "setup: .venv is ready ($(.venv/bin/python --version))"
