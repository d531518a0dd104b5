"""Runs SentencePiece itself, as a reference for tests.

sentencepiece_reference.py ids MODEL LINES           prints the ids of each line, separated by spaces
sentencepiece_reference.py train LINES SIZE MODEL    trains a model with the settings of tokenizer_trainer.hpp
"""
import sys

import sentencepiece

command, *arguments = sys.argv[1:]
if command == "ids":
    model, lines = arguments
    processor = sentencepiece.SentencePieceProcessor(model_file=model)
    with open(lines, encoding="utf-8", newline="\n") as text:
        for line in text.read().split("\n"):
            ids = processor.encode(line)
            assert processor.decode(ids) == line, line
            print(*ids)
else:
    lines, size, model = arguments
    with open(lines, encoding="utf-8", newline="\n") as text, open(model, "wb") as out:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text.read().split("\n")), model_writer=out, vocab_size=int(size), model_type="bpe",
            byte_fallback=True, split_digits=True, normalization_rule_name="identity",
            remove_extra_whitespaces=False, max_sentence_length=1 << 20, minloglevel=2)
