#!/usr/bin/env bash
# The whole test suite: style, then tests. At most 10 minutes on two cores after installation. Arguments go to pytest.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
"$PY" -m ruff check .
"$PY" -m ruff format --check --quiet .
exec "$PY" -m pytest "$@"
