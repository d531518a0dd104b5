"""Replies of a model by ./run-batch, for the scripts of this folder."""
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def fail(message):
    sys.exit(f"models/finetune/{pathlib.Path(sys.argv[0]).name}: {message}")


def lines_of(path):
    """The lines of a file in JSON Lines. Its texts may have line separators of Unicode, where splitlines() splits."""
    try:
        with open(path, encoding="utf-8") as file:
            return [line.rstrip("\n") for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{path}: {error}")


def choices(model, url, bodies, results, *options):
    """The reply to each request. bodies: by custom_id. results: the file of run-batch, which is used if it exists."""
    program = ROOT / "run-batch"
    if not os.access(program, os.X_OK):
        fail("run-batch: not found; run: make run-batch")
    if not results.exists():
        requests = pathlib.Path(f"{results}.requests")
        requests.write_text("".join(
            json.dumps({"custom_id": name, "method": "POST", "url": url, "body": body}) + "\n" for name, body in bodies.items()))
        done = subprocess.run([program, model, "-i", requests, "-o", results, *options], check=False)
        requests.unlink()
        if done.returncode:
            sys.exit(done.returncode)  # it has said why
    replies = {}
    for row in map(json.loads, lines_of(results)):
        if row["error"]:
            fail(row["error"]["message"])
        replies[row["custom_id"]] = row["response"]["body"]["choices"][0]
    if replies.keys() != bodies.keys():
        fail(f"{results}: has replies to other requests; delete it")
    return replies
