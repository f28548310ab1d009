#!/usr/bin/env python3
"""Counts the records of every archive in the assets as warcio sees them.
usage: make_warc_counts.py ASSETS/data/warc > warc_counts.json     needs: warcio
`error` is how warcio stopped; there our reader may go on and find more.
"""
import json
import os
import sys

from warcio.archiveiterator import ArchiveIterator

root, out = sys.argv[1], {}
for folder, _, names in sorted(os.walk(root)):
    for name in sorted(names):
        path = os.path.join(folder, name)
        if name.endswith(".lz4"):
            continue
        types, error = {}, None
        try:
            for record in ArchiveIterator(open(path, "rb"), arc2warc=False):
                types[record.rec_type] = types.get(record.rec_type, 0) + 1
                record.content_stream().read()
        except Exception as e:
            error = type(e).__name__
        out[os.path.relpath(path, root)] = {"records": sum(types.values()), "types": types, "error": error}
json.dump(out, sys.stdout, indent=1)
