"""models/finetune/rehearse and score and models/translate/train, with scripts instead of programs."""

import json
import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUN_BATCH = """#!/usr/bin/env python3
import json, os, sys
model, options = sys.argv[1], dict(zip(sys.argv[2::2], sys.argv[3::2]))
if model != "model.bin":
    sys.exit("no such model")
with open(options["-o"], "w") as out:
    for line in open(options["-i"]):
        request = json.loads(line)
        if request["url"] == "/v1/completions":
            choice = {"text": " " + "word " * (40 if int(request["custom_id"].split("-")[1]) % 2 else 2) + "end"}
        else:
            question = request["body"]["messages"][0]["content"]
            choice = {"message": {"content": "It is 7." if question == "How many?" else os.environ.get("ANSWER", "No.")}}
        error = {"message": "no chat template"} if "FAILS" in os.environ else None
        response = None if error else {"body": {"choices": [choice]}}
        print(json.dumps({"custom_id": request["custom_id"], "response": response, "error": error}), file=out)
"""


class Finetune(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        (self.folder / "models/finetune").mkdir(parents=True)
        for name in ("finetune/batch.py", "finetune/rehearse", "finetune/score", "messages.txt"):
            shutil.copy(ROOT / "models" / name, self.folder / "models" / name)
        (self.folder / "run-batch").write_text(RUN_BATCH)
        (self.folder / "run-batch").chmod(0o755)
        (self.folder / "model.bin").write_text("weights")

    def run_script(self, name, *arguments, **environment):
        return subprocess.run([self.folder / "models/finetune" / name, *arguments], cwd=self.folder, text=True,
                              capture_output=True, env=dict(os.environ, **environment))

    def test_mixes_own_texts_with_copies_of_the_examples(self):
        examples = ['{"prompt": "a", "completion": "b"}', '{"prompt": "c", "completion": "d\u00e9\u2028e"}']
        (self.folder / "examples.jsonl").write_text("\n".join(examples) + "\n", encoding="utf-8")
        command = ["rehearse", "model.bin", "examples.jsonl", "mixed.jsonl", "--texts", "20", "--repeat", "3"]
        done = self.run_script(*command)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        mixed = (self.folder / "mixed.jsonl").read_text(encoding="utf-8")
        rows = mixed.split("\n")[:-1]
        self.assertEqual([rows.count(example) for example in examples], [3, 3])
        own = [json.loads(row) for row in rows if row not in examples]
        self.assertEqual({row["completion"] for row in own}, {" " + "word " * 39 + "word"})  # short ones are left out
        beginnings = (ROOT / "models/messages.txt").read_text().splitlines()
        self.assertTrue(all(row["prompt"] in beginnings for row in own))
        self.assertEqual(done.stdout, "mixed.jsonl: 26 examples, 20 of them written by the model\n")
        (self.folder / "run-batch").write_text("#!/bin/sh\nexit 1\n")  # the texts are kept
        self.assertEqual(self.run_script(*command).returncode, 0)
        self.assertEqual((self.folder / "mixed.jsonl").read_text(encoding="utf-8"), mixed)
        kept = self.folder / "mixed.own.jsonl"
        kept.write_text("".join(kept.read_text().splitlines(keepends=True)[:-1]))  # other beginnings
        self.assertIn("has replies to other requests; delete it", self.run_script(*command).stderr)
        (self.folder / "model.bin").write_text("other weights")
        self.assertIn("mixed.own.jsonl: may be of another model than model.bin; delete it",
                      self.run_script(*command).stderr)
        (self.folder / "model.bin").write_text("weights")
        (self.folder / "run-batch").unlink()
        self.assertIn("run: make run-batch", self.run_script(*command).stderr)

    def test_refuses_to_replace_its_inputs(self):
        example = '{"prompt": "a", "completion": "b"}\n'
        for name in ("examples.jsonl", "mixed.own.jsonl"):
            (self.folder / name).write_text(example)
        for examples, out in (("examples.jsonl", "examples.jsonl"), ("mixed.own.jsonl", "mixed.jsonl"),
                              ("examples.jsonl", "model.bin")):
            done = self.run_script("rehearse", "model.bin", examples, out)
            self.assertIn("expected another file to write than ", done.stderr)
            self.assertEqual(done.returncode, 1)
            self.assertEqual((self.folder / examples).read_text(), example)
        done = self.run_script("rehearse", "model.bin", "none.jsonl", "out.jsonl")
        self.assertIn("none.jsonl: no such file", done.stderr)

    def test_counts_right_answers(self):
        rows = [{"messages": [{"role": "user", "content": "How many?"}], "expect": ["seven", "7"]},
                {"messages": [{"role": "user", "content": "Who?"}], "expect": "Edda"}]
        (self.folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.assertEqual(self.run_script("score", "model.bin", "questions.jsonl", ANSWER="edda.").stdout, "2 of 2 right\n")
        self.assertEqual(self.run_script("score", "model.bin", "questions.jsonl").stdout,
                         "wrong: Who? No. (expected: Edda)\n1 of 2 right\n")
        failed = self.run_script("score", "model.bin", "questions.jsonl", FAILS="1")
        self.assertEqual((failed.returncode, failed.stderr), (1, "models/finetune/score: no chat template\n"))
        self.assertNotEqual(self.run_script("score", "other.bin", "questions.jsonl").returncode, 0)


class TranslateTrain(unittest.TestCase):
    def test_examples_of_files_of_the_same_name_are_kept_apart(self):
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        (folder / "models/translate").mkdir(parents=True)
        shutil.copy(ROOT / "models/translate/train", folder / "models/translate/train")
        for name, script in (("train", "printf '%s\\n' \"$@\""), ("translate/examples", "cat $1 > $3")):
            (folder / "models" / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / "models" / name).chmod(0o755)
        for part in ("train", "valid"):
            (folder / part).mkdir()
            (folder / part / "en-fi.jsonl").write_text(part)
        done = subprocess.run(["models/translate/train", "train/en-fi.jsonl", "valid/en-fi.jsonl", "out.bin"], cwd=folder,
                              text=True, capture_output=True, check=True)
        arguments = done.stdout.splitlines()
        self.assertEqual(arguments[1:5:2], ["--valid", "-o"])
        self.assertEqual([(folder / arguments[i]).read_text() for i in (0, 2)], ["train", "valid"])


if __name__ == "__main__":
    unittest.main()
