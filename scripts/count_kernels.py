"""Counts the kernels of a training step's forward pass on a GPU, without one: `python scripts/count_kernels.py task=vqa ...`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests.fake_cuda import TOGETHER, forward, unavailable
from vlatrain.cli.registry import register
from vlatrain.config.folder import conf_dir
from vlatrain.data.subtasks import load_run
from vlatrain.injection.site import Site
from vlatrain.training.setup import new_setup


def main(words: list[str]) -> None:
    """Print kernels, casts, bytes and waits of one forward pass of `trainer.batch_size` samples."""
    if reason := unavailable():
        sys.exit(reason)
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = OmegaConf.to_object(compose("train", ["run.name=counted", *words]))
    samples = load_run(config, ["train", "eval"])
    setup = new_setup(config, samples)
    sites = sum(isinstance(module, Site) for module in setup.model.modules())
    batch = setup.task.collate(samples["train"][: config.trainer.samples_per_pass])
    _, counts = forward(setup.model, setup.task, batch)
    total, moved = counts.kernels.total(), counts.bytes.total()
    cast = sum(count for name, count in counts.bytes.items() if name.startswith(("cast ", TOGETHER)))
    print(
        f"{total} kernels, {counts.casts} of them casts; {moved / 1e9:.2f} GB, {cast / 1e9:.2f} of them by casts; "
        f"{sites} places, {len(batch['ids'])} samples"
    )
    for name, count in counts.kernels.most_common(15):
        print(f"  {count:5} {name:32} {counts.bytes[name] / 1e9:.2f} GB")
    for place, count in counts.waits.items():
        print(f"  the host waits {count} x: {place}")


if __name__ == "__main__":
    main(sys.argv[1:])
