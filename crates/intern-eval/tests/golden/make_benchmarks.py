"""Writes real benchmark sets of the assets as tasks, for compare_lm_eval.py.

    python make_benchmarks.py ASSETS TASKS_DIR
    intern eval run TASKS_DIR --model CHECKPOINT --limit 50 --out OURS
    python compare_lm_eval.py CHECKPOINT TASKS_DIR OURS --limit 50
"""

import json
import os
import sys
import tarfile

assets, out = sys.argv[1:]
os.makedirs(out, exist_ok=True)
CHOICE = """output_type: multiple_choice
doc_to_text: "{{query}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - metric: acc
  - metric: acc_norm
"""
TASKS = {
    "piqa": ("llm-foundry-local", "commonsense_reasoning/piqa.jsonl", "num_fewshot: 0\n" + CHOICE),
    "arc_easy": ("llm-foundry-local", "world_knowledge/arc_easy.jsonl", "num_fewshot: 2\nfewshot_split: test\n" + CHOICE),
    "lambada": ("llm-foundry-local", "language_understanding/lambada_openai.jsonl", """output_type: loglikelihood
doc_to_text: "{{context}}"
doc_to_target: " {{continuation}}"
metric_list:
  - metric: perplexity
  - metric: acc
"""),
    "logiqa_zh": ("agieval", "logiqa-zh.jsonl", """output_type: multiple_choice
doc_to_text: "{{passage}}\\n问题：{{question}}\\n{{options|join('\\n')}}\\n答案："
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: label
target_delimiter: ""
"""),
    "lambada_pages": ("llm-foundry-local", "language_understanding/lambada_openai.jsonl", """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{context}}"
metric_list:
  - metric: word_perplexity
  - metric: byte_perplexity
"""),
    "gsm8k": (None, "gsm8k/test.jsonl", """output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer.split('####')[-1].strip()}}"
generation_kwargs:
  until: ["Question:"]
  max_gen_toks: 48
  do_sample: false
metric_list:
  - metric: exact_match
"""),
}
for task, (archive, path, rest) in TASKS.items():
    if archive:
        with tarfile.open(os.path.join(assets, "eval", archive + ".tar.xz")) as tar:
            text = tar.extractfile(path).read().decode()
    else:
        text = open(os.path.join(assets, "eval", path), encoding="utf-8").read()
    with open(os.path.join(out, task + ".jsonl"), "w", encoding="utf-8") as f:
        # One schema for all lines, as `datasets` wants it.
        rows = [json.loads(line) for line in text.splitlines()][:400]
        keys = [k for k in rows[0] if all(type(r.get(k)) is type(rows[0][k]) for r in rows)]
        f.writelines(json.dumps({k: r[k] for k in keys}, ensure_ascii=False) + "\n" for r in rows)
    with open(os.path.join(out, task + ".yaml"), "w", encoding="utf-8") as f:
        f.write(f"task: {task}\ndataset_path: json\ndataset_kwargs:\n  data_files: {{test: {task}.jsonl}}\ntest_split: test\n{rest}")
