#!/usr/bin/env python3
"""Makes the tiny checkpoints and golden tensors beside this script.

usage: make_golden.py            needs: torch transformers peft safetensors

Each directory is a checkpoint as transformers saves it (weights rounded to bf16, so that they take
half the room) and `golden.safetensors`: `tokens`, the f32 `logits` of every position, `greedy` (the
64 tokens that follow row 0, each from a full forward pass), the mean `loss` over the labels that are
not -100, and `grad.<name>` of it for every parameter. `rope-*` directories hold no weights: they use
those of `llama2`. InternLM2 is not in transformers: its logits are those of the same weights in Llama's
layout, and the checkpoint is written here with fused `wqkv` and InternLM2's names.
"""
import json
import pathlib
import shutil

import torch
import transformers as hf
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent
V, T, ORIGINAL = 96, 44, 32
torch.set_num_threads(1)
SMALL = dict(vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, initializer_range=0.25, bos_token_id=1, eos_token_id=2, pad_token_id=0,
             max_position_embeddings=64, use_cache=False, tie_word_embeddings=False)


def build(config, seed):
    """A model whose weights are random everywhere, norms and biases too, and exact in bf16."""
    torch.manual_seed(seed)
    config._attn_implementation = "eager"
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.copy_(1 + 0.2 * torch.randn_like(p))
            elif name.endswith(".bias"):
                p.copy_(0.3 * torch.randn_like(p))
            p.copy_(p.bfloat16().float())
    return model


def reset(model):
    """Dynamic RoPE keeps the scale of the longest sequence it has seen; forget it."""
    model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config)


def greedy(model, tokens, n=64):
    """Each token from a full pass; also the smallest margin between the best two logits."""
    row, margin = tokens[:1], 1e9
    reset(model)
    for _ in range(n):
        logits = model(input_ids=row, use_cache=False).logits[0, -1]
        best = logits.topk(2).values
        margin = min(margin, (best[0] - best[1]).item())
        row = torch.cat([row, logits.argmax()[None, None]], dim=1)
    return row[0, tokens.shape[1]:], margin


def golden(model, gradients):
    """Tensors of the golden file; the prompt is redrawn until no greedy choice is close."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        tokens = torch.randint(3, V, (2, T), generator=generator)
        with torch.no_grad():
            continuation, margin = greedy(model, tokens)
        if margin > 5e-3:
            break
    else:
        raise SystemExit("no prompt with clear choices")
    out = {"tokens": tokens.int(), "greedy": continuation.int()}
    reset(model)
    with torch.no_grad():
        out["logits"] = model(input_ids=tokens).logits.float()
    if gradients:
        labels = torch.roll(tokens, -1, dims=1)
        labels[:, -1] = -100
        labels[0, 5:15] = -100
        model.zero_grad()
        logits = model(input_ids=tokens).logits
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, V), labels.reshape(-1), ignore_index=-100)
        loss.backward()
        out["labels"], out["loss"] = labels.int(), loss.detach()
        out |= {"grad." + name: p.grad.clone() for name, p in model.named_parameters()}
    return out, margin


def fresh(name):
    path = HERE / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path


def write(name, model, tensors, shard="1GB", weights=True):
    path = fresh(name)
    if weights:
        model.bfloat16().save_pretrained(path, max_shard_size=shard)
        model.float()
    else:
        model.config.save_pretrained(path)
    (path / "generation_config.json").unlink(missing_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, path / "golden.safetensors")


def fuse(config, q, k, v):
    """Rows of query, key, value to wqkv: per key/value head its queries, its key, its value."""
    kv, group = config.num_key_value_heads, config.num_attention_heads // config.num_key_value_heads
    d, tail = config.head_dim, q.shape[1:]
    parts = [q.reshape(kv, group * d, *tail), k.reshape(kv, d, *tail), v.reshape(kv, d, *tail)]
    return torch.cat(parts, dim=1).reshape(-1, *tail)


def internlm2_names(config, tensors):
    """Llama's tensors (or their gradients) under InternLM2's names."""
    names = {"self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3",
             "mlp.down_proj": "feed_forward.w2", "input_layernorm": "attention_norm",
             "post_attention_layernorm": "ffn_norm", "embed_tokens": "tok_embeddings", "lm_head": "output"}
    out = {}
    for name, tensor in tensors.items():
        if ".k_proj" in name or ".v_proj" in name:
            continue
        if ".q_proj" in name:
            k, v = (tensors[name.replace("q_proj", p)] for p in ("k_proj", "v_proj"))
            tensor, name = fuse(config, tensor, k, v), name.replace("self_attn.q_proj", "attention.wqkv")
        for old, new in names.items():
            name = name.replace(old, new)
        out[name] = tensor.contiguous()
    return out


def internlm2():
    config = hf.LlamaConfig(**SMALL | dict(rms_norm_eps=1e-5, max_position_embeddings=ORIGINAL),
                            rope_parameters=dict(rope_type="dynamic", factor=2.0, rope_theta=1e4))
    model = build(config, 1)
    tensors, margin = golden(model, True)
    grads = {k[5:]: v for k, v in tensors.items() if k.startswith("grad.")}
    tensors = {k: v for k, v in tensors.items() if not k.startswith("grad.")}
    tensors |= {"grad." + k: v for k, v in internlm2_names(config, grads).items()}
    path = fresh("internlm2")
    weights = {k: v.bfloat16() for k, v in internlm2_names(config, model.state_dict()).items()}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    save_file(tensors, path / "golden.safetensors")
    keys = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "bos_token_id", "eos_token_id",
            "pad_token_id", "tie_word_embeddings", "hidden_act"]
    text = {k: getattr(config, k) for k in keys}
    text |= dict(architectures=["InternLM2ForCausalLM"], model_type="internlm2", bias=False, rope_theta=10000,
                 rope_scaling=dict(type="dynamic", factor=2.0), torch_dtype="bfloat16")
    (path / "config.json").write_text(json.dumps(text, indent=2) + "\n")
    print("internlm2", margin)


def adapter(model, name, **kwargs):
    """A PEFT adapter on `llama2` with random B, and the logits it gives."""
    import peft
    torch.manual_seed(7)
    model.name_or_path = None
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=6, lora_dropout=0.0, **kwargs)
    adapted = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for key, p in adapted.named_parameters():
            if "lora_B" in key:
                p.copy_(0.2 * torch.randn_like(p))
    path = fresh(name)
    adapted.save_pretrained(path)
    for extra in path.glob("README.md"):
        extra.unlink()
    tokens = torch.randint(3, V, (1, 12), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        logits = adapted(input_ids=tokens).logits
    save_file({"tokens": tokens.int(), "logits": logits}, path / "golden.safetensors")
    adapted.unload()


def main():
    families = {
        "llama2": hf.LlamaConfig(**SMALL | dict(rms_norm_eps=1e-5)),
        "llama3": hf.LlamaConfig(**SMALL | dict(tie_word_embeddings=True, eos_token_id=[2, 5], attention_bias=True,
                                                mlp_bias=True, max_position_embeddings=64),
                                 rope_parameters=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0,
                                                      high_freq_factor=4.0, rope_theta=500000.0,
                                                      original_max_position_embeddings=ORIGINAL)),
        "internlm3": hf.InternLM3Config(**SMALL | dict(head_dim=12, attention_bias=True, mlp_bias=True,
                                                       max_position_embeddings=ORIGINAL),
                                        rope_parameters=dict(rope_type="dynamic", factor=6.0, rope_theta=1e5)),
        "mistral": hf.MistralConfig(**SMALL | dict(sliding_window=10, head_dim=16)),
        "qwen2": hf.Qwen2Config(**SMALL | dict(tie_word_embeddings=True, use_sliding_window=True, sliding_window=9,
                                               max_window_layers=1),
                                rope_parameters=dict(rope_type="default", rope_theta=1e6)),
        "qwen3": hf.Qwen3Config(**SMALL | dict(head_dim=24), rope_parameters=dict(rope_type="default", rope_theta=1e6)),
    }
    internlm2()
    for seed, (name, config) in enumerate(families.items(), 2):
        model = build(config, seed)
        tensors, margin = golden(model, True)
        write(name, model, tensors, shard="30KB" if name == "qwen3" else "1GB")
        print(name, margin)

    base = hf.AutoModelForCausalLM.from_pretrained(HERE / "llama2", dtype=torch.float32, attn_implementation="eager")
    base.eval()
    scalings = {
        "linear": dict(rope_type="linear", factor=2.5),
        "dynamic": dict(rope_type="dynamic", factor=2.0),
        "llama3": dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
                       original_max_position_embeddings=ORIGINAL),
        "yarn": dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=ORIGINAL),
        "yarn-mscale": dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=ORIGINAL, mscale=0.7,
                            mscale_all_dim=1.2, beta_fast=16.0, beta_slow=2.0, truncate=False),
    }
    for name, rope in scalings.items():
        config = hf.LlamaConfig(**SMALL | dict(rms_norm_eps=1e-5, max_position_embeddings=ORIGINAL),
                                rope_parameters=rope | dict(rope_theta=1e4))
        model = build(config, 0)
        model.load_state_dict(base.state_dict())
        tensors, margin = golden(model, False)
        write("rope-" + name, model, tensors, weights=False)
        print("rope", name, margin)
    adapter(base, "adapter-lora", target_modules=["q_proj", "v_proj", "down_proj"])
    adapter(base, "adapter-rslora", target_modules=["k_proj"], use_rslora=True)


main()
