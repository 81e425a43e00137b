"""`--help`, written for somebody who sees vlatrain for the first time. Needs neither Hydra nor torch."""

from __future__ import annotations

import dataclasses
import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence

from vlatrain.config.folder import RECIPES
from vlatrain.config.keys import all_keys, required, type_of
from vlatrain.config.schema import AS_TRAIN, TrainConfig, readers
from vlatrain.verbs import VERBS

WIDEST = 110  # columns; longer lines are hard to read
_COMMAND = re.compile(r"  (vlatrain|torchrun) ")
_NAME = re.compile(r"usage: |  \S+(?: \S+)* {2,}")
_QUOTED = re.compile(r'"[^"]*"')

_EXAMPLES = """\
  vlatrain                                              # a first run: tiny model, built-in data, CPU, 2 to 3 minutes
  vlatrain task=captioning model=blip data=files data.train=train.jsonl data.eval=val.jsonl
  vlatrain -m adapter=bottleneck,lora,full,none         # a sweep: four runs, one table
  vlatrain eval run=outputs/vqa/tiny_blip/NAME data=files data.eval=other.jsonl
  vlatrain predict run=outputs/vqa/tiny_blip/NAME image=photo.jpg question="what colour is the door?"\
"""

_KEYS = """\
  adapter.dim=64          width of the adapter: parameters and capacity
  adapter.points=[...]    where adapters go: vision.*.attn, decoder.6-11.{cross,ffn}, text.last4.*
  model.checkpoint=...    other weights: a hub name or a local folder
  model/vision=dinov2     a submodel of model=composite, as is model/language=t5
  data.train=FILE         with data=files, as are data.eval=, data.test= and data.root=, the folder of their images
  trainer.epochs=3        or trainer.max_steps=1000; trainer.batch_size=16; trainer.precision=bf16
  optim.lr=5e-4           learning rate
  run.name=NAME           name of the run; again with resume=auto, it continues where it stopped
  seed=1                  another seed\
"""

_HYDRA = """\
  -m, --multirun          sweep over comma-separated values, one run each
  --cfg job               print the whole configuration and stop
  --config-dir FOLDER     add your own YAML files (FOLDER/adapter/mine.yaml becomes adapter=mine)
  --info                  where each value comes from
  --shell-completion      bash: eval "$(vlatrain -sc install=bash)"; zsh: the same after `bashcompinit`; \
fish: vlatrain -sc install=fish | source
  --hydra-help            everything else that Hydra takes
  --version               vlatrain's version\
"""

_VERB_TEXTS = {
    "train": (
        "vlatrain [train] [GROUP=OPTION ...] [KEY=VALUE ...]",
        "Trains an adapter in a frozen vision-language model, evaluates it, and writes one run folder: "
        "outputs/<task>/<model>/<run.name>/ with config.yaml, adapter/, metrics.json, predictions.jsonl, run.log.",
        "  vlatrain task=vqa model=blip adapter.dim=64\n"
        "  vlatrain task=captioning data=files data.train=train.jsonl data.eval=val.jsonl data.root=images\n"
        "  vlatrain run.name=long trainer.epochs=20 resume=auto   # start it, or continue where it stopped\n"
        "  vlatrain -m adapter.dim=16,64,256 task=vqa,captioning,retrieval\n"
        "  torchrun --nproc-per-node 2 -m vlatrain task=vqa model=blip",
    ),
    "eval": (
        "vlatrain eval run=FOLDER [KEY=VALUE ...]",
        "Scores a finished run again. Everything is as in the run's config.yaml unless you say otherwise: data=files for files of "
        "yours where the run was on other data. What only training reads (optim, trainer.epochs) is refused.\n"
        "  split=eval|test         which data (default: eval)\n"
        "  output=FOLDER           where the results go (default: <run>/evaluations/<split>)",
        "  vlatrain eval run=outputs/vqa/blip/NAME\n"
        "  vlatrain eval run=outputs/vqa/blip/NAME split=test data=files data.test=test.jsonl\n"
        "  vlatrain eval run=outputs/vqa/blip/NAME data=files data.eval=other.jsonl data.root=images\n"
        "  vlatrain eval run=outputs/captioning/blip/NAME task.decode.num_beams=5\n"
        "  vlatrain eval run=outputs/vqa/blip/NAME trainer.eval_batch_size=8 trainer.device=cpu",
    ),
    "predict": (
        "vlatrain predict run=FOLDER image=... [question=... | text=... | texts=[...]] [KEY=VALUE ...]",
        "Asks a trained model. Text is taken as you type it inside your shell's quotes. In a terminal, without an image, it "
        "loads the model once and answers line by line.\n"
        "  image=FILE or FOLDER    what to look at\n"
        "  images=[FILE,FILE]      several that one question is about, in order\n"
        "  question=TEXT           VQA: what to answer; instruct: what the user says; grounding: what to find\n"
        "  text=TEXT               retrieval: find the images of image=FOLDER that fit\n"
        "  texts=[A,B] or FILE     retrieval: find the text that fits image=FILE\n"
        "  input=FILE              many at once: a file of samples as for data=files\n"
        "  subtask=NAME            a joint run: the subtask that is asked, where the query fits several\n"
        "  output=FILE             results as JSONL\n"
        "  draw=FOLDER             grounding: images with the boxes drawn\n"
        "  top_k=5                 answers, classes or hits shown; of generated answers as many as beams",
        "  vlatrain predict run=outputs/vqa/blip/NAME                 # in a terminal: a conversation\n"
        '  vlatrain predict run=outputs/vqa/blip/NAME image=photo.jpg question="what colour is the door?"\n'
        "  vlatrain predict run=outputs/captioning/blip/NAME image=photos/ output=captions.jsonl\n"
        '  vlatrain predict run=outputs/retrieval/clip/NAME image=photos/ text="a dog on a beach"\n'
        "  vlatrain predict run=outputs/retrieval/clip/NAME image=photo.jpg texts=labels.txt\n"
        "  vlatrain predict run=outputs/vqa/blip/NAME input=questions.jsonl output=answers.jsonl",
    ),
    "merge": (
        "vlatrain merge sources=[FOLDER,FOLDER] output=FOLDER [KEY=VALUE ...]",
        "Combines finished runs into a new folder. Without more, the mean of adapters of the same kind and shape, as a run folder "
        "that eval and predict take.\n"
        "  weights=[0.7,0.3]       a factor for each, any numbers (task arithmetic); default: the mean; "
        "of LoRA the changes of the weights are added, exactly, in a rank that is the sum of the ranks; "
        "of other adapters each tensor is, so that what they do is not: with weights that do not "
        "add to 1 it grows by the product of their layers\n"
        "  keep=1                  of a fusion, the most used sources; the rest is dropped\n"
        "  output=FOLDER           where the result goes; new or empty",
        "  vlatrain merge sources=[outputs/vqa/blip/A,outputs/vqa/blip/B] output=outputs/vqa/blip/mean\n"
        "  vlatrain merge sources=[outputs/vqa/blip/A,outputs/vqa/blip/B] weights=[1.0,-0.5] output=outputs/vqa/blip/less-b\n"
        "  vlatrain merge sources=[outputs/vqa/blip/FUSION] keep=1 output=outputs/vqa/blip/pruned",
    ),
    "export": (
        "vlatrain export run=FOLDER to=FOLDER|hub:OWNER/NAME [KEY=VALUE ...]",
        "Hands on what a run has trained, with a model card: data, figures beside their baselines, code that loads it. "
        "Predictions, the data report and logs stay where they are.\n"
        "  to=FOLDER               new or empty; eval, predict and adapter.sources take it as they take a run\n"
        "  to=hub:OWNER/NAME       a repository of the hub, which is made if it is not there; eval, predict and "
        "adapter.sources take hub:OWNER/NAME too\n"
        "  form=adapter            the adapter with what eval and predict need (the default)\n"
        "  form=merged             a whole checkpoint with the adapter in its weights, for model.checkpoint= and from_pretrained: "
        "LoRA and PEFT's other methods, bitfit, task_lora, full fine-tuning; for its task only\n"
        "  form=peft-lora          a LoRA that needs PEFT and transformers alone\n"
        "  license=NAME            the licence, by the hub's name for it\n"
        "  private=true            a new repository that only its owner sees",
        "  vlatrain export run=outputs/vqa/blip/NAME to=shared/doors\n"
        "  vlatrain export run=outputs/vqa/blip/NAME to=hub:me/doors license=apache-2.0 private=true\n"
        "  vlatrain export run=outputs/vqa/blip/LORA to=checkpoints/blip-mine form=merged\n"
        '  vlatrain predict run=hub:me/doors image=photo.jpg question="what colour is the door?"',
    ),
    "inspect": (
        "vlatrain inspect [GROUP=OPTION ...] [KEY=VALUE ...]",
        "Shows the injection points of a backbone, which of them the configuration selects, trainable parameters, "
        "size of the adapter file and estimated memory. Takes what train takes; needs neither weights nor network.",
        "  vlatrain inspect model=blip task=vqa\n"
        "  vlatrain inspect model=blip task=captioning adapter.dim=64\n"
        "  vlatrain inspect model=clip task=retrieval 'adapter.points=[vision.last4.*]'\n"
        "  vlatrain inspect model=blip adapter=lora adapter.dim=8\n"
        "  vlatrain inspect model=blip task=vqa trainer.batch_size=64",
    ),
    "check": (
        "vlatrain check [GROUP=OPTION ...] [KEY=VALUE ...]",
        "Looks at the data of a training: samples and images, lengths of texts in this backbone's tokens and what is cut, classes "
        "and contradictory labels, images that are in two splits, answers that training never shows. Takes what train takes; "
        "reads the tokenizer, and no weights.\n"
        "  strict=true             warnings fail, too (exit status 2)\n"
        "  output=FILE             the report as JSON",
        "  vlatrain check task=vqa model=blip data=files data.train=train.jsonl data.eval=val.jsonl\n"
        "  vlatrain check task=classification model=clip data=files data.train=train.csv strict=true output=data.json\n"
        "  vlatrain check task=captioning model=blip data=hub data.path=USER/NAME",
    ),
    "report": (
        "vlatrain report run=FOLDER|[FOLDER,FOLDER] [output=FILE]",
        "Writes a page of a run: scores with their baselines, curves, predictions with images, mistakes, towers, data. "
        "Of several runs, of a sweep or of a folder with runs in it: what they score and cost, what was varied, on which "
        "samples they disagree. The page is one HTML file that needs no network. Needs the extra `report`: jinja2, matplotlib.\n"
        "  output=FILE             the page (default: report.html in the folder)",
        "  vlatrain report run=outputs/vqa/blip/NAME\n"
        "  vlatrain report run=[outputs/vqa/blip/A,outputs/vqa/blip/B] output=compared.html\n"
        "  vlatrain report run=outputs/sweeps/NAME\n"
        "  vlatrain report run=outputs",
    ),
    "cache": (
        "vlatrain cache [prune=all | prune=NAME] [older_than=DAYS]",
        "Lists what runs have kept of frozen prefixes (trainer.cache), for runs to come, or removes it. "
        "It is in ~/.cache/vlatrain, or where VLATRAIN_CACHE says.",
        "  vlatrain cache\n"
        "  vlatrain cache older_than=30   # remove what was last used 30 days ago or more\n"
        "  vlatrain cache prune=all",
    ),
}


def overview(options: dict[str, list[str]]) -> str:
    """The text of `vlatrain --help`.

    Args:
        options: the options of each group.
    """
    verbs = "\n".join(f"  {verb:<9} {about.does}" for verb, about in VERBS.items())
    return _fitted(
        "vlatrain fine-tunes a frozen vision-language model on your images by training small adapters.\n\n"
        "usage: vlatrain [VERB] [GROUP=OPTION ...] [KEY=VALUE ...]\n\n"
        f"verbs\n{verbs}\n\n"
        f"groups (the whole choice: GROUP=OPTION)\n{_groups(options)}\n\n"
        f"keys (single values: KEY=VALUE; all of them with --cfg job)\n{_KEYS}\n\n"
        f"examples\n{_EXAMPLES}\n\n"
        f"options\n{_HYDRA}\n\n"
        "`vlatrain VERB --help` tells more about a verb.\n"
    )


def of_verb(verb: str, options: dict[str, list[str]]) -> str:
    """The text of `vlatrain VERB --help`: of groups and keys those that the verb reads."""
    usage, text, examples = _VERB_TEXTS[verb]
    told = f"usage: {usage}\n\n{text}\n\nexamples\n{examples}\n"
    if VERBS[verb].plain:  # none of Hydra's
        return _fitted(told)
    own = {group: names for group, names in options.items() if _takes(verb, "adapter" if group == RECIPES else group)}
    keys: dict[str, list[str]] = {}
    for key in keys_of(verb):
        group, _, name = key.rpartition(".") if key.count(".") < 2 else key.partition(".")
        keys.setdefault(group, []).append(name)
    groups = f"\ngroups (the whole choice: GROUP=OPTION)\n{_groups(own)}\n" if own else ""
    return _fitted(
        f"{told}{groups}\nkeys (single values: GROUP.KEY=VALUE; all of them with --cfg job)\n{_groups(keys)}\n\n"
        f"options\n{_HYDRA}\n"
    )


def keys_of(verb: str) -> Iterator[str]:
    """The keys of all verbs that this one reads, without those that say what an option is."""
    for key in all_keys(TrainConfig):
        group, _, name = key.partition(".")
        described = key.startswith("task.spec") or (name == "name" and group != "run")
        if not described and not dataclasses.is_dataclass(required(type_of(TrainConfig, key))) and _takes(verb, key):
            yield key


def _takes(verb: str, key: str) -> bool:
    return ("train" if verb in AS_TRAIN else verb) in readers(key)


def _groups(options: Mapping[str, Sequence[str]]) -> str:
    return "\n".join(f"  {group or 'no group':<11} {', '.join(names)}" for group, names in options.items())


def _fitted(text: str) -> str:
    """A text whose lines fit the terminal: behind a name under what is said of it, and commands so that a shell takes them."""
    width = min(shutil.get_terminal_size((WIDEST, 0)).columns, WIDEST)
    return "\n".join(part for line in text.split("\n") for part in _lines(line, width))


def _lines(line: str, width: int) -> list[str]:
    """A line, or several if it is long."""
    if len(line) <= width:
        return [line]
    if _COMMAND.match(line):
        command, _, comment = line.partition("   ")
        parts = _wrapped(command, width - 2, 6)
        return [*([f"  {comment.strip()}"] if comment else []), *(f"{part} \\" for part in parts[:-1]), parts[-1]]
    name = _NAME.match(line)
    return _wrapped(line, width, name.end() if name and name.end() <= width // 2 else 2 * line.startswith(" "))


def _wrapped(line: str, width: int, indent: int) -> list[str]:
    """Lines of a width, broken at spaces outside quotes."""
    whole = _QUOTED.sub(lambda quoted: quoted[0].replace(" ", "\0"), line)
    parts = textwrap.wrap(whole, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
    return [part.replace("\0", " ") for part in parts]
