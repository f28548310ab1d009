#!/usr/bin/env python3
"""Replays a trace against a server while clients are killed, streams broken off, and bodies are
oversized or malformed; then the server must be as it was: no crash, no leaked block, flat memory.

usage: soak.py MODEL INTERN_BINARY [--seconds 30] [--trace FILE] [--users 8] [--threads 1]
       soak.py MODEL INTERN_BINARY --seconds 1800        the long one

Starts `INTERN_BINARY serve api MODEL` itself. Prints one line per tenth of the time, and exits
with 1 if the server crashed or answered a 5xx, if blocks stay in use, if memory grew by more than
2 %, or if the tokens per second of processor time fell by more than 5 % between the second and the
last tenth (both by run length: below five minutes they are only shown). Tokens per second of wall
time are printed beside them; on a machine that others use they follow the others.
"""
import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

a = argparse.ArgumentParser()
a.add_argument("model")
a.add_argument("binary")
a.add_argument("--seconds", type=float, default=30)
a.add_argument("--trace", default=str(Path(__file__).parents[2] / "../shared/assets/serve/trace-azure/AzureLLMInferenceTrace_conv.csv"))
a.add_argument("--users", type=int, default=8)
a.add_argument("--threads", type=int, default=1)
a.add_argument("--scale", type=float, default=0.05, help="factor for the trace's lengths")
a = a.parse_args()

server = subprocess.Popen([a.binary, "serve", "api", a.model, "--port", "0", "--threads", str(a.threads),
                           "--set", "max_body_mb=1", "--set", "engine.max_num_seqs=8", "--set", "max_queue=16"],
                          stdout=subprocess.PIPE, text=True)
line = server.stdout.readline()
port = int(line.split("/v1")[0].rsplit(":", 1)[1])
threading.Thread(target=server.stdout.read, daemon=True).start()
trace = [[int(x) for x in row.split(",")[1:]] for row in Path(a.trace).read_text().splitlines()[1:] if row]
stop, lock, done = threading.Event(), threading.Lock(), {}


def count(what):
    with lock:
        done[what] = done.get(what, 0) + 1


def send(path, body, method="POST"):
    s = socket.create_connection(("127.0.0.1", port), timeout=120)
    s.sendall(f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode())
    try:
        s.sendall(body)
    except OSError:
        pass  # refused before it was all sent
    return s


def read_all(s):
    parts = []
    try:
        while part := s.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    s.close()
    return b"".join(parts)


def get(path):
    return read_all(send(path, b"", "GET")).split(b"\r\n\r\n", 1)[1].decode()


def metric(name):
    [value] = [l.rsplit(" ", 1)[1] for l in get("/metrics").splitlines() if l.startswith(name + "{")]
    return float(value)


def processor_seconds():
    fields = Path(f"/proc/{server.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def request(rng):
    """One request of the trace, on one of the routes."""
    context, generated = rng.choice(trace)
    words = "one two three four five six seven eight nine ten ".split()
    text = " ".join(rng.choice(words) for _ in range(max(1, min(int(context * a.scale), 150))))
    n = max(1, min(int(generated * a.scale * 4), 60))
    stream = rng.random() < 0.6
    chat = [{"role": "user", "content": text}]
    return rng.choice([
        ("/v1/completions", {"prompt": text, "max_tokens": n, "ignore_eos": True, "stream": stream, "seed": rng.randrange(1000)}),
        ("/v1/completions", {"prompt": text, "max_tokens": n, "n": 3, "stream": stream}),
        ("/v1/completions", {"prompt": text, "max_tokens": 0, "echo": True, "logprobs": 1}),
        ("/v1/chat/completions", {"messages": chat, "max_tokens": n, "stream": stream}),
        ("/v1/responses", {"input": text, "max_output_tokens": n, "stream": stream, "store": False}),
        ("/v1/messages", {"messages": chat, "max_tokens": n, "stream": stream}),
        ("/v1/embeddings", {"input": [text, text]}),
    ])


def user(number):
    rng = random.Random(number)
    while not stop.is_set():
        path, body = request(rng)
        raw = json.dumps(body).encode()
        dice = rng.random()
        try:
            if dice < 0.05:  # malformed
                cut = rng.randrange(len(raw))
                raw = rng.choice([raw[:cut], raw[:cut] + b"\xff\x00" + raw[cut:], b"[" * 5000, b"{}", b""])
                answer = read_all(send(path, raw))
                count(f"malformed {answer[9:12].decode()}")
            elif dice < 0.08:  # oversized
                answer = read_all(send(path, b" " * (1 << 20) + raw))
                count(f"oversized {answer[9:12].decode() or 'cut'}")
            elif dice < 0.25:  # killed at once, or in the middle of the answer
                s = send(path, raw)
                if rng.random() < 0.5:
                    s.settimeout(rng.random())
                    try:
                        s.recv(200)
                    except (TimeoutError, OSError):
                        pass
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # a reset, as a crash sends
                s.close()
                count("killed")
            elif dice < 0.28:  # half a request, then nothing
                s = socket.create_connection(("127.0.0.1", port))
                s.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(raw)}\r\n\r\n".encode() + raw[: len(raw) // 2])
                s.close()
                count("half sent")
            else:
                answer = read_all(send(path, raw))
                count(f"answered {answer[9:12].decode()}")
        except OSError as error:
            count(f"error {type(error).__name__}")
            if server.poll() is not None:
                return


users = [threading.Thread(target=user, args=(i,)) for i in range(a.users)]
[u.start() for u in users]
history, slowest = [], 0.0
begin, tokens, spent = time.time(), 0, 0.0
for tenth in range(10):
    until = begin + a.seconds * (tenth + 1) / 10
    while time.time() < until and server.poll() is None:
        t = time.time()
        get("/health")
        slowest = max(slowest, time.time() - t)
        time.sleep(min(0.5, max(0, until - time.time())))
    if server.poll() is not None:
        break
    now = metric("intern_generation_tokens_total")
    used = processor_seconds()
    wall, cpu, memory = (now - tokens) / (a.seconds / 10), (now - tokens) / (used - spent), metric("process_resident_memory_bytes") / 2**20
    history.append((cpu, memory))
    tokens, spent = now, used
    print(f"{time.time() - begin:7.0f} s  {wall:8.1f} tok/s  {cpu:8.1f} tok/CPU s  {memory:7.1f} MiB  {sum(done.values())} requests", flush=True)
stop.set()
[u.join() for u in users]
faults = []
if server.poll() is not None:
    faults.append(f"the server ended with {server.returncode}")
else:
    for _ in range(100):  # what was cancelled leaves within a moment
        usage, inside = metric("intern_kv_cache_usage"), metric("intern_requests_running") + metric("intern_requests_waiting")
        if usage == inside == 0:
            break
        time.sleep(0.1)
    if usage or inside:
        faults.append(f"{inside:.0f} sequences and {100 * usage:.2f} % of the blocks are still in use")
    if metric("intern_requests_failed_total"):
        faults.append("requests failed inside the server")
    (speed0, memory0), (speed1, memory1) = history[1], history[-1]
    print(f"memory {memory0:.1f} → {memory1:.1f} MiB ({100 * (memory1 / memory0 - 1):+.1f} %), {speed0:.1f} → {speed1:.1f} tok/CPU s ({100 * (speed1 / speed0 - 1):+.1f} %)")
    if a.seconds >= 300 and memory1 > 1.02 * memory0:
        faults.append("memory grew by more than 2 %")
    if a.seconds >= 300 and speed1 < 0.95 * speed0:
        faults.append("throughput fell by more than 5 %")
    server.send_signal(signal.SIGTERM)
    if server.wait(60) != 0:
        faults.append(f"SIGTERM ended it with {server.returncode}")
faults += [f"{n} × {what}" for what, n in done.items() if what.split()[-1].startswith("5") or what.startswith("error")]
print(", ".join(f"{n} {what}" for what, n in sorted(done.items())) + f"; slowest /health {1000 * slowest:.0f} ms")
print("FAILED: " + "; ".join(faults) if faults else "no crash, no leaked block")
os._exit(bool(faults))
