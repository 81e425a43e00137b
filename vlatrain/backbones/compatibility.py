"""Whether a method can go where it is to go in a backbone: what the descriptions alone can tell. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from vlatrain.backbones.describe import crossed, is_plain, sites, stacks, widths
from vlatrain.backbones.head_checks import ALONE, gridless, ill_headed
from vlatrain.config import AdapterConfig, TrainConfig, UserError
from vlatrain.config.checks.composites import ill_composed
from vlatrain.config.checks.owners import compares_features
from vlatrain.config.errors import Incompatible
from vlatrain.config.families import COMPOSITES
from vlatrain.config.joint import JOINT
from vlatrain.config.methods import BARE, ROUTER, components, is_peft
from vlatrain.config.schema import EvalConfig, ExportConfig, MergeConfig, PredictConfig
from vlatrain.config.spec import TEXT
from vlatrain.injection.merging.exportable import unexportable
from vlatrain.injection.merging.mergeable import unmergeable
from vlatrain.injection.points import Place, Point, Stack, select
from vlatrain.injection.sources import unfusable

# why a tower with such positions takes no further tokens
PLACES = {
    "rotary": "has rotary positions, among which tokens cannot be put",
    "queries": "tells its queries from texts by their places, so that no tokens can be put in front of them",
    "grid": "works on the cells of a grid, in which there is no place for further tokens",
}
ON_QUANTISED = ("lora", "ia3", "hira", "randlora", "road")  # of PEFT's methods, those that take bitsandbytes' layers


def incompatibilities(config: TrainConfig) -> list[str]:
    """The reasons why the method cannot go to its points; those are `Incompatible` where each setting is sound by itself."""
    if isinstance(config, MergeConfig):
        return unmergeable(config)
    if isinstance(config, ExportConfig):
        return unexportable(config, is_plain(config))
    if config.adapter.name == ROUTER:
        return _of_router(config)
    found = list(_by_task(config))
    if config.model.family in COMPOSITES:
        found += ill_composed(config)
    found += ill_headed(config)
    found += gridless(config)
    if config.adapter.name in BARE and (config.adapter.drop_layers or config.adapter.drop_random):
        found.append(Incompatible(_no_drop(config.adapter)))
    if config.adapter.components:
        found += _of_components(config)
    elif config.adapter.name not in BARE:
        found += _of_method(config, config.adapter, config.points)
    return found


def _of_router(config: TrainConfig) -> list[str]:
    """What keeps a router from its runs; the runs themselves were read when the configuration was made of them."""
    if not config.adapter.sources:
        return [Incompatible("adapter=router: needs adapter.sources=[RUN,RUN], the folders of finished runs")]
    if config.trainer.shard:
        return [Incompatible("trainer.shard=true: adapter=router trains nothing in the backbone; leave it out")]
    return []


def _of_components(config: TrainConfig) -> list[str]:
    """What is wrong with each component of a mixed method at its points, and which two components change the same module."""
    methods = components(config.adapter)
    if wrong := _errors(config.points, stacks(config.model, config.task.name)):
        return wrong
    where = sites(config.model, config.task.name, config.points).divided({n: m.points for n, m in methods.items()})
    found: list[str] = []
    for name, method in methods.items():
        if {"sources", "routes"} & set(method.needs):
            found.append(
                Incompatible(
                    f"adapter.components.{name}: adapter={method.name} cannot be a component of another method"
                )
            )
        elif not where[name].places:
            key = f"adapter.components.{name}"
            found.append(
                Incompatible(f"{key}: the other components leave it no point; say where it goes with {key}.points")
            )
        else:
            found += _of_method(config, method, [str(point) for point in where[name].places])
    for one, two in combinations(methods, 2):
        if is_peft(methods[one]) != is_peft(methods[two]):
            continue  # PEFT's methods change modules from inside, ours from outside
        if is_peft(methods[one]):
            taken = where[one].targeted(methods[one].targets or [])
            both = [path for path in where[two].targeted(methods[two].targets or []) if path in taken]
        else:
            both = [str(point) for point in where[two].places if point in where[one].places]
        if both:
            found.append(
                Incompatible(
                    f"adapter.components: {one} and {two} both change {both[0]}: give them points of their own"
                )
            )
    return found


def _of_method(config: TrainConfig, method: AdapterConfig, patterns: list[str]) -> list[str]:
    task, towers = config.task.name, stacks(config.model, config.task.name)
    if wrong := list(_context(config, method)):
        return wrong
    found = [*_needs(config, method), *_quantised(config, method)]
    for pattern in method.overrides:
        found += _errors([pattern], towers)
    wrong = _errors(patterns, towers)
    if found or wrong:
        return [*found, *wrong]
    layers: dict[str, set[int]] = {}
    places = sites(config.model, task, patterns).places
    if "sources" in method.needs and not isinstance(
        config, (EvalConfig, PredictConfig)
    ):  # a finished run holds them itself
        found += unfusable(method.sources, config.model.name, places)
    found += _overrides(method, set(places), towers)
    for point in places:
        layers.setdefault(point.tower, set()).add(point.layer)
    found += _other_modality(config, method, layers)
    found += _attention(config, method, patterns, towers)
    found += _inserting(config, method, layers, towers)
    found += _output_towers(config, method, layers, towers)
    found += _side_widths(method, {point.tower: place for point, place in places.items()})
    found += _dropping(config, method, layers, towers)
    found += _widths(config, method, layers)
    return found


def _overrides(method: AdapterConfig, chosen: set[Point], towers: dict[str, Stack]) -> Iterator[str]:
    for pattern in method.overrides:
        if not chosen.intersection(select([pattern], towers)):
            yield f"adapter.overrides.{pattern}: none of the method's points is there; adapter.points says where it goes"


def _errors(patterns: list[str], towers: dict[str, Stack]) -> list[str]:
    try:
        select(patterns, towers)
    except UserError as error:
        return error.problems
    return []


def _needs(config: TrainConfig, method: AdapterConfig) -> Iterator[str]:
    title, served = f"adapter={method.name}", config.model.tasks[config.task.name]
    if "classes" in method.needs and "classes" not in served.features:
        yield Incompatible(
            f"{title}: task={config.task.name} on model={config.model.name} has no head on features of a whole image, which it "
            f"could take the place of; {ALONE}, for task=classification"
        )
    if "features" in method.needs and "image" not in served.features:
        able = [task for task, other in config.model.tasks.items() if "image" in other.features]
        where = f"model={config.model.name} has them for {', '.join(able)}" if able else "this backbone has none"
        yield Incompatible(
            f"{title}: works on the features of image and text, which task={config.task.name} has not; {where}"
        )
    if "features" in method.needs and method.heads:
        yield Incompatible(f"adapter.heads=true: {title} adapts what these heads put out; either it trains or they do")
    if "sources" in method.needs and not method.sources:
        yield Incompatible(f"{title}: needs adapter.sources=[RUN,RUN], the folders of finished runs")
    if "sources" in method.needs and config.adapter.trunk:
        yield Incompatible(f"adapter.trunk: {title} weighs adapters that were trained in the trunk as it is")
    if {"end", "chain"} & set(method.needs) and config.adapter.trunk:
        yield Incompatible(f"adapter.trunk: {title} never goes back through the trunk, so nothing in it can train")
    if "frozen" in method.needs and config.adapter.trunk:
        yield Incompatible(
            f"adapter.trunk: {title} keeps what the frozen trunk says of samples, so nothing in it may train"
        )
    if "norms" in config.adapter.trunk and any(target.rpartition(".")[2] == "norm" for target in method.targets or []):
        yield Incompatible(f"adapter.trunk: norms: {title} trains copies of them, which take their place")
    if method.sources and "sources" not in method.needs:
        yield f"adapter.sources: {title} combines no runs; adapter=fusion and adapter=router do"
    if "components" in method.needs and not method.components:
        yield Incompatible(f"{title}: needs adapter.components, methods with points of their own")


def _quantised(config: TrainConfig, method: AdapterConfig) -> Iterator[str]:
    if config.model.quantize and is_peft(method) and method.name not in ON_QUANTISED:
        yield Incompatible(
            f"adapter={method.name}: PEFT does not put it on quantised layers (model.quantize={config.model.quantize}); there it "
            f"has {', '.join(ON_QUANTISED)}, and all of vlatrain's own designs fit"
        )


def _by_task(config: TrainConfig) -> Iterator[str]:
    for name, method in {"": config.adapter, **components(config.adapter)}.items():
        key = f"adapter.components.{name}" if name else "adapter"
        if not method.by_task:
            if method.share.what != "none" and "task" in method.share.over:
                yield f"{key}.share.over: task: there is something to share only between adapters of {key}.by_task=true"
        elif config.task.name != JOINT:
            yield f"{key}.by_task=true: needs task=joint; with a single task its adapters are the task's anyway"
        elif name or is_peft(method) or method.name in BARE or {"sources", "components"} & set(method.needs):
            yield Incompatible(
                f"{key}.by_task=true: adapter={method.name} trains one for all subtasks; only vlatrain's own designs have one for "
                "each" + ("; LoRA as one of them is adapter=task_lora" if method.name == "lora" else "")
            )


def _other_modality(config: TrainConfig, method: AdapterConfig, layers: dict[str, set[int]]) -> Iterator[str]:
    if "other" not in method.needs:
        return
    task = config.task.name
    other = config.model.tasks[task].other_modality
    for tower in layers:
        if tower not in other:
            able = ", ".join(name for name in other) or "none"
            yield Incompatible(
                f"adapter={method.name}: the {tower} tower of model={config.model.name} gets no states of another modality in "
                f"task={task}; towers that do: {able}"
            )
        elif "label" in config.task.spec.fields and config.model.tasks[task].features:
            yield Incompatible(
                f"adapter={method.name}: reads the other modality, and task={task} compares features of image and class, "
                "each made without the other"
            )
        elif (
            config.task.spec.query == TEXT and other[tower] != tower and "cross" not in config.model.towers[tower].sites
        ):
            yield from _second_look(config, method, tower)


def _second_look(config: TrainConfig, method: AdapterConfig, tower: str) -> Iterator[str]:
    """A tower without cross-attention of its own is handed the other modality's states only where pairs are matched."""
    title = f"adapter={method.name}: the {tower} tower of model={config.model.name} gets states of another modality only where"
    if not config.task.rerank:
        yield Incompatible(f"{title} the best pairs are ranked again, and task.rerank=0 never does: set task.rerank=16")
    if not config.task.matching:
        yield Incompatible(
            f"{title} pairs are matched, and task.matching=false never trains that: set task.matching=true"
        )


def _attention(
    config: TrainConfig, method: AdapterConfig, patterns: list[str], towers: dict[str, Stack]
) -> Iterator[str]:
    others = {point.site for point in select(patterns, towers)} - {"attn"}
    if "attn" in method.needs and others:
        yield Incompatible(
            f"adapter={method.name}: goes to self-attention only, and not to {', '.join(sorted(others))}: choose points such "
            "as adapter.points=[*.*.attn]"
        )


def _inserting(
    config: TrainConfig, method: AdapterConfig, layers: dict[str, set[int]], towers: dict[str, Stack]
) -> Iterator[str]:
    for tower, chosen in layers.items() if "insert" in method.needs else ():
        kind, title = (
            config.model.towers[tower],
            f"adapter={method.name}: the {tower} tower of model={config.model.name}",
        )
        if kind.positions in PLACES:
            yield Incompatible(f"{title} {PLACES[kind.positions]}; leave it out of adapter.points")
        elif kind.positions == "relative" and (kind.causal or len(chosen) < towers[tower].layers):
            yield Incompatible(
                f"{title} has relative positions, which tokens can be put among in all layers of an encoder only; leave it out of "
                "adapter.points" + ("" if kind.causal else ", or choose all of its layers")
            )


def _context(config: TrainConfig, method: AdapterConfig) -> Iterator[str]:
    """Words in front of a class's name, which are learned."""
    if "context" not in method.needs:
        return
    title = f"adapter={method.name}: learns the words in front of a class's name, and"
    if "label" not in config.task.spec.fields:
        yield Incompatible(f"{title} task={config.task.name} has no classes; task=classification has")
    elif not compares_features(config):
        yield Incompatible(f"{title} model={config.model.name} answers a question instead; model=clip compares texts")
    elif method.dim is not None and (
        short := [text for text in config.task.templates if len(text.partition("{}")[0].split()) < method.dim]
    ):
        yield (
            f"adapter.dim={method.dim}: {title.partition(': ')[2]} {short[0]!r} of task.templates has fewer: write so many, or set "
            f"adapter.dim={len(short[0].partition('{}')[0].split())}"
        )


def _output_towers(
    config: TrainConfig, method: AdapterConfig, layers: dict[str, set[int]], towers: dict[str, Stack]
) -> Iterator[str]:
    if not {"end", "chain"} & set(method.needs):
        return
    ends, title = [name for name, stack in towers.items() if stack.end], f"adapter={method.name}"
    attended = crossed(config.model, config.task.name)
    read = {attended.get(tower, "") for tower in layers} if _reads_sides(method) else set()
    for tower, chosen in layers.items():
        if not towers[tower].end and tower not in read:
            yield Incompatible(
                f"{title}: never goes back through the trunk, so it fits only towers that end in a head "
                f"({', '.join(ends)}), {'those that these attend to, ' if _reads_sides(method) else ''}and not {tower}: "
                "leave it out of adapter.points"
            )
        elif max(chosen) != towers[tower].layers - 1:
            yield f"{title}: the last layer of {tower}, {towers[tower].layers - 1}, must be among its points"
        if tower in attended:
            yield from _beside(config, method, tower, attended[tower], layers)
        elif (new := _new_before(config)) and min(chosen) > 0:
            yield Incompatible(
                f"{title}: layer 0 of {tower} must be among its points, or what is new before it ({new}) could not learn"
            )


def _side_widths(method: AdapterConfig, places: dict[str, Place]) -> Iterator[str]:
    """A side network is of one width beside a tower; where it has attention, the trunk's heads must divide it."""
    if not {"end", "chain"} & set(method.needs):
        return
    for pattern, values in method.overrides.items():
        if "reduction" in values:
            yield f"adapter.overrides.{pattern}.reduction: a side is as wide beside all layers: set adapter.options.reduction"
    reduction = method.settings.get("reduction")
    if "chain" not in method.needs or not isinstance(reduction, int) or reduction < 1:
        return

    def divided(place: Place, reduction: int) -> bool:
        return place.width >= reduction and place.heads > 0 and place.width // reduction % place.heads == 0

    wrong = [
        f"{tower}, {place.width} wide with {place.heads} heads, a side of {place.width // reduction}"
        for tower, place in places.items()
        if not divided(place, reduction)
    ]
    if wrong:
        fitting = [r for r in range(1, 65) if all(divided(place, r) for place in places.values())]
        nearest = f"; {min(fitting, key=lambda r: abs(r - reduction))} would do" if fitting else ""
        yield Incompatible(
            f"adapter.options.reduction={reduction}: the attention heads of the trunk must divide the width of its side, and give "
            f"{', '.join(wrong)}{nearest}"
        )


def _reads_sides(method: AdapterConfig) -> bool:
    """Whether the towers with a side attend to each other's."""
    return "chain" in method.needs and method.settings.get("reads") == "side"


def _beside(
    config: TrainConfig, method: AdapterConfig, tower: str, other: str, layers: dict[str, set[int]]
) -> Iterator[str]:
    """A tower beside which a side network runs, and which attends to another."""
    title, key = f"adapter={method.name}", "adapter.options.reads"
    if _reads_sides(method) and other not in layers:
        yield Incompatible(
            f"{title}: the side of {tower} attends to that of {other}, which has no points; add them, or {key}=trunk"
        )
    elif _reads_sides(method) and config.task.spec.query == TEXT:
        yield Incompatible(
            f"{title}: task={config.task.name} matches texts with images anew, and keeps no side of them; {key}=trunk does without"
        )
    elif other not in layers and (new := _new_before(config)):
        yield Incompatible(
            f"{title}: nothing goes back from {tower} to {other}, so what is new before it ({new}) could not learn; "
            "adapter=lst has a side in both"
        )


def _new_before(config: TrainConfig) -> str:
    """What is new in a backbone and makes what its towers are given, other than by another tower: a visual projection."""
    served = config.model.tasks[config.task.name]
    return ", ".join(served.trained) if set(served.other_modality.values()) - set(served.towers) else ""


def _dropping(
    config: TrainConfig, method: AdapterConfig, layers: dict[str, set[int]], towers: dict[str, Stack]
) -> Iterator[str]:
    fixed, drawn = config.adapter.drop_layers, config.adapter.drop_random
    if not fixed and not drawn:
        return
    if is_peft(method) or {"layers", "features"} & set(method.needs):
        yield Incompatible(_no_drop(method))
        return
    depth = max(towers[tower].layers for tower in layers)
    if fixed > depth:
        yield f"adapter.drop_layers={fixed}: no tower with adapters has more than {depth} layers"
    top = max(max(chosen) for chosen in layers.values())
    if drawn > top:
        yield (
            f"adapter.drop_random={drawn}: some steps would have no adapter to train; at most {top}, the highest layer "
            "with one (counted from 0)"
        )


def _no_drop(method: AdapterConfig) -> str:
    return f"adapter={method.name}: has no adapters that some layers could go without (adapter.drop_layers, adapter.drop_random)"


def _widths(config: TrainConfig, method: AdapterConfig, layers: dict[str, set[int]]) -> Iterator[str]:
    share = method.share
    if "tower" not in share.over or share.what not in ("down", "up", "all"):
        return
    wide = {name: width for name, width in widths(config.model, config.task.name).items() if name in layers}
    if len(set(wide.values())) > 1:
        told = ", ".join(f"{name} {width}" for name, width in wide.items())
        yield Incompatible(
            f"adapter.share.what={share.what}: cannot be shared over towers of different widths ({told}); share columns, or "
            "leave tower out of adapter.share.over"
        )
