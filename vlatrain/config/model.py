"""Configuration of the backbone: a family described as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from vlatrain.config.limits import Choice

LOCATIONS = "locations"  # of `model.box_words`: by words for places that train
LOCATION_WORDS = "location_words"  # of the modules that a task trains, the one that has them


@dataclass
class SiteConfig:
    """A site in a layer, by module paths relative to the layer.

    Attributes:
        output: the module whose output is adapted (before residual and norm).
        input: the module whose input a parallel adapter reads.
        modules: its linear layers and its norm by role: `query`, `key`, `value` (or one `qkv`), `inner`, `out`, `norm`. What
            methods that change existing layers (LoRA, BitFit, norm tuning) choose from. A gated feed-forward has a `gate`, too.
        every: key of the number in the transformers config, where only each so manieth layer has it (a Q-Former's cross-attention).
    """

    output: str = ""
    input: str = ""
    modules: dict[str, str] = field(default_factory=dict)
    every: str = ""


@dataclass
class VariantConfig:
    """Sites that differ with a setting of the architecture.

    Attributes:
        when: the setting and its values, as `text_config.feed_forward_proj=gated-gelu|gated-silu`.
        sites: the sites, each with what differs: an empty path is that of the tower, no modules are the tower's.
    """

    when: str = ""
    sites: dict[str, SiteConfig] = field(default_factory=dict)


@dataclass
class TowerConfig:
    """A stack of layers, by module paths in the model.

    Attributes:
        layers: path of the layer list.
        depth: key of the number of layers in the transformers config, as `vision_config.num_hidden_layers`; of several
            separated by `|` the first that is there. `KEY - 1`: the last is not used; `KEY.2`: the third of a list.
        width: key of the width of its states there.
        heads: key of the number of attention heads there.
        embeddings: path of the embeddings that feed it.
        norm: path of the final norm; empty if the stack has none.
        outside: paths of what else it has outside its layers, by role: `embedding_norm`, `head` (what its last states go to).
        projection: path of the linear layer that makes features of its states; a point only where it is a head of the task's.
        causal: whether a token sees only those before it (decoders, CLIP's text tower).
        positions: how its layers know of positions: `absolute` (they are in the embeddings), `relative` (T5's table), `rotary`,
            `queries` (a Q-Former's, which come first) or `grid` (windows and convolutions).
        max_positions: key of the number of its positions for tokens there, as `depth`. Texts may have any length where `positions`
            are relative, or the settings have no such number.
        sites: the sites of each layer, by name (attn, cross, ffn).
        variants: by name, sites that differ with a setting of the architecture (T5 1.1's gated feed-forward).
        renamed: by release of transformers, the modules of the sites that it renamed, and their paths before.
    """

    layers: str = ""
    depth: str = ""
    width: str = ""
    heads: str = ""
    embeddings: str = ""
    norm: str = ""
    outside: dict[str, str] = field(default_factory=dict)
    projection: str = ""
    causal: bool = False
    positions: str = "absolute"
    max_positions: str = (
        "text_config.max_position_embeddings|text_config.n_positions|max_position_embeddings|n_positions"
    )
    sites: dict[str, SiteConfig] = field(default_factory=dict)
    variants: dict[str, VariantConfig] = field(default_factory=dict)
    renamed: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass
class ModelTaskConfig:
    """What serves one task in a family.

    Attributes:
        architecture: name of the transformers class.
        checkpoint: hub name or folder of its pre-trained weights; a path starting with `assets:` is shipped with vlatrain.
        points: where adapters go in this backbone unless the task or the method says otherwise; empty: the task's own choice.
        towers: the towers the class has, in the order data flows through them.
        other_modality: by tower, the tower of the other modality whose states its layers can be given (cross-modal adapters read
            them).
        output_towers: the towers whose last states go to a head, and through no further tower.
        heads: modules outside the towers that a task may train with the adapters (path prefixes), e.g. projections.
        features: those of them that give the features of image and text (CLIP-Adapter and Tip-Adapter adapt these).
        trained: modules outside the towers that are new and hence always train with an adapter (path prefixes): a visual
            projection, a classifier.
        cacheable_inputs: by tower, what its states are a function of in a call for a sample: image, question, text, or another
            tower. Those of such a tower can be kept as long as nothing before them trains (`training/prefix_cache/`); empty: they
            cannot.
        contrast: the loss of image-text contrast that the backbone was trained with: softmax or sigmoid.
        config: settings of the architecture that differ from `model.config` in this task.
        subtasks: of a joint task, the tasks that can be its subtasks.
        samples_per_step: samples of an optimizer step, for each process: what `trainer.batch_size=auto` cuts into passes.
        samples_per_contrast: on a CPU, samples of a pass where those of a pass are each other's negatives; 0: those of a step.
    """

    architecture: str = ""
    checkpoint: str = ""
    points: list[str] = field(default_factory=list)
    towers: list[str] = field(default_factory=list)
    other_modality: dict[str, str] = field(default_factory=dict)
    output_towers: list[str] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    features: dict[str, str] = field(default_factory=dict)
    trained: list[str] = field(default_factory=list)
    cacheable_inputs: dict[str, list[str]] = field(default_factory=dict)
    contrast: str = "softmax"
    config: dict[str, Any] = field(default_factory=dict)
    subtasks: list[str] = field(default_factory=list)
    samples_per_step: int = 32
    samples_per_contrast: int = 0


@dataclass
class SubmodelConfig:
    """One of the models that a composite joins, with its own checkpoint.

    Attributes:
        architecture: name of its transformers class; `features`: there is none, images come as features extracted before.
        checkpoint: hub name or folder of its pre-trained weights; a path starting with `assets:` is shipped with vlatrain.
        revision: of a checkpoint of the hub: a branch, a tag or a commit; null: its main branch. A run keeps the commit.
        towers: the towers that it has, in the order data flows through them.
        other_modality: by tower, the tower whose states its layers can be handed.
        norm: path, in the submodel, of the norm that its last states must still go through; empty: none.
        image_size: pixels a side that its published image processor makes, where its settings allow for more (DINOv2's positions
            are stretched). What a checkpoint at hand makes is asked of its own.
    """

    architecture: str = ""
    checkpoint: str = ""
    revision: str | None = None
    towers: list[str] = field(default_factory=list)
    other_modality: dict[str, str] = field(default_factory=dict)
    norm: str = ""
    image_size: int | None = None


@dataclass
class ModelConfig:
    """A frozen backbone.

    Attributes:
        name: name of this option.
        family: the kind of model: a key of `vlatrain.backbones.loading.FAMILIES`.
        checkpoint: hub name or local folder; null takes the task's own checkpoint below.
        revision: of a checkpoint of the hub: a branch, a tag or a commit; null: its main branch. A run keeps the commit.
        adapter_lr: learning rate that suits adapters in it: what `optim.lr` starts from.
        full_lr: the same for `adapter=full`.
        random_init: build the architecture with random weights, no download, with a tokenizer trained on the data.
        quantize: bits of the weights in the towers' linear layers, 8 or 4; null: they are as they are. What trains stays fp32.
        tasks: what serves each task.
        submodels: of a composite, the models that it is made of: `vision` and `language`.
        towers: the towers by name.
        config: the architecture's settings (transformers config), for `random_init` and `inspect` without the checkpoint.
        prompts: by task, what a model that continues text is told: `{question}` stands for the question. A task that is asked
            questions and is not named is told what `vqa` is.
        box_words: how it writes boxes: as florence2, paligemma, qwen2_5_vl or qwen3_vl was trained to, by words for places that
            train (locations), or in digits; see `vlatrain.backbones.box_words`.
        options: what only this family has.
    """

    name: str = "tiny_blip"
    family: str = "blip"
    checkpoint: str | None = None
    revision: str | None = None
    adapter_lr: float = 1e-3
    full_lr: float = 1e-4
    random_init: bool = False
    quantize: Annotated[int | None, Choice(4, 8)] = None
    tasks: dict[str, ModelTaskConfig] = field(default_factory=dict)
    submodels: dict[str, SubmodelConfig] = field(default_factory=dict)
    towers: dict[str, TowerConfig] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    prompts: dict[str, str] = field(default_factory=dict)
    box_words: Annotated[str, Choice("digits", LOCATIONS, "florence2", "paligemma", "qwen2_5_vl", "qwen3_vl")] = (
        LOCATIONS
    )
    options: dict[str, Any] = field(default_factory=dict)
