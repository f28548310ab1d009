#!/usr/bin/env python3
"""Quantizes a checkpoint to every type and compares with llama.cpp on the same file: greedy text and perplexity.
usage: check_quantize.py CHECKPOINT TEXT [--intern PATH] [--imatrix TEXT]     needs: xllamacpp
TEXT: prompts are its first lines; perplexity is over all of it. Where texts differ, the largest margin (nats between our two likeliest tokens at the
point of difference) is printed: llama.cpp rounds activations to 8 bits, which tips near ties.
"""
import argparse
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

TYPES = ["f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0"]


def call(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request))


def theirs(gguf, prompts):
    """In a process of its own, since xllamacpp's server ends with it."""
    import xllamacpp as x

    p = x.CommonParams()
    p.model.path, p.n_ctx, p.n_parallel, p.warmup = gguf, 512, 1, False
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 2
    server = x.Server(p)
    for prompt in prompts:
        r = call(server.listening_address + "/completion", {
            "prompt": prompt, "n_predict": 48, "temperature": 0, "samplers": ["top_k"], "top_k": 1,
            "ignore_eos": True, "cache_prompt": False})
        print(json.dumps(r["content"]), flush=True)
    os._exit(0)


def ours(intern, gguf, prompts):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    server = subprocess.Popen([intern, "serve", "api", gguf, "--port", str(port)], stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
                break
            except OSError:
                time.sleep(0.1)
        return [call(f"http://127.0.0.1:{port}/v1/completions", {
            "prompt": prompt, "max_tokens": 48, "temperature": 0, "ignore_eos": True, "logprobs": 2})["choices"][0]
            for prompt in prompts]
    finally:
        server.terminate()
        server.wait()


def margin(choice, text):
    """Nats between our two likeliest tokens where `text` first differs from ours."""
    common = len(os.path.commonprefix([choice["text"], text]))
    p, done = choice["logprobs"], 0
    for token, top in zip(p["tokens"], p["top_logprobs"]):
        done += len(token)
        if done > common:
            best = sorted(top.values(), reverse=True)
            return best[0] - best[1]
    return 0.0


if sys.argv[1] == "--theirs":
    theirs(sys.argv[2], json.load(sys.stdin))
a = argparse.ArgumentParser()
a.add_argument("model")
a.add_argument("text")
a.add_argument("--intern", default="intern")
a.add_argument("--imatrix")
a = a.parse_args()
lines = [line for line in open(a.text, encoding="utf-8").read().splitlines() if len(line) > 20]
prompts = [line[: len(line) // 2] for line in lines[:12]]
bad = 0
with tempfile.TemporaryDirectory() as tmp:
    for ty in TYPES:
        for extra in [[]] + ([["--imatrix", a.imatrix], ["--imatrix", a.imatrix, "--scale"]] if a.imatrix else []):
            if extra and ty in ("f16", "q8_0"):
                continue
            out = f"{tmp}/{ty}.gguf"
            made = json.loads(subprocess.run(
                [a.intern, "serve", "quantize", a.model, "--type", ty, "--out", out, "--text", a.text, "--json", *extra],
                check=True, capture_output=True).stdout)
            us = ours(a.intern, out, prompts)
            run = subprocess.run([sys.executable, __file__, "--theirs", out], input=json.dumps(prompts), text=True,
                                 capture_output=True)
            them = [json.loads(line) for line in run.stdout.splitlines() if line.startswith('"')]
            assert len(them) == len(prompts), run.stderr[-2000:]
            margins = [margin(u, t) for u, t in zip(us, them) if u["text"] != t]
            same = len(prompts) - len(margins)
            bad += max(margins, default=0) > 0.2
            p = made["perplexity"]
            change = 100 * math.expm1(math.log(p["after"] / p["before"]))
            print(f"{ty:8}{' '.join(extra[::2] and ['imatrix'] + ['scale'] * ('--scale' in extra)):16}"
                  f"{made['bytes_after'] / 1e6:9.2f} MB  perplexity {p['after']:9.4f} ({change:+.3f} %)  "
                  f"greedy text equal to llama.cpp's: {same}/{len(prompts)}"
                  f"{f', margins to {max(margins):.3f}' if margins else ''}  {made['tensors']}", flush=True)
            os.remove(out)
sys.exit(bad > 0)
