"""lm_eval with its local-completions: the accuracy of a multiple-choice task is that which ./run --logits gives."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

pytest.importorskip("lm_eval")

ITEMS = [
    ("Once upon a time, there was a little", [" girl", " the", " ran", " very"]),
    ("Once upon a time", [",", " dog", " she", " big"]),
    ("The dog was very", [" happy", " the", " dog", " Lily"]),
    ("Lily liked to play in the", [" park", " happy", " said", " was"]),
    ("The cat climbed up the", [" tree", " sad", " and", " play"]),
    ("Tom was sad because his", [" toy", " is", " went", " the"]),
    ("Mom said, \"Don't worry,", [" Lily", " ran", " big tree", " of"]),
    ("They played together all", [" day", " cat", " the mom", " very"]),
    ("The bird could", [" fly", " happy", " tree", " a"]),
    ("She opened the box and found a", [" ball", " ran", " she", " wanted to"]),
    ("Ben wanted to eat the", [" cake", " jump", " sky", " were"]),
    ("He was scared and started to", [" cry", " tree", " red", " the park"]),
    ("They lived happily ever", [" after", " dog", " big", " are"]),
    ("The sun was", [" shining", " dog", " Lily", " a box"]),
    ("One day, she went to the park with her", [" mom", " happily", " jumped", " were"]),
    ('"Thank you," said', [" the", " run", " play", " big"]),
    ("The little boy saw a big", [" dog", " the", " was", " and"]),
    ("She was so happy that she", [" smiled", " tree", " big", " the ball"]),
    ("From that day on, they were best", [" friends", " ran", " day", " said"]),
    ("The frog jumped into the", [" water", " sad", " went", " is"]),
]
TASK = """task: choices
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
"""


def scores_of_run(server, item, folder):
    """The sum of log probabilities of each choice, by ./run."""
    import numpy

    scores = []
    context = server.json("/tokenize", {"prompt": item["context"], "add_special_tokens": False})["tokens"]
    for choice in item["choices"]:
        ids = server.json("/tokenize", {"prompt": item["context"] + choice, "add_special_tokens": False})["tokens"]
        subprocess.run(
            [
                ROOT / "run",
                ROOT / "models/stories.bin",
                "--ids",
                ",".join(map(str, ids)),
                "--logits",
                folder / "logits",
            ],
            check=True,
            capture_output=True,
        )
        logits = numpy.fromfile(folder / "logits", "<f4").astype("f8").reshape(len(ids), -1)
        top = logits.max(1, keepdims=True)
        logprobs = logits - top - numpy.log(numpy.exp(logits - top).sum(1, keepdims=True))
        scores.append(sum(logprobs[i - 1, ids[i]] for i in range(len(context), len(ids))))
    return scores


def test_accuracy_is_that_of_run(stories, tmp_path):
    items = []
    for i, (context, choices) in enumerate(ITEMS):
        turned = choices[i % 4 :] + choices[: i % 4]
        items.append({"context": context, "choices": turned, "answer": turned.index(choices[0])})
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (tmp_path / "choices.yaml").write_text(TASK.format(data=tmp_path / "data.jsonl"))
    command = [
        sys.executable,
        "-m",
        "lm_eval",
        "--model",
        "local-completions",
        "--model_args",
        f"base_url={stories.url}/v1/completions,model=stories,num_concurrent=4,max_retries=1",
        "--tasks",
        "choices",
        "--include_path",
        tmp_path,
        "--output_path",
        tmp_path / "out",
        "--log_samples",
    ]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    samples = [json.loads(line) for file in (tmp_path / "out").rglob("samples_*.jsonl") for line in open(file)]
    results = json.loads(next((tmp_path / "out").rglob("results_*.json")).read_text())
    assert len(samples) == len(items)
    right = 0
    for sample in samples:
        item = sample["doc"]
        expected = scores_of_run(stories, item, tmp_path)
        found = [float(response[0]) for response in sample["filtered_resps"]]
        assert found == pytest.approx(expected, abs=2e-4)
        assert found.index(max(found)) == expected.index(max(expected))
        right += expected.index(max(expected)) == item["answer"]
    accuracy = results["results"]["choices"]["acc,none"]
    print(f"accuracy {accuracy} of {len(items)} items")
    assert accuracy == right / len(items) and right > len(items) / 2
