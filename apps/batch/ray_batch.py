#!/usr/bin/env python3
"""Runs run-batch on the machines of a Ray cluster: each gets a part of the requests. The results are in the order of the
requests, and the same bytes as from one machine.

    ray_batch.py model.bin -i requests.jsonl -o results.jsonl --parts 8 --cpus 4

Every machine needs the program and the model at the same path, and the file of requests is read by Ray: it may be local,
or on S3, GCS or HDFS. A part that fails is repeated on another machine. Requires ray[data].
"""
import argparse
import os
import subprocess

import ray


def reply(batch, command):
    """The results of some lines of requests."""
    lines = "".join(line + "\n" for line in batch["text"])
    done = subprocess.run(command, input=lines.encode(), stdout=subprocess.PIPE, check=True)
    return {"text": done.stdout.decode().split("\n")[:-1]}


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model")
    arguments.add_argument("-i", "--input", required=True)
    arguments.add_argument("-o", "--output", required=True)
    arguments.add_argument("--parts", type=int, default=8, help="parts of the file [8]")
    arguments.add_argument("--cpus", type=int, default=1, help="threads for each part [1]")
    arguments.add_argument("--program", default="run-batch", help="path of run-batch [run-batch]")
    a = arguments.parse_args()
    if os.path.exists(a.output):
        arguments.error(f"{a.output}: exists")

    ray.data.DataContext.get_current().execution_options.preserve_order = True
    command = [a.program, a.model, "-i", "-", "-o", "-", "--quiet", "--threads", str(a.cpus)]
    requests = ray.data.read_text(a.input).repartition(a.parts)
    results = requests.map_batches(reply, fn_args=[command], batch_size=None, num_cpus=a.cpus)
    with open(a.output + ".tmp", "w", encoding="utf-8", newline="\n") as file:
        for row in results.iter_rows():
            file.write(row["text"] + "\n")
    os.rename(a.output + ".tmp", a.output)


if __name__ == "__main__":
    main()
