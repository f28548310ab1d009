"""Writes the files beside this script with the tools that own each format.

Run by hand: `python make_golden.py` with numpy, safetensors, torch, transformers, peft,
gguf, pyarrow and megatron-core installed. The tests only read the files.
"""

import shutil
from pathlib import Path

import gguf
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent


def safetensors_all_types():
    x = torch.tensor([[0.0, 1.0, -2.5], [0.125, 3.0, -448.0]])
    tensors = {
        "f64": x.double(),
        "f32": x,
        "f16": x.half(),
        "bf16": x.bfloat16(),
        "f8_e4m3": x.to(torch.float8_e4m3fn),
        "f8_e5m2": x.to(torch.float8_e5m2),
        "i64": torch.tensor([-1, 2**40]),
        "i32": torch.tensor([-1, 2**20], dtype=torch.int32),
        "i16": torch.tensor([-1, 300], dtype=torch.int16),
        "i8": torch.tensor([-1, 100], dtype=torch.int8),
        "u8": torch.tensor([0, 255], dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(7.0),
        "empty": torch.zeros(0, 3),
    }
    save_file(tensors, HERE / "types.safetensors", metadata={"format": "pt", "made by": "safetensors"})


def checkpoint():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=16,
    )
    model = LlamaForCausalLM(config)
    for name, size in [("checkpoint-single", "1GB"), ("checkpoint-sharded", "2KB")]:
        shutil.rmtree(HERE / name, ignore_errors=True)
        model.save_pretrained(HERE / name, max_shard_size=size)
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    shutil.rmtree(HERE / "adapter", ignore_errors=True)
    adapted.save_pretrained(HERE / "adapter")
    (HERE / "adapter" / "README.md").unlink(missing_ok=True)


def gguf_all_types():
    w = gguf.GGUFWriter(HERE / "types.gguf", "llama")
    w.add_uint8("v.u8", 200)
    w.add_int8("v.i8", -100)
    w.add_uint16("v.u16", 60000)
    w.add_int16("v.i16", -30000)
    w.add_uint32("v.u32", 4000000000)
    w.add_int32("v.i32", -2000000000)
    w.add_float32("v.f32", 0.5)
    w.add_bool("v.bool", True)
    w.add_string("v.string", "naïve 书生")
    w.add_uint64("v.u64", 2**63)
    w.add_int64("v.i64", -(2**62))
    w.add_float64("v.f64", 0.1)
    w.add_array("v.strings", ["a", "", "词"])
    w.add_array("v.ints", [1, -2, 3])
    w.add_array("v.floats", [0.25, -1.5])
    w.add_array("v.bools", [True, False])
    w.add_array("v.nested", [[1, 2], [3]])
    x = np.arange(64, dtype=np.float32).reshape(2, 32) / 8
    w.add_tensor("f32", x)
    w.add_tensor("f16", x.astype(np.float16))
    w.add_tensor("q8_0", gguf.quants.quantize(x, gguf.GGMLQuantizationType.Q8_0),
                 raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    w.add_tensor("bf16", gguf.quants.quantize(x[:, :5], gguf.GGMLQuantizationType.BF16),
                 raw_dtype=gguf.GGMLQuantizationType.BF16)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def parquet():
    table = pa.table({
        "text": ["one", "naïve\n书生", "three"],
        "id": pa.array(["a", None, "c"]),
        "metadata": pa.array([
            {"url": "https://example.org/1", "language": "en", "score": 0.5, "tags": ["x", "y"]},
            {"url": "https://example.org/2", "language": "zh", "score": 1.5, "tags": []},
            None,
        ]),
        "n": pa.array([1, 2, None], type=pa.int64()),
        "big": pa.array(["u", "v", "w"], type=pa.large_string()),
        "when": pa.array([0, 1, 2], type=pa.timestamp("ms")),
    })
    # Each codec the reader is built with.
    for codec in ["snappy", "zstd", "gzip", "none"]:
        pq.write_table(table, HERE / f"documents-{codec}.parquet", compression=codec, row_group_size=2)


def shards():
    for name, dtype, documents in [
        ("shard-uint16", np.uint16, [[[1, 2, 65535]], [[4], [5, 6]], [[7]]]),
        ("shard-int32", np.int32, [[[70000, 2]], [[3]]]),
    ]:
        builder = IndexedDatasetBuilder(str(HERE / f"{name}.bin"), dtype=dtype)
        for document in documents:
            for sequence in document:
                builder.add_item(torch.tensor(sequence, dtype=torch.int64))
            builder.end_document()
        builder.finalize(str(HERE / f"{name}.idx"))


safetensors_all_types()
checkpoint()
gguf_all_types()
parquet()
shards()
