#!/bin/sh
# One training on all GPUs of one machine:
#
#   sh conf/launch/one_node.sh task=vqa model=blip
#
# PROCESSES=2 takes so many of them; with trainer.device=cpu it starts processes on the CPU. A backbone that one GPU has no room for:
#
#   sh conf/launch/one_node.sh task=instruct model=llava trainer.shard=true data=files data.train=chats.jsonl
#
set -eu
exec torchrun --standalone --nproc-per-node="${PROCESSES:-gpu}" -m vlatrain "$@"
