"""Loads what `save` wrote by `transformers` and compares ids with `sentencepiece` or `tiktoken`, and ours.

    INTERN_EXPORT_DIR=DIR cargo nextest run -p intern-tokenizer export_for_transformers
    python check_transformers.py ASSETS DIR
"""

import pathlib
import sys
import zipfile

import sentencepiece
from transformers import AutoTokenizer, PreTrainedTokenizerFast

assets, exported = map(pathlib.Path, sys.argv[1:3])
hard = (pathlib.Path(__file__).parent / "hard.txt").read_bytes().decode().split("\n")
with zipfile.ZipFile(assets / "data/langid/udhr/udhr2.zip") as archive:
    names = [n for n in sorted(archive.namelist()) if not n.endswith("/")]
    udhr = [line.decode("utf-8", "replace") for n in names for line in archive.read(n).split(b"\n")[::16]]
lines = [("hard", line) for line in hard] + [("udhr", line) for line in udhr]

for folder in sorted(exported.iterdir()):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert isinstance(tokenizer, PreTrainedTokenizerFast), type(tokenizer)
    print(f"{folder.name}: {len(tokenizer)} tokens, bos {tokenizer.bos_token!r}, eos {tokenizer.eos_token!r}, "
          f"chat template {tokenizer.chat_template is not None}", end="")
    if not folder.name.rsplit(".", 1)[-1].startswith(("model", "v1", "v3")):
        print()
        continue
    sp = sentencepiece.SentencePieceProcessor(model_file=str(assets / folder.name.replace("--", "/")))
    special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    reserved = {i: t.content for i, t in tokenizer.added_tokens_decoder.items() if sp.id_to_piece(i) != t.content}
    differ = {"hard": 0, "udhr": 0}
    for text, line in lines:
        if any(s in line for s in special) or "UNUSED_TOKEN" in line or "\0" in line:
            continue  # recognised here, ordinary text there
        ours, theirs = tokenizer.encode(line, add_special_tokens=False), sp.encode(line)
        if ours != theirs:
            differ[text] += 1
            if "-v" in sys.argv and differ[text] < 6:
                print("\n ", repr(line[:80]), ours[:20], theirs[:20], end="")
    print(f"; renamed {reserved}; of {len(hard)} hard and {len(udhr)} udhr lines {differ} differ")
