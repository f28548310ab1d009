"""Renders every chat template of the assets by `transformers`' Jinja and notes a hash of each text.

    python make_chat_templates.py ASSETS > chat_templates.json
"""

import datetime
import json
import pathlib
import sys

from blake3 import blake3
from transformers.utils.chat_template_utils import _compile_jinja_template

FOLDERS = ["serve/chat-templates-llamacpp", "serve/minja-contexts/tests_files", "tokenizers/mistral-chat-templates"]
CLOCK = datetime.datetime.fromtimestamp(1_752_105_600, datetime.timezone.utc)

assets = pathlib.Path(sys.argv[1])
contexts = json.loads((pathlib.Path(__file__).parent / "contexts.json").read_text())
goldens = {}
for folder in FOLDERS:
    for path in sorted((assets / folder).glob("*.jinja")):
        template = _compile_jinja_template(path.read_text())
        golden = goldens[f"{folder}/{path.name}"] = {}
        for name, context in contexts.items():
            try:
                text = template.render(strftime_now=CLOCK.strftime, **context)
                if "&#34;" in text:
                    # Jinja's `safe` makes a later `+` escape its right side for HTML. No model was meant to see that.
                    golden[name] = "escaped"
                    continue
                golden[name] = blake3(text.encode()).hexdigest(length=8)
            except Exception:
                golden[name] = "refused"
json.dump(goldens, sys.stdout, indent=1)
print()
