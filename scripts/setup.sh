# Sourced by the other scripts: changes to the repository, makes .venv with the packages of requirements.txt and this
# package (editable) unless it is up to date, and sets PY to its Python.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
PY=.venv/bin/python
stamp=.venv/requirements.installed
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11, 4))' 2> /dev/null; }
if ! { [ -x "$PY" ] && cat requirements.txt pyproject.toml | cmp -s - "$stamp"; }; then
    if ! "$PY" -m pip --version > /dev/null 2>&1; then  # none yet, or half made
        python=
        for name in python3 python python3.14 python3.13 python3.12 python3.11; do
            if command -v "$name" > /dev/null && new_enough "$name"; then python=$name && break; fi
        done
        [ -n "$python" ] || { echo "setup: no Python 3.11.4 or newer found" >&2; exit 1; }
        rm -rf .venv
        "$python" -m venv .venv || { echo "setup: $python cannot make .venv; on Debian, install python3-venv" >&2; exit 1; }
    fi
    echo "setup: installing into .venv (a few minutes, once)"
    "$PY" -m pip install --quiet -r requirements.txt &&
        "$PY" -m pip install --quiet --no-deps --no-build-isolation --editable . || exit 1
    cat requirements.txt pyproject.toml > "$stamp"
fi
