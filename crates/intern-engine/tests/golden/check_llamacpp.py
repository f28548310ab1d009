#!/usr/bin/env python3
"""The same GGUF in llama.cpp and in ours: prints llama.cpp's greedy tokens for comparison.
usage: check_llamacpp.py MODEL.gguf PROMPTS.json [--tokens 32]     needs: xllamacpp
PROMPTS.json is a list of token-id lists. Prints one JSON list of generated ids per prompt.
"""
import argparse
import json
import os
import sys
import urllib.request

import xllamacpp as x

a = argparse.ArgumentParser()
a.add_argument("model")
a.add_argument("prompts")
a.add_argument("--tokens", type=int, default=32)
a.add_argument("--text", help="also print the ids llama.cpp's tokenizer gives this text")
a = a.parse_args()

p = x.CommonParams()
p.model.path = a.model
p.n_ctx = 1024
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 2
p.n_parallel = 1
p.warmup = False
server = x.Server(p)


def call(route, body):
    data = json.dumps(body).encode()
    request = urllib.request.Request(server.listening_address + route, data, {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request))


for prompt in json.load(open(a.prompts)):
    r = call("/completion", {"prompt": prompt, "n_predict": a.tokens, "temperature": 0, "ignore_eos": True,
                             "cache_prompt": False, "return_tokens": True, "samplers": ["top_k"], "top_k": 1})
    print(json.dumps(r["tokens"]), flush=True)
if a.text:
    print(json.dumps(call("/tokenize", {"content": a.text, "add_special": False})["tokens"]), flush=True)
sys.stdout.flush()
os._exit(0)
