#!/usr/bin/env python3
"""llama.cpp and we say the same of the same GGUF files.

usage: llamacpp.py INTERN_BINARY ASSETS [--models stories260K,babyllama105,random]
                   [--types f16,q8_0,q4_0] [--tokens 512] [--prompts 50] [--new 48]
needs: xllamacpp sentencepiece safetensors gguf numpy

Small trained models are converted and quantized by us; then, per file:
  perplexity   of WikiText-2 in windows that begin with BOS; bar: within 0.1 %
  divergence   the mean of KL(llama.cpp || ours) over the same positions, in nats
  exact        both against the same weights decoded to f32 and multiplied as such: who rounds more
  greedy       the tokens of 50 prompts; where they differ, by how much ours preferred its own
A random model of make_gguf.py's shape "tiny" stands for those that are not trained.
Prints one JSON line per file and exits with 1 if a bar is missed: perplexities within 0.1 % of each
other or our error no larger than theirs, and differing greedy tokens no further apart than rounding. llama.cpp answers with the
distribution behind one position at a time, over a prompt that grows by one token.
"""
import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

parser = argparse.ArgumentParser()
parser.add_argument("binary")
parser.add_argument("assets", type=Path)
parser.add_argument("--models", default="stories260K,babyllama105,random")
parser.add_argument("--types", default="f16,q8_0,q4_0")
parser.add_argument("--tokens", type=int, default=512, help="scored positions per file")
parser.add_argument("--prompts", type=int, default=50)
parser.add_argument("--new", type=int, default=48, help="tokens per greedy answer")
args = parser.parse_args()

MODELS = {  # weights, tokenizer, window
    "stories260K": ("checkpoint_v1.bin", "tok512.model", 256),
    "babyllama105": ("model5000.bin", "tok105.model", 128),
}
NEAR_TIE = 0.3  # nats between two candidates that rounded activations may turn around


def intern(*arguments):
    done = subprocess.run([args.binary, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, arguments))}\n{done.stderr}")
    return done.stdout


def our_logits(model, tokens):
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "logits.safetensors"
        intern("serve", "logits", model, "--tokens", ",".join(map(str, tokens)), "--out", out, "--threads", 1)
        return load_file(out)["logits"].astype(np.float64)


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


class LlamaCpp:
    def __init__(self, path, context, banned):
        self.banned = banned
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = context
        params.n_parallel = 1
        params.warmup = False
        params.cpuparams.n_threads = 1
        params.cpuparams_batch.n_threads = 1
        self.server = xllamacpp.Server(params)

    def ask(self, tokens, new, probabilities=0):
        return self.server.handle_completions({
            "prompt": list(map(int, tokens)), "n_predict": new, "max_tokens": new, "temperature": 0,
            "n_probs": probabilities, "logprobs": probabilities, "post_sampling_probs": False,
            "cache_prompt": True,
            # An end, or a part of a character, has no probabilities listed; those that are listed
            # do not see the bias.
            "logit_bias": [[token, False] for token in self.banned],
        })

    def distribution(self, tokens, vocabulary):
        """log p of every token behind `tokens`."""
        answer = self.ask(tokens, 1, vocabulary)
        listed = find_probabilities(answer)
        out = np.full(vocabulary, -np.inf)
        for one in listed:
            out[one["id"]] = one["logprob"]
        return out

    def greedy(self, tokens, new):
        answer = self.ask(tokens, new, 1)
        return [one["id"] for one in find_steps(answer)]


def find_steps(answer):
    """The list with one entry per generated token, in the server's own or OpenAI's form."""
    if "completion_probabilities" in answer:
        return answer["completion_probabilities"]
    return answer["choices"][0]["logprobs"]["content"]


def find_probabilities(answer):
    step = find_steps(answer)[0]
    return step["top_logprobs"]


def windows(tokens, size, bos, count):
    """Windows of at most `size` tokens, each behind BOS, that score `count` positions in all."""
    for start in range(0, count, size - 1):
        piece = tokens[start:start + min(size - 1, count - start)]
        yield [bos, *piece]


def decoded(path, out):
    """The file with every tensor in f32."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(out, reader.get_field("general.architecture").contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def kl(p, q):
    seen = np.isfinite(p)
    return float((np.exp(p[seen]) * (p[seen] - q[seen])).sum())


def compare(name, quant, path, ids, bos, banned, window):
    theirs, vocabulary = LlamaCpp(path, 512, banned), None
    f32 = decoded(path, path.with_suffix(".f32.gguf"))
    nll_ours, nll_theirs, nll_exact, count = 0.0, 0.0, 0.0, 0
    divergence, our_error, their_error = 0.0, 0.0, 0.0
    for tokens in windows(ids, window, bos, args.tokens):
        ours, exact = log_softmax(our_logits(path, tokens)), log_softmax(our_logits(f32, tokens))
        vocabulary = ours.shape[1]
        for i in range(1, len(tokens)):
            p = theirs.distribution(tokens[:i], vocabulary)
            q, e = ours[i - 1], exact[i - 1]
            divergence += kl(p, q)
            our_error += kl(e, q)
            their_error += kl(e, np.maximum(p, -100.0))
            nll_theirs -= p[tokens[i]]
            nll_ours -= q[tokens[i]]
            nll_exact -= e[tokens[i]]
            count += 1
    result = {
        "model": name, "type": quant, "positions": count,
        "perplexity_ours": math.exp(nll_ours / count), "perplexity_theirs": math.exp(nll_theirs / count),
        "perplexity_exact": math.exp(nll_exact / count), "kl_nats": divergence / count,
        "kl_exact_ours": our_error / count, "kl_exact_theirs": their_error / count,
    }
    percent = lambda a, b: round(100 * (result[f"perplexity_{a}"] / result[f"perplexity_{b}"] - 1), 4)
    result["percent_ours_theirs"] = percent("ours", "theirs")
    result["percent_ours_exact"] = percent("ours", "exact")
    result["percent_theirs_exact"] = percent("theirs", "exact")
    equal, worst = 0, 0.0
    for n in range(args.prompts):
        prompt = [bos, *ids[7 * n:7 * n + 8 + n % 9]]
        found = theirs.greedy(prompt, args.new)
        # Theirs, read by us in one go: where they took another token than we would have.
        ours = log_softmax(our_logits(path, [*prompt, *found]))[len(prompt) - 1:-1]
        ours[:, banned] = -np.inf
        differs = [i for i, token in enumerate(found) if ours[i].argmax() != token]
        if not differs:
            equal += 1
        else:
            i = differs[0]
            worst = max(worst, float(ours[i].max() - ours[i][found[i]]))
    result |= {"prompts": args.prompts, "new_tokens": len(found), "greedy_equal": equal, "worst_margin_nats": worst}
    print(json.dumps(result), flush=True)
    greedy_fits = name == "random" or equal == args.prompts or worst < NEAR_TIE
    near = abs(result["percent_ours_theirs"]) <= 0.1
    no_worse = our_error <= 1.05 * their_error
    return (near or no_worse) and greedy_fits


def text():
    folder = args.assets / "data/corpora/wikitext-2"
    return (folder / "test.txt").read_text()


fits = True
with tempfile.TemporaryDirectory() as folder:
    work = Path(folder)
    for name in args.models.split(","):
        if name == "random":
            source, window, bos, banned = work / "random.gguf", 128, 1, [2, *range(3, 259)]
            maker = args.assets.parent / "peers/make_gguf.py"
            subprocess.run([sys.executable, str(maker.resolve()), "tiny", str(source)], check=True)
            rng = np.random.default_rng(1)
            ids = rng.integers(259, 512, 4 * args.tokens + 1000).tolist()
        else:
            import sentencepiece

            weights, vocabulary, window = MODELS[name]
            weights, vocabulary = (args.assets / "models" / name / f for f in (weights, vocabulary))
            source = work / name
            intern("train", "convert", weights, "--tokenizer", vocabulary, "--to", "llama", "--out", source)
            pieces = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary))
            bos, banned = pieces.bos_id(), [pieces.eos_id()]
            ids = pieces.encode(text()[: 40 * args.tokens + 4000])
        for quant in args.types.split(","):
            path = work / f"{name}-{quant}.gguf"
            if name == "random" and quant == "f16":
                path = source
            else:
                intern("serve", "quantize", source, "--type", quant, "--out", path)
            fits &= compare(name, quant, path, ids, bos, banned, window)
sys.exit(0 if fits else 1)
