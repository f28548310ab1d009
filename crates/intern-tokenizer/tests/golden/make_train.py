"""Merges that Python `tokenizers` learns, as one hash a pre-tokenizer; and the time it takes.

    python make_train.py ASSETS > train.json      # the goldens
    python make_train.py --time FILE... [PATTERN] # seconds to learn 32,000 tokens from these files
"""

import json
import pathlib
import sys
import time

from blake3 import blake3
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {"gpt2": None, "llama3": LLAMA3, "qwen2": LLAMA3.replace("{1,3}", "")}


def train(texts, pattern, vocab_size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if PATTERNS[pattern]:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(PATTERNS[pattern]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, min_frequency=2, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<s>", "</s>"])
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


if sys.argv[1] == "--time":
    pattern = sys.argv[-1] if sys.argv[-1] in PATTERNS else "qwen2"
    texts = [pathlib.Path(f).read_bytes().decode("utf-8", "replace") for f in sys.argv[2:] if f not in PATTERNS]
    start = time.monotonic()
    size = train(texts, pattern, 32_000).get_vocab_size()
    print(f"{pattern}: {size} tokens in {time.monotonic() - start:.2f} s")
else:
    folder = pathlib.Path(sys.argv[1]) / "data/corpora"
    texts = [(folder / "tinyshakespeare/input.txt").read_text(encoding="utf-8"),
             (pathlib.Path(__file__).parent / "hard.txt").read_bytes().decode()]
    goldens = {}
    for pattern in PATTERNS:
        merges = json.loads(train(texts, pattern, 5_000).to_str())["model"]["merges"]
        goldens[pattern] = blake3("".join(f"{a} {b}\n" for a, b in merges).encode()).hexdigest(length=16)
    print(json.dumps(goldens, indent=1))
