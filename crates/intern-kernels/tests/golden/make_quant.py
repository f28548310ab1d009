#!/usr/bin/env python3
"""ggml's own encodings of fixed numbers, for src/quant/tests.rs.  usage: make_quant.py   needs: numpy gguf xllamacpp
Calls ggml_quantize_chunk and dequantize_row_* in xllamacpp's shared library. Writes quant.bin: N f32 values, then per
type of TYPES, in order, the encoded bytes and the N f32 values they decode to (checked against the gguf package); then
N f32 importances and, per type of WEIGHTED, the bytes ggml encodes with them.
"""
import ctypes
import pathlib

import gguf
import numpy as np
import xllamacpp

N = 2048
# name, ggml id, bytes per block, block size
TYPES = [("q8_0", 8, 34, 32), ("q4_0", 2, 18, 32), ("q4_1", 3, 20, 32), ("q5_0", 6, 22, 32), ("q5_1", 7, 24, 32),
         ("q4_K", 12, 144, 256), ("q5_K", 13, 176, 256), ("q6_K", 14, 210, 256),
         ("q2_K", 10, 84, 256), ("q3_K", 11, 110, 256), ("iq4_nl", 20, 18, 32), ("mxfp4", 39, 17, 32)]
WEIGHTED = ["q4_0", "q4_1", "q5_0", "q5_1", "q4_K", "q5_K", "q6_K"]

lib = ctypes.CDLL(str(next(pathlib.Path(xllamacpp.__file__).parent.glob("*.so"))))
lib.ggml_quantize_chunk.restype = ctypes.c_size_t
lib.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64,
                                    ctypes.c_int64, ctypes.c_void_p]
rng = np.random.default_rng(5)
values = rng.standard_normal(N).astype(np.float32)
values[256:512] *= 0.01  # small
values[512:768] += 3.0  # all on one side
values[768:1024] = 0.0  # nothing at all
values[1024:1280] *= np.where(rng.random(256) < 0.03, 20.0, 1.0)  # outliers
values[1280:1536] = np.abs(values[1280:1536])
importance = (rng.standard_normal(N) ** 2 * np.where(rng.random(N) < 0.02, 50.0, 1.0)).astype(np.float32)


def encode(ty, block_bytes, block, importance=None):
    out = np.zeros(N // block * block_bytes, np.uint8)
    weights = None if importance is None else importance.ctypes.data
    assert lib.ggml_quantize_chunk(ty, values.ctypes.data, out.ctypes.data, 0, 1, N, weights) == out.size
    return out


with open(pathlib.Path(__file__).parent / "quant.bin", "wb") as f:
    f.write(values.tobytes())
    for name, ty, block_bytes, block in TYPES:
        out = encode(ty, block_bytes, block)
        back = np.zeros(N, np.float32)
        decode = getattr(lib, f"dequantize_row_{name}")
        decode.restype = None
        decode.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        decode(out.ctypes.data, back.ctypes.data, N)
        python = gguf.quants.dequantize(out, gguf.GGMLQuantizationType(ty)).reshape(-1)
        assert np.allclose(python, back, rtol=1e-5, atol=1e-6), name
        f.write(out.tobytes() + back.tobytes())
        print(name, "relative error", np.sqrt(((back - values) ** 2).sum() / (values**2).sum()))
    f.write(importance.tobytes())
    for name, ty, block_bytes, block in TYPES:
        if name in WEIGHTED:
            f.write(encode(ty, block_bytes, block, importance).tobytes())
