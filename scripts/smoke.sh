#!/usr/bin/env bash
# The whole story once, from the command line, in a temporary folder: train, kill, resume, evaluate, predict, inspect, a sweep.
set -euo pipefail

work=$(mktemp -d)
pid=""
cleanup() {
    if [ -n "$pid" ]; then kill -9 "$pid" 2>/dev/null || true; fi
    rm -rf "$work"
}
trap cleanup EXIT
cd "$work"
run=outputs/vqa/tiny_blip/smoke
command=(vlatrain experiment=smoke run.name=smoke trainer.max_steps=30 trainer.save_every=2)

step() { printf '\n== %s\n' "$*"; }
need() { for path in "$@"; do [ -e "$path" ] || { echo "missing: $path" >&2; exit 1; }; done; }

step "train, and kill it at the first checkpoint"
"${command[@]}" >first.log 2>&1 &
pid=$!
for _ in $(seq 600); do
    if compgen -G "$run/checkpoints/step_*" >/dev/null || ! kill -0 "$pid" 2>/dev/null; then break; fi
    sleep 0.1
done
kill -9 "$pid" 2>/dev/null || true
wait "$pid" 2>/dev/null || true
pid=""
need "$run/checkpoints" || { cat first.log; exit 1; }

step "resume"
"${command[@]}" resume=auto
need "$run"/{config.yaml,metrics.json,metrics.jsonl,predictions.jsonl,run.log,adapter/adapter_config.json,adapter/adapter_model.safetensors}

step "evaluate again"
vlatrain eval run="$run"

step "predict"
python - <<'PYTHON'
from PIL import Image

Image.new("RGB", (64, 64), (200, 30, 30)).save("photo (1), red.png")
PYTHON
vlatrain predict run="$run" image="photo (1), red.png" question="what's the colour, please?" output=answers.jsonl
need answers.jsonl

step "inspect"
vlatrain inspect model=blip task=captioning adapter.dim=64

step "sweep"
vlatrain -m experiment=smoke adapter=bottleneck,lora,none trainer.max_steps=1 data.eval_size=4
need outputs/sweeps/*/sweep.json

step "a typo is refused"
if vlatrain adapter.dmi=3; then echo "a typo passed" >&2; exit 1; fi

printf '\nsmoke: all well\n'
