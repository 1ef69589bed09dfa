#!/usr/bin/env bash
# The whole test suite: style, then tests. Four to six minutes on two cores after installation. Arguments go to pytest.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
"$PY" -m ruff check .
"$PY" -m ruff format --check --quiet .
# one thread and one process per core: the networks of the tests are too small for several threads
OMP_NUM_THREADS=1 exec "$PY" -m pytest -n auto --dist worksteal "$@"
