#!/bin/sh
# An environment of its own for CoRelAy and ViRelAy: they want an older pillow than other packages do.
#
#     sh examples/spray/environment.sh FOLDER [PYTHON]
set -e
"${2:-python3}" -m venv "${1:?give the folder of the environment}"
"$1/bin/python" -m pip install --quiet corelay virelay
echo "made: $1/bin/python examples/spray/analyse.py PROJECT, then $1/bin/virelay PROJECT/project.yaml"
