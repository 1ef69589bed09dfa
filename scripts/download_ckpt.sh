#!/usr/bin/env bash
# Downloads the authors' checkpoints, as their script of this name does. Arguments go to eval/download_checkpoints.py.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
exec "$PY" eval/download_checkpoints.py "$@"
