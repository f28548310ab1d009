"""Token ids of the reference implementations over the assets' texts, as one hash per model and text.

    python make_ids.py ASSETS > ids.json

A text is `hard.txt` beside this script, or an archive: its files in name order; each file's lines (split at b"\\n", decoded with replacement characters)
are encoded one by one. The hash is blake3 over the ids as little-endian u32, each line closed by 0xFFFFFFFF.
`NAME/every/N` takes every Nth line of each file only.
SentencePiece models by `sentencepiece`, ranks by `tiktoken`; both blind to special tokens.
"""

import array
import base64
import io
import json
import pathlib
import sys
import tarfile
import zipfile

import sentencepiece
import tiktoken
import tiktoken_ext.openai_public
from blake3 import blake3

assets = pathlib.Path(sys.argv[1])

SENTENCEPIECE = [
    "tokenizers/internlm/tokenizer_internlm2.model",
    "tokenizers/internlm/tokenizer_internlm.model",
    "tokenizers/mistral/tokenizer.model.v1",
    "tokenizers/mistral/mistral_instruct_tokenizer_240323.model.v3",
    "tokenizers/open_llama/tokenizer.model",
    "tokenizers/zh-sp/chinese_sp.model",
    "tokenizers/sentencepiece-test/test_model.model",
    "tokenizers/sentencepiece-test/test_ja_model.model",
    "models/stories260K/tok512.model",
    "models/babyllama105/tok105.model",
]
TIKTOKEN = [f"tokenizers/tiktoken/{name}_base.tiktoken" for name in ["r50k", "p50k", "cl100k", "o200k"]]
UDHR = "data/langid/udhr/udhr2.zip"
CORPORA = [f"data/corpora/{name}.tar.xz" for name in
           ["gutenberg", "zh-novels", "niutrans-classical", "niutrans-parallel", "chinese-poetry"]]


def files(text):
    if text == "hard.txt":
        return [(pathlib.Path(__file__).parent / text).read_bytes()]
    path = assets / text
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            return [archive.read(n) for n in sorted(archive.namelist()) if not n.endswith("/")]
    with tarfile.open(path) as archive:
        members = sorted((m for m in archive if m.isfile()), key=lambda m: m.name)
        return [archive.extractfile(m).read() for m in members]


def encoder(model):
    path = assets / model
    if not model.endswith(".tiktoken"):
        sp = sentencepiece.SentencePieceProcessor(model_file=str(path))
        return sp.encode
    ranks = {base64.b64decode(t): int(r) for t, r in (line.split() for line in path.read_bytes().splitlines())}
    name = path.stem.removesuffix(".tiktoken")
    pattern = {
        "r50k_base": tiktoken_ext.openai_public.r50k_pat_str,
        "p50k_base": tiktoken_ext.openai_public.r50k_pat_str,
        "cl100k_base": r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s""",
        "o200k_base": "|".join([
            r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
            r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
            r"""\p{N}{1,3}""", r""" ?[^\s\p{L}\p{N}]+[\r\n/]*""", r"""\s*[\r\n]+""", r"""\s+(?!\S)""", r"""\s+""",
        ]),
    }[name]
    return tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={}).encode_ordinary


def golden(encode, text):
    digest, lines, tokens = blake3(), 0, 0
    text, _, every = text.partition("/every/")
    for data in files(text):
        for line in data.split(b"\n")[::int(every or 1)]:
            ids = encode(line.decode("utf-8", "replace"))
            digest.update(array.array("I", ids + [0xFFFFFFFF]).tobytes())
            lines, tokens = lines + 1, tokens + len(ids)
    return {"lines": lines, "tokens": tokens, "hash": digest.hexdigest(length=16)}


goldens = {}
for model in SENTENCEPIECE + TIKTOKEN:
    encode = encoder(model)
    texts = ["hard.txt", UDHR, UDHR + "/every/16"]
    if "internlm2" in model:
        texts += CORPORA + [CORPORA[1] + "/every/16"]
    goldens[model] = {text: golden(encode, text) for text in texts}
    print(model, file=sys.stderr)
json.dump(goldens, sys.stdout, indent=1)
print()
