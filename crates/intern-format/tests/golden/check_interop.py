"""Opens what `intern-format` writes with the tools that own each format.

    cargo run -p intern-format --example write_samples -- DIR
    python check_interop.py DIR

Needs numpy, torch, safetensors, transformers, peft, gguf, pyarrow, datasets, zstandard,
tensorboard and megatron-core. Prints one line per format; any difference is an assertion.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

DIR = Path(sys.argv[1])


def ramp(*shape):
    return torch.arange(int(np.prod(shape)), dtype=torch.float32).reshape(shape) / 64


def documents():
    import datasets
    import pyarrow.parquet as pq

    table = pq.read_table(DIR / "documents.parquet")
    assert table.column_names == ["id", "text", "source", "url", "lang", "meta"]
    rows = table.to_pylist()
    assert [r["text"] for r in rows] == [f"text {i} 书生" for i in range(3)]
    assert [json.loads(r["meta"]) for r in rows] == [{"n": i} for i in range(3)]
    for name in ["documents.jsonl", "documents.jsonl.gz", "documents.jsonl.zst"]:
        read = datasets.load_dataset("json", data_files=str(DIR / name), split="train", cache_dir=str(DIR / "cache"))
        assert [r["text"] for r in read] == [r["text"] for r in rows] and read[2]["meta"] == {"n": 2}, name


def shards():
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    for name, dtype, big in [("u16", np.uint16, 65535), ("u32", np.int32, 92543)]:
        shard = IndexedDataset(str(DIR / name))
        assert shard.index.dtype == dtype
        assert [shard[i].tolist() for i in range(len(shard))] == [[1, 2, big], [], [4]]
        assert shard.document_indices.tolist() == [0, 1, 2, 3]


def checkpoints():
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    with safe_open(DIR / "single" / "model.safetensors", "pt") as f:
        assert f.metadata() == {"format": "pt"} and len(f.keys()) == 12
    assert (DIR / "sharded" / "model.safetensors.index.json").exists()
    for name in ["single", "sharded"]:
        model, info = AutoModelForCausalLM.from_pretrained(DIR / name, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"], info
        assert model.generation_config.eos_token_id == 2
        assert all(torch.equal(p, ramp(*p.shape)) for p in model.state_dict().values())


def adapter():
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(DIR / "single")
    layer = PeftModel.from_pretrained(base, DIR / "adapter").base_model.model.model.layers[0].self_attn.q_proj
    assert abs(layer.scaling["default"] - 6 / 2**0.5) < 1e-6
    assert torch.equal(layer.lora_A["default"].weight, ramp(2, 8))
    assert torch.equal(layer.lora_B["default"].weight, ramp(8, 2))


def gguf_file():
    import gguf

    reader = gguf.GGUFReader(DIR / "model.gguf")
    assert reader.alignment == 64
    expect = {
        "v.u8": 200, "v.i8": -100, "v.u16": 60000, "v.i16": -30000, "v.u32": 4000000000, "v.i32": -2000000000,
        "v.f32": 0.5, "v.bool": True, "v.string": "naïve 书生", "v.u64": 2**63, "v.i64": -(2**62), "v.f64": 0.1,
        "v.strings": ["a", "", "词"], "v.floats": [0.25, -1.5], "v.bools": [True, False],
    }
    for key, value in expect.items():
        assert reader.fields[key].contents() == value, (key, reader.fields[key].contents())
    assert "v.nested" in reader.fields
    tensors = {t.name: t for t in reader.tensors}
    assert np.array_equal(tensors["f32"].data, ramp(2, 32).numpy())
    q8 = gguf.quants.dequantize(tensors["q8_0"].data, tensors["q8_0"].tensor_type)
    assert np.array_equal(q8, 2.0 * np.stack([np.arange(32), np.arange(-32, 0)]))


def metrics():
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(DIR / "run"))
    events.Reload()
    assert [(s.step, s.value) for s in events.Scalars("loss")] == [
        (1, 1.0), (2, 0.5), (3, float(np.float32(1 / 3))), (400, 0.125)]
    lines = [json.loads(line) for line in open(DIR / "run" / "metrics.jsonl")]
    assert [line["step"] for line in lines] == [1, 2, 3, 400]


for check in [documents, shards, checkpoints, adapter, gguf_file, metrics]:
    check()
    print(f"ok {check.__name__}")
