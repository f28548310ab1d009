"""Lines that try the corners of tokenizers: runs, spaces, controls, symbols of the models, odd Unicode.

    python make_hard.py > hard.txt
"""

import random
import sys

FRAGMENTS = (
    [" " * n for n in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 20, 31, 33, 40)]
    + [c * n for c in "-=a.o0哈▁" for n in (1, 2, 3, 5, 8, 13, 33)]
    + ["the", " the", "The", "ing", "n't", "'re", "'LL", "12", " 345", "678901", "3.14", "x+y", "://", "def f(x):", "\t", "\t\t"]
    + ["\0", "\x01", "\x7f", "\r", "\u00a0", "\u3000", "\u200b", "\u200d", "\ufeff", "\u2028", "\u0085", "\ufffd"]
    + ["é", "e\u0301", "ﬁ", "Ⅸ", "①", "㍿", "ｶﾞ", "ガ", "Å", "½", "ẛ̣", "ÄÖÜ", "ß", "İ", "ǅ", "ſ"]
    + ["中文", "，", "。", "我们", "龘", "𠮷", "あいう", "한국어", "ไทย", "हिन्दी", "العربية", "עברית", "Ελλ", "Рус"]
    + ["😀", "👨‍👩‍👧", "🇨🇭", "👍🏽", "\U0001F9FF", "\u0378", "\U000E0041"]
    + ["Ｅ", "ＥＦ", "＜", "［", "[INST]", "[/INST]", "[REFERENCE_DOC_1]", "[UNUSED_TOKEN_7]", "[UNUSED_TOKEN_9", "<TOKENS_UNUSED_3>", "<eoh>"]
    + ["<s>", "</s>", "<unk>", "<0x41>", "<|endoftext|>", "<pad>"]
)

random.seed(20)
sys.stdout.reconfigure(encoding="utf-8", newline="")
for _ in range(600):
    line = "".join(random.choice(FRAGMENTS) for _ in range(random.randint(1, 12)))
    sys.stdout.write(line + "\n")
