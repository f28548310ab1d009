"""Writes images/: pictures with their perceptual hashes by imagehash, a WebDataset shard written by
webdataset, and a tiny random CLIP model with what transformers computes with it.

    pip install torch transformers tokenizers pillow numpy imagehash webdataset
    python make_images.py
"""

import io
import json
import pathlib

import imagehash
import numpy as np
import torch
import webdataset
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

OUT = pathlib.Path(__file__).parent / "images"
OUT.mkdir(exist_ok=True)
TEXTS = ["A red disc on a green field.", "stripes, blue and yellow", "snow", "a very long text " * 30]


def draw(kind, w, h):
    y, x = np.mgrid[0:h, 0:w] / [[[h]], [[w]]]
    if kind == "disc":
        inside = (x - 0.4) ** 2 + (y - 0.5) ** 2 < 0.08
        rgb = np.where(inside[..., None], [210, 30, 30], [30, 150 + 60 * 0.5, 40])
        rgb = rgb + 30 * np.sin(14 * x + 5 * y)[..., None]
    elif kind == "stripes":
        wave = np.sin(40 * (x + 0.6 * y))[..., None]
        rgb = np.where(wave > 0, [30, 40, 200], [230, 220, 50]) + 20 * (y[..., None] - 0.5)
    else:
        rng = np.random.default_rng(7)
        rgb = rng.normal(128, 40, (h, w, 1)) + 60 * np.cos(7 * x * y)[..., None] + np.zeros(3)
    return Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))


images = {
    "disc.png": draw("disc", 160, 120),
    "disc-small.jpg": draw("disc", 80, 60),
    "stripes.webp": draw("stripes", 120, 150),
    "snow.png": draw("snow", 64, 64),
    "gray.jpg": draw("stripes", 90, 90).convert("L"),
}
expected = {"images": {}, "texts": TEXTS}
for name, image in images.items():
    buffer = io.BytesIO()
    options = {"lossless": True} if name.endswith("webp") else {}
    image.save(buffer, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[name.split(".")[1]], **options)
    (OUT / name).write_bytes(buffer.getvalue())
    read = Image.open(OUT / name)
    expected["images"][name] = {"size": read.size, "phash": str(imagehash.phash(read))}

# A shard as webdataset writes it; the last member has several dots.
with webdataset.TarWriter(str(OUT / "shard.tar"), mtime=0, user="u", group="g") as shard:
    for i, name in enumerate(images):
        kind = name.split(".")[1]
        sample = {"__key__": f"a/{i:04}", kind: (OUT / name).read_bytes(), "txt": TEXTS[i % 3], "cls": str(i)}
        if i == 1:
            sample["json"] = json.dumps({"license": "cc0"}).encode()
            sample["seg.png"] = b"no picture"
        shard.write(sample)

tokenizer = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
special = ["<|startoftext|>", "<|endoftext|>"]
trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=special, end_of_word_suffix="</w>", show_progress=False)
tokenizer.train_from_iterator(TEXTS, trainer)
ids = [tokenizer.token_to_id(t) for t in special]
tokenizer.post_processor = processors.TemplateProcessing(
    single="<|startoftext|> $A <|endoftext|>", special_tokens=list(zip(special, ids))
)
torch.manual_seed(1)
text = {"vocab_size": 120, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 24, "bos_token_id": ids[0], "eos_token_id": ids[1],
        "pad_token_id": ids[1]}
vision = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3,
          "image_size": 32, "patch_size": 8}
model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).eval()
with torch.no_grad():
    for p in model.parameters():
        if p.ndim == 1:
            p.add_(0.3 * torch.randn_like(p))
        else:
            p.mul_(4)
dir = OUT / "clip"
model.save_pretrained(dir)
tokenizer.save(str(dir / "tokenizer.json"))
prepare = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
prepare.save_pretrained(dir)
fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|endoftext|>")
unit = lambda x: (x / x.norm(dim=-1, keepdim=True))[0].tolist()
with torch.no_grad():
    for name in images:
        pixels = prepare(Image.open(OUT / name).convert("RGB"), return_tensors="pt")["pixel_values"]
        out = model.get_image_features(pixels)
        out = getattr(out, "pooler_output", out)
        expected["images"][name]["direction"] = unit(out)
    expected["directions"] = []
    for line in TEXTS:
        tokens = fast(line, return_tensors="pt", truncation=True, max_length=24)
        out = model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        out = getattr(out, "pooler_output", out)
        expected["directions"].append(unit(out))
(OUT / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
