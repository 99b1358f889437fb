#!/bin/bash
# Runs an experiment on the GPUs of several nodes:
#
#     sbatch docs/scripts/slurm.sh glyphs --workdir /shared/runs/glyphs --num-steps 10000
#
# Start it in the folder of this project. There is one process for each GPU, because JAX
# lets process k of a node see GPU k alone. On nodes without GPUs, start one process on each
# (--ntasks-per-node=1, without --gpus-per-node).
#
# Only process 0 writes to the folder of the run, and all nodes read the data sets. If a
# process dies, srun ends the others. Give the same command again, and the run goes on from
# its last checkpoint, also with another number of nodes.

#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

set -euo pipefail

# processes that look for each other through a proxy wait for ever
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY all_proxy ALL_PROXY

srun --kill-on-bad-exit=1 python -m experiments "$@" --coordinator auto
