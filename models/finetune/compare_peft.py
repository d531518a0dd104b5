#!/usr/bin/env python3
"""Trains the adapter that models/train makes from tarnbrook.jsonl with PEFT and PyTorch instead: the same model, rank,
targets, schedule and number of tokens, in f32 on the CPU. Prints tokens a second, peak memory, and the loss on the
validation examples. Requires torch, transformers, peft and gguf.

    models/finetune/compare_peft.py MODEL.gguf --steps 60

beside which

    models/train models/finetune/tarnbrook.jsonl --valid models/finetune/tarnbrook.test.jsonl -o tarnbrook \\
      --init models/smollm2-135m-instruct.bin --lora-rank 16 --lora-alpha 32 --lr 0.001 --batch 4 --ctx 256 --steps 60
"""

import argparse
import json
import math
import pathlib
import random
import resource
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = pathlib.Path(__file__).resolve().parent
CONTEXT, IGNORED = 256, -100


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path, help="a GGUF file")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=4, help="windows of 256 tokens [4]")
    parser.add_argument("--rate", type=float, default=0.001)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--alpha", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def examples(tokenizer, path):
    """Ids and targets of each example: only its reply counts, with the token that ends it."""
    for line in filter(str.strip, path.read_text(encoding="utf-8").split("\n")):
        messages = json.loads(line)["messages"]
        prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, tokenize=False)
        reply = messages[1]["content"] + "<|im_end|>"
        before, after = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, reply))
        yield before + after, [IGNORED] * len(before) + after


def windows(data, generator):
    """Windows that hold as many whole examples as fit, in a new order each time."""
    while True:
        generator.shuffle(data)
        window = []
        for example in data:
            if sum(len(ids) for ids, _ in window) + len(example[0]) > CONTEXT:
                yield window
                window = []
            window.append(example)


def loss_of(model, window):
    """Sum of the losses of a window's examples, none of which attends to another, and the number of targets."""
    size = sum(len(ids) for ids, _ in window)
    mask = torch.full((1, 1, size, size), torch.finfo(torch.float32).min)
    ids, targets, positions = [], [], []
    for one, wanted in window:
        first = len(ids)
        mask[..., first : first + len(one), first : first + len(one)].triu_(1)
        ids += one
        targets += [IGNORED] + wanted[1:]
        positions += range(len(one))
    logits = model(torch.tensor([ids]), attention_mask=mask, position_ids=torch.tensor([positions])).logits[0, :-1]
    wanted = torch.tensor(targets[1:])
    loss = torch.nn.functional.cross_entropy(logits, wanted, ignore_index=IGNORED, reduction="sum")
    return loss, int((wanted != IGNORED).sum())


def validation(model, data):
    with torch.no_grad():
        sums = [loss_of(model, [example]) for example in data]
    return sum(float(loss) for loss, _ in sums) / sum(count for _, count in sums)


def main():
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    folder, file = str(options.model.parent), options.model.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(model, LoraConfig(r=options.rank, lora_alpha=options.alpha, target_modules=targets))
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=options.rate, betas=(0.9, 0.99), weight_decay=0.1)
    valid = list(examples(tokenizer, HERE / "tarnbrook.test.jsonl"))
    source = windows(list(examples(tokenizer, HERE / "tarnbrook.jsonl")), random.Random(1))
    print(f"validation before: {validation(model, valid):.4f} nats per token", flush=True)
    warmup, seconds = options.steps // 20, 0.0
    for step in range(options.steps):
        begin = time.perf_counter()
        share = (step - warmup) / max(1, options.steps - warmup)
        factor = (step + 1) / (warmup + 1) if step < warmup else (1 + math.cos(math.pi * share)) / 2
        for group in optimizer.param_groups:
            group["lr"] = options.rate * factor
        batch = [next(source) for _ in range(options.batch)]
        counted = sum(sum(t != IGNORED for t in wanted[1:]) for window in batch for _, wanted in window)
        for window in batch:
            (loss_of(model, window)[0] / counted).backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds += time.perf_counter() - begin
        print(f"step {step + 1}: {(step + 1) * options.batch * CONTEXT / seconds:.0f} tokens/s", flush=True)
    print(f"validation after: {validation(model, valid):.4f} nats per token")
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
