#!/usr/bin/env python3
"""Runs run-batch on the machines of a Ray cluster: each gets a part of the requests. The results are in the order of
the requests, and the same bytes as from one machine.

    ray_batch.py model.bin -i requests.jsonl -o results.jsonl --parts 8 --cpus 4

Every machine needs the program and the model at the same path, and reads its part of the file of requests by fsspec:
from a shared folder, S3, GCS or HDFS. If a machine is lost, its part is repeated; if run-batch fails, so does the job.
Requires ray[data].
"""
import argparse
import os
import subprocess

import fsspec
import ray


def reply(part, url, command):
    """The results of the lines of a file that begin in a part of its bytes."""
    with fsspec.open(url, "rb") as file:
        lines = fsspec.utils.read_block(file, part["offset"], part["bytes"], b"\n")
    return {"results": subprocess.run(command, input=lines, stdout=subprocess.PIPE, check=True).stdout}


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

    url = a.input if "://" in a.input else os.path.abspath(a.input)
    files, path = fsspec.core.url_to_fs(url)
    bounds = [files.size(path) * part // a.parts for part in range(a.parts + 1)]
    parts = [{"offset": begin, "bytes": end - begin} for begin, end in zip(bounds, bounds[1:])]
    command = [a.program, a.model, "-i", "-", "-o", "-", "--quiet", "--threads", str(a.cpus)]
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    requests = ray.data.from_items(parts, override_num_blocks=a.parts)
    results = requests.map(reply, fn_args=[url, command], num_cpus=a.cpus)
    with open(a.output + ".tmp", "wb") as file:
        for row in results.iter_rows():
            file.write(row["results"])
    os.rename(a.output + ".tmp", a.output)


if __name__ == "__main__":
    main()
