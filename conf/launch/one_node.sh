#!/bin/sh
# One training on all GPUs of one machine:
#
#   sh conf/launch/one_node.sh task=vqa model=blip
#
# PROCESSES=2 takes so many of them; with trainer.device=cpu it starts processes on the CPU.
set -eu
exec torchrun --standalone --nproc-per-node="${PROCESSES:-gpu}" -m vlatrain "$@"
