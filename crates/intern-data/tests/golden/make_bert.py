"""Tiny encoder classifiers with random weights, and what transformers gives for some texts.

usage: make_bert.py     needs: torch transformers tokenizers
Writes bert/{bert,roberta,distilbert}/ and bert/expected.json beside this file.
"""
import json
import pathlib

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (BertConfig, BertForSequenceClassification, DistilBertConfig,
                          DistilBertForSequenceClassification, RobertaConfig, RobertaForSequenceClassification)

here = pathlib.Path(__file__).parent / "bert"
words = ("the a cat dog sat on mat and ran away today good bad very day in park with ##s ##ing ##ed . , ! ? "
         "you are is was it they we buy now cheap free offer click here").split()
vocab = ["<s>", "<pad>", "</s>", "<unk>", *words, *"abcdefghijklmnopqrstuvwxyz", *("##" + c for c in "abcdefghijklmnopqrstuvwxyz")]
texts = ["The cat sat on the mat.", "Buy now! Cheap offer, click here", "", "zebra crossing, dogs running",
         "the dog " * 60]
shape = dict(vocab_size=len(vocab), hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
             max_position_embeddings=40, pad_token_id=1, bos_token_id=0, eos_token_id=2)
labels = {0: "clean", 1: "toxic", 2: "advert"}
torch.manual_seed(3)
families = {
    "bert": BertForSequenceClassification(BertConfig(**shape, id2label=labels)),
    "roberta": RobertaForSequenceClassification(RobertaConfig(**{**shape, "max_position_embeddings": 42}, type_vocab_size=1,
                                                              id2label=labels)),
    "distilbert": DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=len(vocab), dim=24, n_layers=2, n_heads=4, hidden_dim=32, max_position_embeddings=40,
                         pad_token_id=1, id2label=labels, problem_type="multi_label_classification")),
}
expected = {"transformers": transformers.__version__, "texts": texts, "logits": {}}
for name, model in families.items():
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3)
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(vocab)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    model.eval().save_pretrained(here / name)
    tokenizer.save(str(here / name / "tokenizer.json"))
    rows = []
    for text in texts:
        ids = tokenizer.encode(text).ids
        ids = ids if len(ids) <= 40 else ids[:39] + ids[-1:]
        rows.append(model(input_ids=torch.tensor([ids])).logits[0].tolist())
    expected["logits"][name] = rows
(here / "expected.json").write_text(json.dumps(expected) + "\n")
