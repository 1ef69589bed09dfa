# Sourced by the other scripts: changes to the repository, makes .venv with the packages of requirements.txt and this
# package (editable) unless it is up to date, and sets PY to its Python.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
PY=.venv/bin/python
stamp=.venv/requirements.installed
if ! { [ -x "$PY" ] && cat requirements.txt pyproject.toml | cmp -s - "$stamp"; }; then
    python=$(command -v python3 || command -v python) || { echo "setup: no python3 found" >&2; exit 1; }
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "setup: Python 3.11 or newer is needed" >&2; exit 1; }
    echo "setup: installing into .venv (a few minutes, once)"
    { [ -x "$PY" ] || "$python" -m venv .venv; } && "$PY" -m pip install --quiet -r requirements.txt &&
        "$PY" -m pip install --quiet --no-deps --no-build-isolation --editable . || exit 1
    cat requirements.txt pyproject.toml > "$stamp"
fi
