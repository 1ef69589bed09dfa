#!/usr/bin/env bash
# The tests of mnemonics/adapters against the real packages, in an environment of their own (.venv-adapters): nothing
# else of this project needs them.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv-adapters/bin/python ] || python3 -m venv .venv-adapters
.venv-adapters/bin/python -m pip install --quiet -r requirements.txt avalanche-lib==0.6.0
exec .venv-adapters/bin/python -m pytest tests/adapters -W default "$@"
