#!/usr/bin/env python3
"""Writes minhash.jsonl (C4 documents with planted near copies) and minhash.json: BLAKE3 of the signature
files that datatrove 0.10.1 writes for them, and the documents its clustering removes.
usage: make_minhash.py ASSETS        needs: datatrove spacy blake3
"""
import json
import random
import struct
import sys
import tempfile
from pathlib import Path

from blake3 import blake3
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig, MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature)

here = Path(__file__).parent
rng = random.Random(1)
lines = open(f"{sys.argv[1]}/data/corpora/c4-wiki-demo/c4_demo.jsonl", encoding="utf-8")
texts = [json.loads(line)["text"] for line in lines]
texts = [t[:900] for t in rng.sample(texts, 30)]
for _ in range(20):
    words = rng.choice(texts[:30]).split(" ")
    for _ in range(rng.randrange(0, 6)):
        words[rng.randrange(len(words))] = "changed"
    texts.append(" ".join(words))
texts += ["Too short.", "你好，世界。" * 20, ""]
rng.shuffle(texts)
with open(here / "minhash.jsonl", "w", encoding="utf-8") as out:
    for i, text in enumerate(texts):
        out.write(json.dumps({"id": str(i), "text": text}, ensure_ascii=False) + "\n")
result = {}
for rows in (8, 9):
    config = MinhashConfig(num_buckets=14, hashes_per_bucket=rows)
    with tempfile.TemporaryDirectory() as tmp:
        documents = (Document(text=t, id=str(i)) for i, t in enumerate(texts))
        MinhashDedupSignature(f"{tmp}/sig", config).run(documents, 0, 1)
        buckets = MinhashDedupBuckets(f"{tmp}/sig", f"{tmp}/dup", config=config)
        for band in range(14):
            buckets.run(None, band, 14)
        MinhashDedupCluster(f"{tmp}/dup", f"{tmp}/rm", config=config).run(None, 0, 1)
        files = [Path(f"{tmp}/sig/bucket_{b:03d}/00000.minhash.sig").read_bytes() for b in range(14)]
        removed = Path(f"{tmp}/rm/000000.remove").read_bytes()
    result[str(rows)] = {
        "signatures": [blake3(f).hexdigest() for f in files],
        "removed": list(struct.unpack(f"<{len(removed) // 4}I", removed)),
    }
json.dump(result, open(here / "minhash.json", "w"), indent=1)
