#!/bin/sh
# One training on several machines that see the same folder. The same command on each, at about the same time, but for NODE:
#
#   NODES=2 FIRST=name-of-the-first-machine NODE=0 sh conf/launch/nodes.sh run.name=big task=vqa model=blip
#   NODES=2 FIRST=name-of-the-first-machine NODE=1 sh conf/launch/nodes.sh run.name=big task=vqa model=blip
#
# NODES: how many machines; FIRST: the host or address of the first; NODE: the number of this one, from 0. PORT: one that is free on
# the first (29500); PROCESSES: of each machine (as many as it has GPUs). Name the run, so that all write into one folder.
set -eu
exec torchrun --nnodes="$NODES" --node-rank="$NODE" --master-addr="$FIRST" --master-port="${PORT:-29500}" \
    --nproc-per-node="${PROCESSES:-gpu}" -m vlatrain "$@"
