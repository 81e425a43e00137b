"""Pre-train the shipped tiny backbones on generated scenes, and write their folders.

    python scripts/pretrain_tiny.py blip
    python scripts/pretrain_tiny.py clip      # its vision tower starts from the shipped tiny_blip's
    python scripts/pretrain_tiny.py gpt       # a language model: text about the scenes, no image

Seeded, resumable (`--work` holds the state), on CUDA where there is one. vlatrain/assets/README.md tells what comes
out and how long it takes; scripts/tiny_scores.py measures it. On a busy CPU set OMP_WAIT_POLICY=passive.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import tiny_blip  # noqa: E402
import tiny_clip  # noqa: E402
import tiny_gpt  # noqa: E402
from tiny_batches import PAD, SKILLS, Pictures, answers, ask, encode, new_scene, pictures, tell  # noqa: E402
from tiny_export import export_blip, export_clip, export_gpt  # noqa: E402

from vlatrain.data.scenes import pick  # noqa: E402

T = TypeVar("T")
Losses = dict[str, Tensor]  # by name; names that begin with % are accuracies, only reported

SEED = 20
#: Steps: the end of the dense stage, of one-figure scenes, of no "red or blue?", of the flat part of the schedule, and all.
DENSE, ONE, CHOICE, FLAT, BLIP_STEPS = 3000, 3800, 5500, 6000, 8000
CLIP_FLAT, CLIP_STEPS = 1500, 4000
#: Of the language model: the end of one-figure scenes, of two-figure ones, of the flat part of the schedule, and all.
GPT_ONE, GPT_TWO, GPT_FLAT, GPT_STEPS = 1000, 2500, 5000, 7000
PEAK = 1e-3
IMAGES = 48


def plan(rng: random.Random, step: int) -> list[str]:
    """The skills that one image is asked about in one step; questions that offer their answers come last."""
    late = ("choice", "choice", "choice") if step >= CHOICE else ()
    more = pick(rng, ("echo", "existence", "negation", "shape", "position", *late))
    return ["existence", "negation", "shape", "position", pick(rng, ("colour", "count")), more]


def scenes(rng: random.Random, number: int, most: int, device: str) -> Pictures:
    """A batch of `number` scenes of one to `most` figures."""
    return on(pictures([new_scene(rng, most) for _ in range(number)]), device)


def on(batch: T, device: str) -> T:
    """The dataclass with its tensors on the device."""
    for name, value in vars(batch).items():
        if isinstance(value, Tensor):
            setattr(batch, name, value.to(device))
    return batch


def question_losses(model: tiny_blip.TinyBlip, image: Tensor, batch: Pictures, step: int, rng: random.Random) -> Losses:
    """Six questions an image: where their words look, what their words know, and the answers."""
    device = str(image.device.type)
    asked = [ask(scene, rng, plan(rng, step)) for scene in batch.scenes]
    texts = on(encode(asked, 17), device)
    said = answers(asked, rng).to(device).flatten(0, 1)
    looks: list[Tensor] = []
    ids = texts.ids.flatten(0, 1)
    states = model.read(ids, image, looks)
    losses = {"point": tiny_blip.pointer_loss(looks, texts, batch)}
    losses["token"] = tiny_blip.token_loss(model, states, texts, batch)
    # transformers' generate lets the decoder see the padding's states too, vlatrain does not: learn both
    mask = (ids != PAD) | (torch.rand(len(ids), 1, device=device) < 0.5)
    logits = model.write(said, states, mask[:, None, None, :])
    losses["answer"] = tiny_blip.language_loss(logits, said)
    right = (logits[:, 0].detach().argmax(-1) == said[:, 1]).view(len(asked), -1)
    for skill in (*SKILLS, "echo"):
        hits = [right[b, q] for b, row in enumerate(asked) for q, text in enumerate(row) if text.skill == skill]
        losses[f"%{skill}"] = torch.stack(hits or [right.new_zeros(())]).float().mean()
    return losses


def blip_losses(model: nn.Module, step: int, rng: random.Random, device: str) -> Losses:
    """The losses of one step of its stage: dense first, then also texts, on one figure and then on up to three."""
    assert isinstance(model, tiny_blip.TinyBlip)
    dense = step < DENSE
    batch = scenes(rng, IMAGES * 4 // 3 if dense else IMAGES, 3 if dense or step >= ONE else 1, device)
    image = model.see(batch.pixels)
    losses = model.aux_dense(image, model.text_encoder.embeddings.word_embeddings.weight, batch)
    if dense:
        return losses
    losses |= question_losses(model, image, batch, step, rng)
    stories = [tell(scene, rng) for scene in batch.scenes]
    texts = on(encode([texts for texts, _, _ in stories], 20), device)
    keys, false_keys = [key for _, key, _ in stories], [key for _, _, key in stories]
    losses |= tiny_blip.match_loss(model, image, texts, keys, false_keys, batch)
    return losses | tiny_blip.caption_loss(model, image, texts, batch)


def clip_losses(model: nn.Module, step: int, rng: random.Random, device: str) -> Losses:
    """The losses of one step; one-figure scenes for the first tenth."""
    assert isinstance(model, tiny_clip.TinyClip)
    return tiny_clip.losses(model, scenes(rng, 64, 3 if step >= CLIP_STEPS // 10 else 1, device), rng)


def gpt_losses(model: nn.Module, step: int, rng: random.Random, device: str) -> Losses:
    """The loss of one step, on scenes of one, two and then three figures."""
    assert isinstance(model, GPT2LMHeadModel)
    return tiny_gpt.losses(model, 32, 1 if step < GPT_ONE else 2 if step < GPT_TWO else 3, rng, device)


def rate_at(step: int, flat: int, steps: int) -> float:
    """Learning rate: 200 steps of warm-up, a slow cosine, and after the flat part a straight line to zero."""
    warm = min(1.0, (step + 1) / 200)
    slow = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / 12000))
    return PEAK * warm * slow * min(1.0, (steps - step) / (steps - flat))


def train(
    model: nn.Module,
    losses_of: Callable[[nn.Module, int, random.Random, str], Losses],
    flat: int,
    steps: int,
    work: Path,
    device: str,
) -> None:
    """AdamW with `rate_at`; continues from `work` where there is a checkpoint."""
    decay = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.98))
    first, path, log = 0, work / "last.pt", work / "log.jsonl"
    work.mkdir(parents=True, exist_ok=True)
    if path.exists():
        state = torch.load(path, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    sums: dict[str, float] = {}
    began = time.time()
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, flat, steps)
        torch.manual_seed(SEED + step)
        with torch.autocast(device, dtype=torch.bfloat16):
            losses = losses_of(model, step, random.Random(SEED * 1_000_003 + step), device)
        loss = torch.stack([value for name, value in losses.items() if name[0] != "%"]).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        if (step + 1) % 50 == 0:
            line = {"step": step + 1, "ms": round(1000 * (time.time() - began) / 50)}
            line |= {name: round(value / 50, 3) for name, value in sums.items()}
            with log.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
            sums, began = {}, time.time()
        if (step + 1) % 500 == 0 or step + 1 == steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state, work / "next.pt")
            (work / "next.pt").replace(path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=("blip", "clip", "gpt"))
    parser.add_argument("--work", type=Path, default=Path("pretrain-work"), help="checkpoints and logs")
    parser.add_argument("--out", type=Path, default=ROOT / "vlatrain" / "assets", help="where the folder is written")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(SEED)
    model: nn.Module
    if args.which == "blip":
        model = tiny_blip.TinyBlip().to(device)
        train(model, blip_losses, FLAT, BLIP_STEPS, args.work / "blip", device)
        export_blip(model, tiny_blip.config(), args.out / "tiny_blip")
    elif args.which == "gpt":
        model = GPT2LMHeadModel(tiny_gpt.config()).to(device)
        train(model, gpt_losses, GPT_FLAT, GPT_STEPS, args.work / "gpt", device)
        export_gpt(model, tiny_gpt.config(), args.out / "tiny_gpt")
    else:
        model = tiny_clip.TinyClip()
        model.start_from(load_file(ROOT / "vlatrain" / "assets" / "tiny_blip" / "model.safetensors"))
        model.to(device)
        train(model, clip_losses, CLIP_FLAT, CLIP_STEPS, args.work / "clip", device)
        export_clip(model.clip, tiny_clip.config(), args.out / "tiny_clip")


if __name__ == "__main__":
    main()
