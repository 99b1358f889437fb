#!/bin/bash
# Runs an experiment on all hosts of a TPU slice, one process on each:
#
#     export TPU_NAME=my-slice ZONE=us-west4-a
#     docs/scripts/tpu_pod.sh glyphs --workdir /mnt/shared/runs/glyphs --num-steps 10000
#
# Every host has this project in the folder PROJECT (by default siamese_jax in the home
# folder), installed by `pip install -e '.[experiments,tpu]'`, and the data sets. Only
# process 0 writes to the folder of the run. Put it on a disk that outlives the slice. To
# go on after a host was lost, give the same command again.
#
# On Kubernetes this script is not needed: the last line of the command below is the command
# of the container.

set -euo pipefail
: "${TPU_NAME:?must be the name of the slice}" "${ZONE:?must be the zone of the slice}"

gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --worker=all --command="
cd ${PROJECT:-siamese_jax} &&
python3 -m experiments${*:+ ${*@Q}} --coordinator auto"
