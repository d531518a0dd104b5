#!/usr/bin/env python3
"""Runs run-batch on the machines of a Spark cluster: each partition of the requests is piped through it. The results,
one file per partition, are in the order of the requests, and together the same bytes as from one machine.

    spark-submit spark_batch.py model.bin -i requests.jsonl -o results --partitions 8 --threads 4

Every machine needs the program and the model at the same path; requests and results may be on HDFS or S3. A partition
that fails is repeated on another machine. Requires pyspark.
"""
import argparse
import shlex

from pyspark.sql import SparkSession


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model")
    arguments.add_argument("-i", "--input", required=True)
    arguments.add_argument("-o", "--output", required=True, help="folder, which must not exist")
    arguments.add_argument("--partitions", type=int, default=8, help="parts of the file, at least [8]")
    arguments.add_argument("--threads", type=int, default=1, help="threads for each partition [1]")
    arguments.add_argument("--program", default="run-batch", help="path of run-batch [run-batch]")
    a = arguments.parse_args()

    command = [a.program, a.model, "-i", "-", "-o", "-", "--quiet", "--threads", str(a.threads)]
    lines = ("spark.hadoop.textinputformat.record.delimiter", "\n")  # else \r ends a line too
    spark = SparkSession.builder.appName("run-batch").config(*lines).getOrCreate()
    requests = spark.sparkContext.textFile(a.input, a.partitions)
    requests.pipe(shlex.join(command), checkCode=True).saveAsTextFile(a.output)
    spark.stop()


if __name__ == "__main__":
    main()
