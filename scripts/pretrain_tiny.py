"""Pre-train the shipped tiny backbones on generated scenes: `python scripts/pretrain_tiny.py blip` (or `clip`).

Seeded, resumable (`--work`), on CUDA where there is one. See vlatrain/assets/README.md for what comes out.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from tiny_batches import PAD, SKILLS, answers, ask, encode, new_scene, pictures, tell  # noqa: E402
from tiny_blip import (  # noqa: E402
    TinyBlip, caption_loss, dense_loss, language_loss, match_loss, pointer_loss, token_loss,
)  # fmt: skip

SEED = 20
DENSE, ONE, TOTAL = 1000, 1500, 14000  # steps: end of the dense stage, of one-figure scenes, of everything
IMAGES = 32


def blip_losses(model: TinyBlip, step: int, rng: random.Random, device: str) -> dict[str, Tensor]:
    """The losses of one step of its stage: dense first, then questions and captions on one figure, then on up to three."""
    dense = step < DENSE
    most = 3 if dense or step >= ONE else 1
    batch = pictures([new_scene(rng, most) for _ in range(IMAGES * (2 if dense else 1))])
    batch.__dict__.update({k: v.to(device) for k, v in batch.__dict__.items() if isinstance(v, Tensor)})
    image = model.see(batch.pixels_B3HW)
    losses = dense_loss(model, image, batch)
    if dense:
        return losses
    wanted = ["existence", "existence", "negation", "negation", "colour", "shape", "shape", "count", "position", "position", "echo"]
    asked = [ask(scene, rng, wanted) for scene in batch.scenes]
    texts = encode(asked, 16)
    told = answers(asked, rng)
    texts.__dict__.update({k: v.to(device) for k, v in texts.__dict__.items()})
    looks: list[Tensor] = []
    ids = texts.ids_BQL.flatten(0, 1)
    states = model.read(ids, image, looks)
    losses["point"] = pointer_loss(looks, texts, batch)
    losses["token"] = token_loss(model, states, texts, batch)
    mask = ids != PAD
    # transformers' generate lets the decoder see the padding's states too, its forward does not: learn both
    mask = mask | (torch.rand(len(ids), 1, device=device) < 0.5)
    said = told.to(device).flatten(0, 1)
    logits = model.write(said, states, mask[:, None, None, :])
    losses["answer"] = language_loss(logits, said)
    with torch.no_grad():
        right = (logits[:, 0].argmax(-1) == said[:, 1]).view(IMAGES, -1)
        for skill in (*SKILLS, "echo"):
            hits = [right[b, q] for b, row in enumerate(asked) for q, text in enumerate(row) if text.skill == skill]
            losses[f"%{skill}"] = torch.stack(hits).float().mean()
    stories = [tell(scene, rng) for scene in batch.scenes]
    texts = encode([story[0] for story in stories], 20)
    texts.__dict__.update({k: v.to(device) for k, v in texts.__dict__.items()})
    losses |= match_loss(model, image, texts, [s[1] for s in stories], [s[2] for s in stories], batch)
    losses |= caption_loss(model, image, texts, batch)
    return losses


def train(model: nn.Module, losses_of, total: int, work: Path, device: str, rate: float) -> None:
    """AdamW with warm-up and cosine over `total` steps; continues from `work` where there is a checkpoint."""
    decay = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=device == "cuda")
    first, path, log = 0, work / "last.pt", work / "log.jsonl"
    work.mkdir(parents=True, exist_ok=True)
    if path.exists():
        state = torch.load(path, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    sums: dict[str, float] = {}
    began = time.time()
    for step in range(first, total):
        warm = min(1.0, (step + 1) / 200)
        lr = rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / total)))
        for group in optimizer.param_groups:
            group["lr"] = lr
        torch.manual_seed(SEED + step)
        with torch.autocast(device, dtype=torch.bfloat16):
            losses = losses_of(model, step, random.Random(SEED * 1_000_003 + step), device)
        loss = sum(value for name, value in losses.items() if name[0] != "%")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        if (step + 1) % 50 == 0 or step + 1 == total:
            line = {"step": step + 1, "ms": round(1000 * (time.time() - began) / 50)}
            line |= {name: round(value / 50, 3) for name, value in sums.items()}
            with log.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
            sums, began = {}, time.time()
        if (step + 1) % 500 == 0 or step + 1 == total:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state, work / "next.pt")
            (work / "next.pt").replace(path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", choices=("blip", "clip"))
    parser.add_argument("--work", type=Path, default=Path("pretrain-work"))
    parser.add_argument("--steps", type=int, default=TOTAL)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(SEED)
    model = TinyBlip().to(device)
    print(sum(p.numel() for n, p in model.named_parameters() if not n.startswith("aux_")), "parameters")
    train(model, blip_losses, args.steps, args.work / args.which, device, 1e-3)


if __name__ == "__main__":
    main()
