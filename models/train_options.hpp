// train_options.hpp: the command line of models/train.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <string>
#include <thread>
#include <vector>

#include "../export/lora.hpp"
#include "../export/program.hpp"
#include "examples.hpp"
#include "train_kernels.hpp"

namespace pocket {

// The options as given, with defaults where these do not depend on the text or on a model. 0 and "": not given.
struct TrainOptions {
  std::string model;  // the text; parse_options() calls the first argument so
  std::string output, type = "q8", tokenizer, valid, init, checkpoint, prompt = "Once upon a time", licence, kernel;
  std::string seed = "1", architecture = "llama";
  int dim = 0, layers = 0, heads = 0, kv_heads = 0, hidden = 0, context = 0, vocab = 0;
  int patch = 0, local_dim = 0, local_layers = 0, local_hidden = 0;
  int steps = 0, batch = 16, every = 0, threads = 0;
  std::string lora_targets, teacher, own_text, messages, loss_on = "completions", keep = "last", optimizer = "adamw";
  int lora_rank = 0, own_tokens = 1000000;
  float minutes = 0, rate = 0, decay = 0.1f, lora_alpha = 0, share = -1, temperature = 1, smoothing = 0, dropout = 0;
  bool instruct = false, resume = false, help = false;
  std::vector<std::string> given;  // names of the options on the command line

  bool is_given(const char* name) const { return std::find(given.begin(), given.end(), name) != given.end(); }

  bool megabyte() const { return architecture == "megabyte"; }
  // Whether the training text is the teacher's own: a draft is trained.
  bool draft() const { return model.empty() && !teacher.empty(); }
  const std::string& text() const { return draft() ? own_text : model; }
  // The table and the chart of the losses, next to the model: story.loss.csv and story.loss.svg.
  std::string loss_table() const { return loss_files() + ".csv"; }
  std::string loss_chart() const { return loss_files() + ".svg"; }
  // The training kernels of --kernel; null if the CPU does not support them.
  const TrainKernels* kernels() const { return find_train_kernels(kernel.empty() ? nullptr : kernel.c_str()); }

 private:
  std::string loss_files() const {
    const size_t dot = output.rfind(".bin");
    const bool has_suffix = dot != std::string::npos && dot + 4 == output.size();
    return output.substr(0, has_suffix ? dot : std::string::npos) + ".loss";
  }
};

inline const Option<TrainOptions> kTrainOptions[] = {
    {"", "", "", "The model"},
    {"-o", "--output", "FILE", "model file to write; it appears when it is complete", &TrainOptions::output},
    {"", "--type", "TYPE", "type of the stored weights: q8, f32 or q4 [q8]", &TrainOptions::type},
    {"", "--arch", "NAME", "architecture: llama, or megabyte, which reads bytes and has no vocabulary [llama]",
     &TrainOptions::architecture},
    {"", "--dim", "N", "width [depends on the length of the text]", &TrainOptions::dim, 1, 1 << 16},
    {"", "--layers", "N", "transformer blocks [depends on the length of the text]", &TrainOptions::layers, 1, 1 << 10},
    {"", "--heads", "N", "query heads [dim / 16; from width 256 dim / 32]", &TrainOptions::heads, 1, 1 << 10},
    {"", "--kv-heads", "N", "key/value heads [half of the query heads]", &TrainOptions::kv_heads, 1, 1 << 10},
    {"", "--hidden", "N", "width of the feed-forward block [8/3 of the width; megabyte: 4 times the width]",
     &TrainOptions::hidden, 1, 1 << 20},
    {"", "--ctx", "N", "context in tokens [256, at most that of --init and --teacher; megabyte: 1024 bytes]",
     &TrainOptions::context, 2, 1 << 16},
    {"", "--vocab", "N", "size of the vocabulary, which is trained first [depends on the length of the text]",
     &TrainOptions::vocab, 1, 1 << 20},
    {"-z", "--tokenizer", "FILE", "use this vocabulary instead, a SentencePiece .model", &TrainOptions::tokenizer},
    {"", "--patch", "N", "megabyte: bytes per patch [4]", &TrainOptions::patch, 1, 1 << 12},
    {"", "--local-dim", "N", "megabyte: width of the local stage [3/4 of the width]", &TrainOptions::local_dim, 1,
     1 << 16},
    {"", "--local-layers", "N", "megabyte: transformer blocks of the local stage [as --layers]",
     &TrainOptions::local_layers, 1, 1 << 10},
    {"", "--local-hidden", "N", "megabyte: width of its feed-forward blocks [4 times --local-dim]",
     &TrainOptions::local_hidden, 1, 1 << 20},
    {"", "--init", "FILE", "continue training this model (f32; with --lora-rank any type), with its vocabulary",
     &TrainOptions::init},
    {"", "--instruct", "", "train on instructions too, for run --words dog,cake", &TrainOptions::instruct},
    {"", "--licence", "TEXT", "licence of the text, shown by run --info", &TrainOptions::licence},
    {"", "", "", "LoRA: train an adapter of --init; -o is a folder in PEFT's format, for run --lora"},
    {"", "--lora-rank", "R", "rank of the adapter; the model itself does not change", &TrainOptions::lora_rank, 1,
     kMostRank},
    {"", "--lora-alpha", "A", "the adapter is scaled by A / R [R]", &TrainOptions::lora_alpha, 1e-6, 1e6},
    {"", "--lora-targets", "LIST",
     "some of q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj,lm_head [the first 7]",
     &TrainOptions::lora_targets},
    {"", "", "", "Training"},
    {"", "--steps", "N", "steps [20 tokens or 60 bytes per parameter, at most 20 epochs]", &TrainOptions::steps, 1,
     1e9},
    {"", "--minutes", "M", "as many steps as this machine does in M minutes", &TrainOptions::minutes, 0.01, 1e6},
    {"", "--batch", "N", "windows of --ctx tokens per step [16]; memory does not depend on it from 8 on",
     &TrainOptions::batch, 1, 65536},
    {"", "--lr", "RATE", "highest learning rate [0.003 for width 128, less for larger widths]", &TrainOptions::rate,
     1e-9, 1e30},
    {"", "--optimizer", "NAME", "adamw, or muon for the matrices of the layers [adamw]", &TrainOptions::optimizer},
    {"", "--decay", "D", "weight decay [0.1]", &TrainOptions::decay, 0, 10},
    {"", "--loss-on", "PART", "of examples: completions, or all for the prompts too [completions]",
     &TrainOptions::loss_on},
    {"", "--label-smoothing", "E", "share of the target probability that all tokens get equally [0]",
     &TrainOptions::smoothing, 0, 0.9},
    {"", "--dropout", "P", "probability that an element of a residual branch is dropped [0]", &TrainOptions::dropout, 0,
     0.9},
    {"", "--keep", "WHICH", "the result: last, or best for the state with the lowest validation loss [last]",
     &TrainOptions::keep},
    {"-s", "--seed", "N", "seed of the initial weights and of the order of the stories [1]", &TrainOptions::seed},
    {"", "", "", "Distillation: learn from a larger model too"},
    {"", "--teacher", "FILE", "the larger model, of any type; its vocabulary is used", &TrainOptions::teacher},
    {"", "--teacher-weight", "W", "weight of the teacher in the loss, from 0 to 1 [0.5; of a draft 1]",
     &TrainOptions::share, 0, 1},
    {"", "--temperature", "T", "temperature of the distillation [1]", &TrainOptions::temperature, 0.1, 100},
    {"", "", "", "A draft model, for run --draft: without a text, the text is written by the teacher"},
    {"", "--own-text", "FILE", "file of that text, which is continued if it exists [OUTPUT.own]",
     &TrainOptions::own_text},
    {"", "--own-tokens", "N", "tokens of that text [1000000]", &TrainOptions::own_tokens, 1000, 1e9},
    {"", "--messages", "FILE", "beginnings of messages, one per line, which a chat model completes and replies to",
     &TrainOptions::messages},
    {"", "", "", "While it runs"},
    {"", "--valid", "FILE", "validation text or examples [a fiftieth of the stories, which are not trained on]",
     &TrainOptions::valid},
    {"", "--every", "N", "steps between validations, each with a sample and a checkpoint [a twentieth of all steps]",
     &TrainOptions::every, 1, 1e9},
    {"-i", "--prompt", "TEXT", "prompt of the samples [Once upon a time; of examples a prompt of the validation]",
     &TrainOptions::prompt},
    {"", "--checkpoint", "FILE", "file of the training state, for --resume [OUTPUT.checkpoint]",
     &TrainOptions::checkpoint},
    {"", "--resume", "", "continue from the checkpoint; the result is that of an uninterrupted run",
     &TrainOptions::resume},
    {"", "--threads", "N", "threads [one per CPU]; does not change the result", &TrainOptions::threads, 1, 256},
    {"", "--kernel", "NAME", "avx512, avx2 or portable [the best]; does not change the result", &TrainOptions::kernel},
    {"-h", "--help", "", "print this help", &TrainOptions::help},
};

inline void print_train_help() {
  std::printf(
      "train: trains a language model on a text\n\n"
      "  models/train stories.txt -o story.bin                  chooses all settings and prints them\n"
      "  models/train stories.txt -o story.bin --minutes 10     trains for ten minutes\n"
      "  models/train stories.txt -o story.bin --resume         continues after Ctrl-C\n"
      "  models/train stories.txt -o story.bin --arch megabyte  a model of bytes, without a vocabulary\n"
      "  models/train --teacher large.bin -o draft.bin          a draft of large.bin, for ./run large.bin --draft "
      "draft.bin\n"
      "  models/train letters.txt -o mine.bin --init story.bin  continues training a model of type f32\n"
      "  models/train letters.txt -o letters --init story.bin --lora-rank 8; export/convert story.bin --lora letters "
      "\\\n"
      "    --type q8 -o mine.bin                                trains an adapter, and merges it into the model\n"
      "  models/train questions.jsonl -o support --init smollm2.bin --lora-rank 16; ./run smollm2.bin --lora support "
      "-m chat\n"
      "                                                         fine-tunes a model of any type on examples\n\n"
      "The text is UTF-8: stories separated by lines <|endoftext|>, or one text; or, in a file *.jsonl, examples, one "
      "per\n"
      "line: {\"prompt\": TEXT, \"completion\": TEXT} or {\"messages\": [{\"role\": \"user\", \"content\": TEXT}, "
      "...]}, laid "
      "out\n"
      "by the chat template of --init. Only completions and replies count in the loss. The same text and options give "
      "the\n"
      "same model, bit for bit, on every machine.\n"
      "Samples are written to stdout, everything else to stderr. Exit status: 0 done, 1 failed, 2 wrong usage, 130 "
      "interrupted.\n");
  print_options(kTrainOptions);
}

namespace train_detail {

inline bool is_one_of(const std::string& name, std::initializer_list<const char*> all) {
  return std::find(all.begin(), all.end(), name) != all.end();
}

// Rejects options that are not valid with the architecture.
inline void check_architecture(const TrainOptions& o, const std::vector<std::string>& given) {
  if (!is_one_of(o.architecture, {"llama", "megabyte"}))
    throw Failure{2, "--arch: expected llama or megabyte, found '" + o.architecture + "'"};
  for (const std::string& name : given) {
    if (!o.megabyte()) {
      if (!o.resume && is_one_of(name, {"--patch", "--local-dim", "--local-layers", "--local-hidden"}))
        throw Failure{2, name + ": is only valid with --arch megabyte"};
      continue;
    }
    if (is_one_of(name, {"--vocab", "--tokenizer"}))
      throw Failure{2, name + ": is not valid with --arch megabyte, which has no vocabulary"};
    if (name == "--kv-heads")
      throw Failure{2, name + ": is not valid with --arch megabyte, which has one key/value head per query head"};
    if (is_one_of(name, {"--init", "--instruct", "--teacher", "--dropout", "--optimizer"}) ||
        name.rfind("--lora", 0) == 0)
      throw Failure{2, name + ": is not valid with --arch megabyte"};
  }
}

// Rejects options whose values come from the checkpoint or from the model of --init. The file of a frozen model is
// named again.
inline void check_fixed(const TrainOptions& o, const std::vector<std::string>& given) {
  for (const std::string& name : given) {
    if (o.resume && name == "--init") continue;
    if (o.resume &&
        is_one_of(name, {"--arch",           "--dim",          "--layers",         "--heads",      "--kv-heads",
                         "--hidden",         "--ctx",          "--vocab",          "--tokenizer",  "--patch",
                         "--local-dim",      "--local-layers", "--local-hidden",   "--steps",      "--minutes",
                         "--batch",          "--lr",           "--decay",          "--optimizer",  "--seed",
                         "--every",          "--instruct",     "--lora-rank",      "--lora-alpha", "--lora-targets",
                         "--teacher-weight", "--temperature",  "--own-tokens",     "--messages",   "--loss-on",
                         "--dropout",        "--keep",         "--label-smoothing"}))
      throw Failure{2, name + ": is not valid with --resume, which keeps the earlier value"};
    if (!o.init.empty() &&
        is_one_of(name, {"--dim", "--layers", "--heads", "--kv-heads", "--hidden", "--vocab", "--tokenizer"}))
      throw Failure{2, name + ": is not valid with --init, which keeps the value of that model"};
  }
}

inline void check_lora_options(const TrainOptions& o, const std::vector<std::string>& given) {
  for (const std::string& name : given) {
    if (name.rfind("--lora", 0) == 0 && o.lora_rank == 0) throw Failure{2, name + ": requires --lora-rank R"};
    if (o.lora_rank > 0 && is_one_of(name, {"--dropout", "--optimizer"}))
      throw Failure{2, name + ": is not valid for an adapter"};
    if (o.lora_rank > 0 && (name == "--type" || name == "--licence"))
      throw Failure{2, name + ": is not valid for an adapter; export/convert --lora makes a model of it"};
  }
  if (o.lora_rank > 0 && o.init.empty())
    throw Failure{2, "--lora-rank: requires --init MODEL, the model to train an adapter of"};
}

inline void check_teacher_options(const TrainOptions& o, const std::vector<std::string>& given) {
  for (const std::string& name : given) {
    if (is_one_of(name, {"--teacher-weight", "--temperature"}) && o.teacher.empty())
      throw Failure{2, name + ": requires --teacher MODEL"};
    if (name == "--vocab" && !o.teacher.empty())
      throw Failure{2, "--vocab: is not valid with --teacher, whose vocabulary is used"};
    if (name == "--label-smoothing" && !o.teacher.empty())
      throw Failure{2, "--label-smoothing: is not valid with --teacher, whose probabilities are the labels"};
  }
}

inline void check_draft_options(const TrainOptions& o, const std::vector<std::string>& given) {
  for (const std::string& name : given) {
    if (!o.draft() && is_one_of(name, {"--own-text", "--own-tokens", "--messages"}))
      throw Failure{2, name + ": is only valid with --teacher and without a text"};
    if (o.draft() && is_one_of(name, {"--tokenizer", "--init", "--instruct", "--valid", "--temperature"}))
      throw Failure{2, name + ": is not valid without a text"};
  }
}

inline void check_example_options(const TrainOptions& o, const std::vector<std::string>& given) {
  const bool examples = has_examples(o.text());
  if (!is_one_of(o.loss_on, {"completions", "all"}))
    throw Failure{2, "--loss-on: expected completions or all, found '" + o.loss_on + "'"};
  if (!is_one_of(o.optimizer, {"adamw", "muon"}))
    throw Failure{2, "--optimizer: expected adamw or muon, found '" + o.optimizer + "'"};
  if (!is_one_of(o.keep, {"last", "best"})) throw Failure{2, "--keep: expected last or best, found '" + o.keep + "'"};
  for (const std::string& name : given) {
    if (!examples && name == "--loss-on")
      throw Failure{2, "--loss-on: is only valid for examples, in a file whose name ends in .jsonl"};
    if (examples && is_one_of(name, {"--instruct", "--teacher", "--arch"}))
      throw Failure{2, name + ": is not valid for examples"};
  }
  if (examples && !o.valid.empty() && !has_examples(o.valid))
    throw Failure{2, "--valid: expected examples, in a file whose name ends in .jsonl, found " + o.valid};
  if (!examples && has_examples(o.valid))
    throw Failure{2, "--valid: expected stories, as for the training, found examples: " + o.valid};
}

inline std::string train_kernel_names() {
  std::string names;
  for (const TrainKernels* k = train_kernel_table(); k->name; k++)
    if (k->supported()) names += (names.empty() ? "" : ", ") + std::string(k->name);
  return names;
}

}  // namespace train_detail

// Parses the command line. Throws Failure.
inline TrainOptions parse_train_options(int argc, char** argv) {
  using namespace train_detail;
  TrainOptions o;
  const std::vector<std::string> given = parse_options(argc, argv, kTrainOptions, "put all stories in one file", o);
  if (o.help) return o;
  o.given = given;
  if (o.model.empty() && o.teacher.empty())
    throw Failure{2, "expected a text to train on, or --teacher MODEL, which writes one; see models/train --help"};
  if (o.output.empty()) throw Failure{2, "requires -o OUT.bin, the model file to write"};
  while (o.output.size() > 1 && is_separator(o.output.back())) o.output.pop_back();  // the name of a folder
  if (!is_one_of(o.type, {"q4", "q8", "f32"}))
    throw Failure{2, "--type: expected q8, f32 or q4, found '" + o.type + "'"};
  if (o.steps && o.minutes > 0) throw Failure{2, "--steps, --minutes: give only one of them"};
  if (o.vocab && !o.tokenizer.empty()) throw Failure{2, "--vocab, --tokenizer: give only one of them"};
  check_architecture(o, given);
  check_fixed(o, given);
  check_lora_options(o, given);
  check_teacher_options(o, given);
  check_draft_options(o, given);
  check_example_options(o, given);
  if (!o.kernels())
    throw Failure{2, "--kernel: '" + o.kernel + "' is not supported by this CPU; available: " + train_kernel_names()};
  if (o.context == 0 && o.megabyte()) o.context = round_up(1024, o.patch ? o.patch : 4);
  if (o.share < 0) o.share = o.draft() ? 1 : 0.5f;
  if (o.own_text.empty()) o.own_text = o.output + ".own";
  if (o.checkpoint.empty()) o.checkpoint = o.output + ".checkpoint";
  if (o.threads == 0) o.threads = std::max(1, int(std::thread::hardware_concurrency()));
  return o;
}

}  // namespace pocket
