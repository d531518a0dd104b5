// train.cpp: models/train, from a text of stories to a model that tells its own. See --help.

#include "../export/engine.hpp"

#include "../export/program.hpp"
#include "instruct.hpp"
#include "loss_chart.hpp"
#include "megabyte/megabyte_writer.hpp"
#include "tokenizer_trainer.hpp"
#include "training_state.hpp"
#include "training_text.hpp"

namespace {

using namespace pocket;

struct Arguments {
  std::string model;  // the text
  std::string output, type = "q8", tokenizer, valid, init, checkpoint, prompt = "Once upon a time", licence, kernel;
  std::string seed = "1", architecture = "llama";
  int dim = 0, layers = 0, heads = 0, kv_heads = 0, hidden = 0, context = 0, vocab = 0;
  int patch = 0, local_dim = 0, local_layers = 0, local_hidden = 0;
  int steps = 0, batch = 16, every = 0, threads = 0;
  std::string lora_targets, teacher;
  int lora_rank = 0;
  float minutes = 0, rate = 0, decay = 0.1f, lora_alpha = 0, share = 0.5f, temperature = 1;
  bool instruct = false, resume = false, help = false;
};

const Option<Arguments> kOptions[] = {
    {"", "", "", "What to make"},
    {"-o", "--output", "FILE", "the model file to write; it appears when it is whole", &Arguments::output},
    {"", "--type", "TYPE", "how it stores its weights: q8, f32 or q4 [q8]", &Arguments::type},
    {"", "--arch", "NAME", "llama, or megabyte: learns bytes, in patches, without a vocabulary [llama]",
     &Arguments::architecture},
    {"", "--dim", "N", "width [by the length of the text]", &Arguments::dim, 1, 1 << 16},
    {"", "--layers", "N", "transformer blocks [by the length of the text]", &Arguments::layers, 1, 1 << 10},
    {"", "--heads", "N", "query heads [dim / 16; from 256 on dim / 32]", &Arguments::heads, 1, 1 << 10},
    {"", "--kv-heads", "N", "key/value heads [half of the heads]", &Arguments::kv_heads, 1, 1 << 10},
    {"", "--hidden", "N", "width inside the feed-forward block [8/3 of the width; megabyte: 4 times]",
     &Arguments::hidden, 1, 1 << 20},
    {"", "--ctx", "N", "tokens that the model sees at once [256; megabyte: 1024 bytes]", &Arguments::context, 2,
     1 << 16},
    {"", "--vocab", "N", "tokens in the vocabulary, which is learnt first [by the length of the text]",
     &Arguments::vocab, 1, 1 << 20},
    {"-z", "--tokenizer", "FILE", "this vocabulary instead, a SentencePiece .model", &Arguments::tokenizer},
    {"", "--patch", "N", "megabyte: bytes of a patch [4]", &Arguments::patch, 1, 1 << 12},
    {"", "--local-dim", "N", "megabyte: width inside a patch [3/4 of the width]", &Arguments::local_dim, 1, 1 << 16},
    {"", "--local-layers", "N", "megabyte: transformer blocks inside a patch [as --layers]", &Arguments::local_layers,
     1, 1 << 10},
    {"", "--local-hidden", "N", "megabyte: width inside their feed-forward blocks [4 times the local width]",
     &Arguments::local_hidden, 1, 1 << 20},
    {"", "--init", "FILE", "go on from this model (f32), with its shape and vocabulary", &Arguments::init},
    {"", "--instruct", "", "learn to write on command too: run story.bin --words dog,cake", &Arguments::instruct},
    {"", "--licence", "TEXT", "the text's licence, for run --info", &Arguments::licence},
    {"", "", "", "A LoRA adapter for --init instead: -o is a folder, as PEFT's, for export/convert --lora"},
    {"", "--lora-rank", "R", "its rank; the model itself stays as it is", &Arguments::lora_rank, 1, kMostRank},
    {"", "--lora-alpha", "A", "it counts A / R times [R]", &Arguments::lora_alpha, 1e-6, 1e6},
    {"", "--lora-targets", "LIST", "of q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj,lm_head [the first 7]",
     &Arguments::lora_targets},
    {"", "", "", "How to train"},
    {"", "--steps", "N", "steps [20 tokens or 60 bytes for each parameter, at most 20 times the text]",
     &Arguments::steps, 1, 1e9},
    {"", "--minutes", "M", "as many steps as this machine does in M minutes", &Arguments::minutes, 0.01, 1e6},
    {"", "--batch", "N", "windows of --ctx tokens in a step [16]", &Arguments::batch, 1, 65536},
    {"", "--lr", "RATE", "the highest learning rate [0.003 for width 128, less for wider ones]", &Arguments::rate, 1e-9,
     1e30},
    {"", "--decay", "D", "weight decay [0.1]", &Arguments::decay, 0, 10},
    {"-s", "--seed", "N", "of the first weights and of the order of the stories [1]", &Arguments::seed},
    {"", "", "", "To learn from a larger model too, which knows better what may follow (distillation)"},
    {"", "--teacher", "FILE", "that model, of any type; its vocabulary is used", &Arguments::teacher},
    {"", "--teacher-weight", "W", "how much it counts: 0 is nothing, 1 is all [0.5]", &Arguments::share, 0, 1},
    {"", "--temperature", "T", "that softens what it says [1]", &Arguments::temperature, 0.1, 100},
    {"", "", "", "While it runs"},
    {"", "--valid", "FILE", "a text to judge by [the last fiftieth of the stories, which is not trained on]",
     &Arguments::valid},
    {"", "--every", "N", "steps from one validation, sample and checkpoint to the next [a twentieth]",
     &Arguments::every, 1, 1e9},
    {"-i", "--prompt", "TEXT", "how the samples begin [Once upon a time]", &Arguments::prompt},
    {"", "--checkpoint", "FILE", "where to keep what --resume needs [OUTPUT.checkpoint]", &Arguments::checkpoint},
    {"", "--resume", "", "go on from the checkpoint, to the very model that a run without a break makes",
     &Arguments::resume},
    {"", "--threads", "N", "[one per CPU]; changes no bit", &Arguments::threads, 1, 256},
    {"", "--kernel", "NAME", "avx512, avx2 or portable [the best]; changes no bit", &Arguments::kernel},
    {"-h", "--help", "", "this text", &Arguments::help},
};

void print_help() {
  std::printf(
      "train: a language model from nothing but a text\n\n"
      "  models/train stories.txt -o story.bin                  picks everything, and says what\n"
      "  models/train stories.txt -o story.bin --minutes 10     as good as ten minutes make it\n"
      "  models/train stories.txt -o story.bin --resume         goes on after Ctrl-C\n"
      "  models/train stories.txt -o story.bin --arch megabyte  learns bytes, without a vocabulary\n"
      "  models/train letters.txt -o mine.bin --init story.bin  goes on from a model of type f32\n"
      "  models/train letters.txt -o letters --init story.bin --lora-rank 8; export/convert story.bin --lora letters "
      "\\\n"
      "    --type q8 -o mine.bin                                learns an adapter, and makes a model with it\n\n"
      "The text is UTF-8, one story after the other with a line <|endoftext|> between them; or just a text. The same\n"
      "text and options give the same model, bit for bit, on every machine.\n"
      "stdout is what the model writes on the way, stderr the rest. Exit: 0 done, 1 failed, 2 wrong usage, 130 "
      "interrupted.\n");
  print_options(kOptions);
}

bool is_one_of(const std::string& name, std::initializer_list<const char*> all) {
  return std::find(all.begin(), all.end(), name) != all.end();
}

// Options that one architecture has and the other has not.
void check_architecture(const Arguments& a, const std::vector<std::string>& given) {
  if (!is_one_of(a.architecture, {"llama", "megabyte"}))
    throw Failure{2, "--arch: expected llama or megabyte, found '" + a.architecture + "'"};
  const bool bytes = a.architecture == "megabyte";
  for (const std::string& name : given) {
    if (!bytes && !a.resume && is_one_of(name, {"--patch", "--local-dim", "--local-layers", "--local-hidden"}))
      throw Failure{2, name + ": is of patches, which a Llama has not; expected --arch megabyte too"};
    if (!bytes) continue;
    if (is_one_of(name, {"--vocab", "--tokenizer"}))
      throw Failure{2, name + ": --arch megabyte learns bytes, without a vocabulary; leave it out"};
    if (name == "--kv-heads") throw Failure{2, name + ": --arch megabyte has one for each head; leave it out"};
    if (is_one_of(name, {"--init", "--instruct", "--teacher"}) || name.rfind("--lora", 0) == 0)
      throw Failure{2, name + ": is for a Llama; leave it out, or --arch megabyte"};
  }
}

void check_lora_options(const Arguments& a, const std::vector<std::string>& given) {
  for (const std::string& name : given) {
    if (name.rfind("--lora", 0) == 0 && a.lora_rank == 0)
      throw Failure{2, name + ": is of an adapter; expected --lora-rank R too"};
    if (a.lora_rank > 0 && (name == "--type" || name == "--licence"))
      throw Failure{2, name + ": an adapter has none; leave it out, export/convert --lora makes a model of it"};
  }
  if (a.lora_rank > 0 && a.init.empty())
    throw Failure{2, "--lora-rank: expected --init MODEL too, the model (f32) to learn an adapter for"};
}

Arguments parse(int argc, char** argv) {
  Arguments a;
  const std::vector<std::string> given = parse_options(argc, argv, kOptions, "put all stories in one file", a);
  if (a.help) return a;
  if (a.model.empty()) throw Failure{2, "expected a text to learn from; see models/train --help"};
  if (a.output.empty()) throw Failure{2, "expected -o OUT.bin: the model file to write"};
  while (a.output.size() > 1 && a.output.back() == '/') a.output.pop_back();  // a folder's name
  if (a.type != "q4" && a.type != "q8" && a.type != "f32")
    throw Failure{2, "--type: expected q8, f32 or q4, found '" + a.type + "'"};
  if (a.steps && a.minutes > 0) throw Failure{2, "--steps, --minutes: expected one of them"};
  check_architecture(a, given);
  for (const std::string& name : given)
    for (const char* fixed : {"--arch",           "--dim",          "--layers",       "--heads",      "--kv-heads",
                              "--hidden",         "--ctx",          "--vocab",        "--tokenizer",  "--patch",
                              "--local-dim",      "--local-layers", "--local-hidden", "--init",       "--steps",
                              "--minutes",        "--batch",        "--lr",           "--decay",      "--seed",
                              "--every",          "--instruct",     "--lora-rank",    "--lora-alpha", "--lora-targets",
                              "--teacher-weight", "--temperature"})
      if (a.resume && name == fixed) throw Failure{2, name + ": with --resume it is what it was; leave it out"};
  for (const std::string& name : given)
    for (const char* shape : {"--dim", "--layers", "--heads", "--kv-heads", "--hidden", "--vocab", "--tokenizer"})
      if (!a.init.empty() && name == shape) throw Failure{2, name + ": with --init it is that model's; leave it out"};
  check_lora_options(a, given);
  for (const std::string& name : given) {
    if ((name == "--teacher-weight" || name == "--temperature") && a.teacher.empty())
      throw Failure{2, name + ": is of a teacher; expected --teacher MODEL too"};
    if (name == "--vocab" && !a.teacher.empty())
      throw Failure{2, "--vocab: with --teacher it is that model's; leave it out"};
  }
  if (!find_train_kernels(a.kernel.empty() ? nullptr : a.kernel.c_str()))
    throw Failure{2, "--kernel: expected one that this CPU has, found '" + a.kernel + "'"};
  if (a.context == 0) a.context = a.architecture == "megabyte" ? round_up(1024, a.patch ? a.patch : 4) : 256;
  if (a.checkpoint.empty()) a.checkpoint = a.output + ".checkpoint";
  if (a.threads == 0) a.threads = std::max(1, int(std::thread::hardware_concurrency()));
  return a;
}

std::string duration(double s) {
  char text[32];
  std::snprintf(text, sizeof text, s < 100 ? "%.0f s" : "%.0f min", s < 100 ? s : s / 60);
  return text;
}

// A text, cut into stories for training and for validation.
struct Texts {
  std::string bytes, valid_bytes, instructed;  // what the views point into
  std::vector<std::string_view> train, valid;
};

std::string read_stories(const std::string& path) {
  std::string text = read_all(path), why;
  if (!trainer_detail::check_text(text, why)) throw Failure{1, path + ": " + why};
  return text;
}

// What is held back to judge by: the last fiftieth of the stories, or of a text that is one story.
void hold_back(Texts& t) {
  if (t.train.size() > 1) {
    const size_t n = std::min<size_t>(std::max<size_t>(t.train.size() / 50, 1), 1000);
    t.valid.assign(t.train.end() - ptrdiff_t(n), t.train.end());
    t.train.resize(t.train.size() - n);
  } else {
    std::string_view& all = t.train[0];
    const size_t cut = all.find(' ', all.size() - all.size() / 50);
    if (cut != all.npos) t.valid = {all.substr(cut + 1)}, all = all.substr(0, cut);
  }
}

Texts read_texts(const Arguments& a) {
  Texts t;
  t.bytes = read_stories(a.model);
  t.train = split_stories(t.bytes);
  if (a.valid.empty()) {
    hold_back(t);
  } else {
    t.valid_bytes = read_stories(a.valid);
    t.valid = split_stories(t.valid_bytes);
  }
  return t;
}

// Puts an order in front of half of the stories to train on; the others stay as they are, since most stories are told
// without one.
void instruct(Texts& t, uint64_t seed) {
  t.instructed = instruct_stories(t.train, seed, 0.5);
  t.train = split_stories(t.instructed);
}

TokenText tokens_of(const std::vector<std::string_view>& stories, const Tokenizer& tokenizer) {
  TokenText text;
  for (std::string_view story : stories) {
    text.add(story, tokenizer);
    stop_if_interrupted();
  }
  return text;
}

TokenText bytes_of(const std::vector<std::string_view>& stories, const std::string& text, const std::string& path) {
  const size_t nul = text.find('\0');
  if (nul != text.npos)
    throw Failure{
        1, path + ": text: expected no byte 0, which stands for no byte at all in a MEGABYTE, found one at offset " +
               std::to_string(nul)};
  TokenText bytes;
  for (std::string_view story : stories) bytes.add_bytes(story);
  return bytes;
}

uint64_t hash_of(const TokenText& t) {
  return hash_bytes(t.ids.data(), t.ids.size() * sizeof(int)) ^
         hash_bytes(t.begins.data(), t.begins.size() * sizeof(size_t));
}

// A shape that a text of so many characters can fill.
struct Size {
  size_t characters;
  int dim, layers, vocab;
};
constexpr Size kSizes[] = {{0, 64, 3, 512},
                           {300000, 96, 4, 512},
                           {2000000, 128, 6, 1024},
                           {30000000, 256, 8, 4096},
                           {300000000, 512, 8, 8192}};

Size size_for(size_t characters) {
  Size best = kSizes[0];
  for (const Size& s : kSizes)
    if (characters >= s.characters) best = s;
  return best;
}

// The heads of a width, and what to say about a field that is not as it must be.
int heads_for(const Arguments& a, int dim) {
  const int heads = a.heads ? a.heads : std::max(1, dim / (dim < 256 ? 16 : 32));
  if (dim % heads || dim / heads % 2)
    throw Failure{2, "--dim: expected an even number for each of " + std::to_string(heads) + " heads, found " +
                         std::to_string(dim) + "; " + std::to_string(round_up(dim, 16 * (a.heads ? a.heads : 1))) +
                         " would do"};
  return heads;
}

template <class Config> void check_shape(const Config& c) {
  const std::map<std::string, const char*> names = {{"hidden_dim", "--hidden"},
                                                    {"n_layers", "--layers"},
                                                    {"n_heads", "--heads"},
                                                    {"n_kv_heads", "--kv-heads"},
                                                    {"head_dim", "--dim / --heads"},
                                                    {"local dim", "--local-dim"},
                                                    {"local hidden_dim", "--local-hidden"},
                                                    {"local n_layers", "--local-layers"},
                                                    {"patch_size", "--patch"},
                                                    {"patches", "--ctx / --patch"}};
  std::string why;
  const bool good = check_config(c, [&](const char* field, const std::string& expected, const std::string& found) {
    const auto name = names.find(field);
    return why = (name == names.end() ? field : name->second) + (": expected " + expected) + ", found " + found, false;
  });
  if (!good) throw Failure{2, why};
}

Config shape(const Arguments& a, const Size& size, int vocab_size) {
  Config c;
  c.dim = a.dim ? a.dim : size.dim;
  c.n_layers = a.layers ? a.layers : size.layers;
  c.n_heads = heads_for(a, c.dim);
  c.n_kv_heads = a.kv_heads ? a.kv_heads : c.n_heads % 2 ? c.n_heads : c.n_heads / 2;
  c.hidden_dim = a.hidden ? a.hidden : int((int64_t(c.dim) * 8 / 3 + 8) / 16 * 16);
  c.head_dim = c.dim / c.n_heads;
  c.vocab_size = vocab_size, c.max_seq_len = a.context, c.tied = true;
  check_shape(c);
  return c;
}

// A MEGABYTE about as large as the Llama for the same text: half of its layers in each stage, which are twice as large
// where all of the heads have keys and values of their own and the feed-forward block is 4 times as wide.
MegabyteConfig megabyte_shape(const Arguments& a, const Size& size) {
  MegabyteConfig c;
  const int layers = (size.layers + 1) / 2, patch = a.patch ? a.patch : 4;
  c.global.dim = a.dim ? a.dim : size.dim;
  c.global.n_layers = a.layers ? a.layers : layers;
  c.local.dim = a.local_dim ? a.local_dim : std::max(1, c.global.dim * 3 / 4);
  c.local.n_layers = a.local_layers ? a.local_layers : c.global.n_layers;
  c.global.hidden_dim = a.hidden ? a.hidden : 4 * c.global.dim;
  c.local.hidden_dim = a.local_hidden ? a.local_hidden : 4 * c.local.dim;
  c.n_heads = heads_for(a, c.global.dim), c.head_dim = c.global.dim / c.n_heads;
  if (a.context % patch)
    throw Failure{2, "--ctx: expected a multiple of the " + std::to_string(patch) + " bytes of a --patch, found " +
                         std::to_string(a.context)};
  c.patch_size = patch, c.patches = a.context / patch, c.rotary = true;
  check_shape(c);
  return c;
}

// The tokenizer as a model file carries it: that of --init, of --tokenizer, of the teacher, or a new one for the text.
std::string tokenizer_for(const Arguments& a, const Texts& texts, const Model& init, const Model* teacher) {
  if (a.architecture == "megabyte") return Tokenizer::to_blob(byte_vocabulary());
  if (!a.init.empty()) return std::string(init.tokenizer_bytes());
  if (a.tokenizer.empty() && teacher) return std::string(teacher->tokenizer_bytes());
  Tokenizer::Vocabulary v;
  std::string error;
  if (!a.tokenizer.empty()) {
    if (!Tokenizer::parse_sentencepiece(read_all(a.tokenizer), v, error))
      throw Failure{1, a.tokenizer + ": " + error};
    return Tokenizer::to_blob(v);
  }
  const std::string& text = texts.instructed.empty() ? texts.bytes : texts.instructed;
  int size = a.vocab ? a.vocab : size_for(texts.bytes.size()).vocab;
  while (!train_vocabulary(text, size, v, error)) {  // a short text may not give as many pieces
    if (a.vocab || size < 260) throw Failure{1, a.model + ": " + error};
    size -= size / 8;
  }
  std::fprintf(stderr, "train: learnt a vocabulary of %d tokens\n", size);
  return Tokenizer::to_blob(v);
}

// A line that is written over on a terminal; elsewhere one every ten seconds.
class ProgressLine {
 public:
  void show(const std::string& text) {
    const bool terminal = isatty(2);
    if (seconds() - shown_ < (terminal ? 0.2 : 10)) return;
    shown_ = seconds();
    std::fprintf(stderr, terminal ? "\r%s\033[K" : "train: %s\n", text.c_str());
    open_ = terminal;
  }
  void clear() {
    if (open_) std::fprintf(stderr, "\r\033[K");
    open_ = false;
  }

 private:
  double shown_ = seconds();
  bool open_ = false;
};

// One training, from its texts to its model file.
class Training {
 public:
  explicit Training(const Arguments& a) : a_(a), start_(seconds()) {}

  void run() {
    Texts texts = read_texts(a_);
    a_.resume ? resume(texts) : begin(texts);
    if (std::string error; plan_.lora.rank > 0 && !check_adapter_folder(a_.output, error)) throw Failure{1, error};
    if (!a_.resume) checkpoint(true);  // a disk that is full, or a folder that is not there, shows now
    open_log(a_.resume ? progress_.step : -1);
    while (progress_.step < plan_.steps) {
      step();
      const bool judge = progress_.step % plan_.every == 0 || progress_.step == plan_.steps;
      if (judge || progress_.step % std::max<int64_t>(1, plan_.every / 10) == 0) record(judge);
      if (!judge) continue;
      sample();
      checkpoint(false);
    }
    if (progress_.judged != progress_.step) record(true);  // it was stopped just then
    write();
  }

 private:
  void begin(Texts& texts) {
    std::string error;
    Model init;
    if (!a_.init.empty() && !init.open(a_.init.c_str())) throw Failure{1, init.error};
    plan_.seed = uint64_t(number("--seed", a_.seed, 0, 9e15, true));
    plan_.instruct = a_.instruct;
    if (plan_.instruct) instruct(texts, plan_.seed);
    plan_.architecture = a_.architecture == "megabyte" ? kMegabyte : kLlama;
    if (!a_.teacher.empty()) open_teacher();
    blob_ = tokenizer_for(a_, texts, init, teacher_ ? &teacher_->model() : nullptr);
    open_texts(texts);
    if (bytes())
      plan_.megabyte = megabyte_shape(a_, size_for(texts.bytes.size()));
    else
      plan_.config = a_.init.empty() ? shape(a_, size_for(texts.bytes.size()), tokenizer_.size()) : init.config;
    plan_.context = a_.context, plan_.batch = a_.batch;
    if (!bytes() && plan_.context > plan_.config.max_seq_len)
      throw Failure{2, "--ctx: expected at most the model's " + std::to_string(plan_.config.max_seq_len) + ", found " +
                           std::to_string(plan_.context)};
    if (a_.lora_rank > 0) plan_lora(init);
    if (teacher_) plan_.distill = {a_.share, a_.temperature, teacher_->model().checksum()};
    plan_.adam.decay = double(a_.decay);
    const int dim = bytes() ? plan_.megabyte.global.dim : plan_.config.dim;
    plan_.rate = a_.rate > 0 ? double(a_.rate)
                             : 0.003 * std::sqrt(128.0 / dim) * (a_.init.empty() || plan_.lora.rank > 0 ? 1 : 0.1);
    plan_.text_hash = hash_of(train_), plan_.valid_hash = hash_of(valid_);
    make();
    if (megabyte_)
      initialize(*megabyte_, plan_.seed);
    else if (a_.init.empty())
      initialize(*llama_, plan_.seed);
    else if (!load_weights(init, a_.init, *llama_, error))
      throw Failure{1, error};
    initialize(model_->adapters, plan_.seed);
    trainer_->repack();
    plan_steps();
  }

  void open_teacher() {
    teacher_ = std::make_unique<ModelTeacher>();
    if (!teacher_->open(a_.teacher)) throw Failure{1, teacher_->error};
  }

  void resume_teacher() {
    if (!plan_.distill.teacher) throw Failure{2, "--teacher: the training began without one; leave it out"};
    if (a_.teacher.empty()) throw Failure{2, "--teacher: the training began with one; give the same"};
    open_teacher();
    if (teacher_->model().checksum() != plan_.distill.teacher)
      throw Failure{1, a_.teacher + ": expected the teacher that the training began with, found another"};
  }

  // Whether the teacher speaks of the same tokens, and hears as many.
  void check_teacher() const {
    const Model& m = teacher_->model();
    if (m.tokenizer_bytes() != blob_ || m.config.vocab_size != plan_.config.vocab_size)
      throw Failure{1,
                    a_.teacher +
                        ": expected a teacher with the vocabulary of the model that it teaches, found "
                        "another one" +
                        (a_.init.empty() && a_.tokenizer.empty() ? "" : "; without --init and -z it is used for both")};
    if (plan_.context > m.config.max_seq_len)
      throw Failure{2, "--ctx: expected at most the teacher's " + std::to_string(m.config.max_seq_len) + ", found " +
                           std::to_string(plan_.context)};
  }

  void plan_lora(const Model& init) {
    LoraPlan& lora = plan_.lora;
    std::string error;
    lora.rank = a_.lora_rank, lora.alpha = a_.lora_alpha > 0 ? a_.lora_alpha : float(a_.lora_rank);
    if (!parse_lora_targets(a_.lora_targets, lora.targets, error)) throw Failure{2, "--lora-targets: " + error};
    if (!check_lora(init.config, lora, error)) throw Failure{2, error};
    if (plan_.instruct && init.provenance().find(kTakesInstructions) == std::string_view::npos)
      throw Failure{2,
                    "--instruct: " + a_.init + " does not know instructions, and an adapter cannot say that it does"};
  }

  void resume(Texts& texts) {
    CheckpointFile file;
    std::string error;
    if (!file.read(a_.checkpoint, error)) throw Failure{1, error};
    blob_ = file.tokenizer, plan_ = file.plan, progress_ = file.progress;
    if (plan_.instruct) instruct(texts, plan_.seed);
    open_texts(texts);
    if (hash_of(train_) != plan_.text_hash || hash_of(valid_) != plan_.valid_hash)
      throw Failure{1, a_.checkpoint +
                           ": expected the texts that the training began with, found others; give the same " +
                           (a_.valid.empty() ? "text" : "text and --valid")};
    if (!a_.teacher.empty() || (plan_.distill.teacher && progress_.step < plan_.steps)) resume_teacher();
    make();
    file.restore(*model_, *trainer_);
    stream_->seek(progress_.epoch, progress_.index);
    std::fprintf(stderr, "train: going on after step %lld of %lld\n", static_cast<long long>(progress_.step),
                 static_cast<long long>(plan_.steps));
  }

  bool bytes() const { return plan_.architecture == kMegabyte; }
  const char* unit() const { return bytes() ? "byte" : "token"; }
  int vocab_size() const { return bytes() ? kByteValues : plan_.config.vocab_size; }
  int end_id() const { return bytes() ? kEndByte : tokenizer_.eos(); }

  void open_texts(const Texts& texts) {
    if (!tokenizer_.load(blob_)) throw Failure{1, tokenizer_.error};
    if (bytes())
      train_ = bytes_of(texts.train, texts.bytes, a_.model),
      valid_ = bytes_of(texts.valid, texts.valid_bytes, a_.valid);
    else
      train_ = tokens_of(texts.train, tokenizer_), valid_ = tokens_of(texts.valid, tokenizer_);
  }

  // Everything that the plan decides.
  void make() {
    if (train_.ids.size() <= size_t(plan_.context))
      throw Failure{1, a_.model + ": expected more " + unit() + "s than --ctx " + std::to_string(plan_.context) +
                           ", found " + std::to_string(train_.ids.size()) + "; give a longer text or a smaller --ctx"};
    if (teacher_) check_teacher();
    describe();
    if (teacher_ && !teacher_->start(plan_.distill, a_.threads, plan_.context)) throw Failure{1, teacher_->error};
    if (bytes())
      model_.reset(megabyte_ = new MegabyteWeights(plan_.megabyte));
    else
      model_.reset(llama_ = new TrainModel(plan_.config));
    if (plan_.lora.rank > 0) model_->adapt(adapters_for(plan_.config, plan_.lora));
    trainer_ =
        std::make_unique<Trainer>(*model_, a_.threads, plan_.context,
                                  *find_train_kernels(a_.kernel.empty() ? nullptr : a_.kernel.c_str()), teacher_.get());
    trainer_->cancelled = [] { return interrupted != 0; };
    stream_ = std::make_unique<WindowStream>(train_, plan_.context, plan_.seed);
    judged_ = judging_windows(valid_, plan_.context);
  }

  void describe() const {
    std::string counted;
    char text[200];
    if (!bytes()) {
      std::snprintf(text, sizeof text, ", %zu tokens (%.2f characters each)", train_.ids.size(),
                    double(train_.bytes) / double(train_.ids.size()));
      counted = text;
    }
    std::fprintf(stderr, "train: text: %zu stories, %.2f MB%s; to judge by: %zu stories, %zu %ss\n",
                 train_.begins.size(), double(train_.bytes) / 1e6, counted.c_str(), valid_.begins.size(),
                 bytes() ? valid_.bytes : valid_.ids.size(), unit());
    const Config& c = plan_.config;
    const MegabyteConfig& m = plan_.megabyte;
    if (bytes())
      std::snprintf(text, sizeof text,
                    "--arch megabyte --patch %d --dim %d --local-dim %d --layers %d --local-layers %d --heads %d "
                    "--hidden %d --local-hidden %d --ctx %d",
                    m.patch_size, m.global.dim, m.local.dim, m.global.n_layers, m.local.n_layers, m.n_heads,
                    m.global.hidden_dim, m.local.hidden_dim, plan_.context);
    else
      std::snprintf(text, sizeof text, "--dim %d --layers %d --heads %d --kv-heads %d --hidden %d --vocab %d --ctx %d",
                    c.dim, c.n_layers, c.n_heads, c.n_kv_heads, c.hidden_dim, c.vocab_size, plan_.context);
    const std::vector<Parameter> all = parameters_of(plan_);
    std::fprintf(stderr, "train: model: %.2f M parameters: %s\n", double(count_parameters(all)) / 1e6, text);
    const Adapters adapters = adapters_for(c, plan_.lora);
    if (adapters.rank > 0)
      std::fprintf(stderr, "train: adapter: %.3f M parameters, rank %d, alpha %g; the model stays as it is\n",
                   double(count_parameters(adapters.parameters)) / 1e6, adapters.rank, double(plan_.lora.alpha));
    const size_t pass = bytes() ? MegabytePass::bytes(m, plan_.context)
                                : LlamaPass::bytes(c, plan_.context, adapters.rank, bool(teacher_));
    size_t memory = Trainer::memory_bytes(all, adapters, pass, a_.threads, plan_.batch);
    if (teacher_) {
      memory += teacher_->memory_bytes(a_.threads, plan_.context);
      std::fprintf(stderr, "train: teacher: %.2f M parameters, --teacher-weight %g --temperature %g\n",
                   double(count_parameters(teacher_->model().config)) / 1e6, double(plan_.distill.share),
                   double(plan_.distill.temperature));
    }
    std::fprintf(stderr, "train: memory: %.0f MB, %d threads\n", double(memory) / 1e6, a_.threads);
  }

  int64_t tokens_a_step() const { return int64_t(plan_.batch) * plan_.context; }

  std::vector<Window> next_batch(WindowStream& stream) const {
    std::vector<Window> batch;
    for (int i = 0; i < plan_.batch; i++) batch.push_back(stream.next());
    return batch;
  }

  // Seconds of a step and of a validation, by doing some; weights stay as they are.
  std::pair<double, double> measure() {
    WindowStream stream(train_, plan_.context, plan_.seed);
    const double start = seconds();
    trainer_->evaluate(judged_);
    const double evaluated = seconds();
    int done = 0;
    for (; done < 2 || (seconds() - evaluated < 3 && done < 100); done++) {
      trainer_->learn(next_batch(stream));
      stop_if_interrupted();
    }
    return {(seconds() - evaluated) / done, evaluated - start};
  }

  void plan_steps() {
    const auto [step, validation] = measure();
    // A byte is about a third of a token.
    const double wanted =
        20.0 * std::min((bytes() ? 3.0 : 1.0) * double(count_parameters(model_->learned_parameters())),
                        double(train_.ids.size()));
    const double expected = a_.steps         ? a_.steps * step
                            : a_.minutes > 0 ? double(a_.minutes) * 60 - (seconds() - start_)
                                             : wanted / double(tokens_a_step()) * step;
    // Twenty validations, or as many as take a tenth of the time.
    const double validations = std::floor(std::max(1.0, std::min(20.0, 0.1 * expected / std::max(validation, 1e-9))));
    const double budget = expected - validations * validation;
    plan_.steps = a_.steps         ? a_.steps
                  : a_.minutes > 0 ? int64_t(std::max(1.0, budget / (step * 1.02)))
                                   : std::max<int64_t>(1, int64_t(wanted / double(tokens_a_step())));
    plan_.warmup = std::min<int64_t>(200, plan_.steps / 20);
    plan_.every = a_.every ? a_.every : std::max<int64_t>(1, int64_t(std::ceil(double(plan_.steps) / validations)));
    const double tokens = double(plan_.steps * tokens_a_step());
    std::fprintf(stderr,
                 "train: plan: --steps %lld of %lld %ss (%.1f times the text), --lr %g --decay %g --batch %d --seed "
                 "%llu; %.0f %ss/s, about %s\n",
                 static_cast<long long>(plan_.steps), static_cast<long long>(tokens_a_step()), unit(),
                 tokens / double(train_.ids.size()), plan_.rate, plan_.adam.decay, plan_.batch,
                 static_cast<unsigned long long>(plan_.seed), double(tokens_a_step()) / step, unit(),
                 duration(double(plan_.steps) * step + validations * validation).c_str());
  }

  void step() {
    const double begin = seconds();
    const double loss = trainer_->learn(next_batch(*stream_));
    if (interrupted) stop();
    if (teacher_ && !teacher_->failure().empty()) throw Failure{1, a_.teacher + ": " + teacher_->failure()};
    if (!std::isfinite(loss) || !std::isfinite(trainer_->gradient_norm()))
      throw Failure{1, "the loss is no finite number after step " + std::to_string(progress_.step) +
                           "; the checkpoint of step " + std::to_string(saved_) + " stays: " + a_.checkpoint +
                           "; begin again with a --lr below " + std::to_string(plan_.rate)};
    const double rate = learning_rate(plan_.rate, progress_.step, plan_.warmup, plan_.steps);
    progress_.step++;
    trainer_->update(plan_.adam, rate, progress_.step);
    progress_.epoch = stream_->epoch(), progress_.index = stream_->index();
    progress_.train += loss, progress_.counted++;
    const double took = seconds() - begin;
    progress_.seconds += took;
    recent_ = recent_ > 0 ? recent_ + 0.02 * (took - recent_) : took;
    shown_loss_ = shown_loss_ > 0 ? shown_loss_ + 0.05 * (loss - shown_loss_) : loss;
    char line[160];
    std::snprintf(line, sizeof line, "step %lld of %lld, loss %.3f, rate %.5f, %.0f %ss/s, %s left",
                  static_cast<long long>(progress_.step), static_cast<long long>(plan_.steps), shown_loss_, rate,
                  double(tokens_a_step()) / recent_, unit(),
                  duration(recent_ * double(plan_.steps - progress_.step)).c_str());
    line_.show(line);
  }

  [[noreturn]] void stop() {
    line_.clear();
    checkpoint(false);
    throw Failure{130, "interrupted after step " + std::to_string(progress_.step) + " of " +
                           std::to_string(plan_.steps) + "; the same text, -o and --resume go on from there"};
  }

  // The table and the chart of the losses, beside the model: story.loss.csv and story.loss.svg.
  void open_log(int64_t resume_step) {
    const size_t dot = a_.output.rfind(".bin");
    const std::string base =
        a_.output.substr(0, dot != std::string::npos && dot + 4 == a_.output.size() ? dot : std::string::npos) +
        ".loss";
    std::string error;
    if (!log_.open(base + ".csv", base + ".svg", base_name(a_.model) + " to " + base_name(a_.output), resume_step,
                   error))
      throw Failure{1, error};
  }

  // A line of the table; with `judge` also what the validation text says.
  void record(bool judge) {
    LossRow row;
    row.step = progress_.step, row.tokens = progress_.step * tokens_a_step(), row.seconds = progress_.seconds;
    if (progress_.counted) row.train = progress_.train / double(progress_.counted);
    row.learning_rate = learning_rate(plan_.rate, progress_.step - 1, plan_.warmup, plan_.steps);
    if (judge) validate(row);
    progress_.train = 0, progress_.counted = 0;
    std::string error;
    if (!log_.add(row, error) || (judge && !log_.draw(error))) warn(error);
  }

  void warn(const std::string& error) {
    line_.clear();
    std::fprintf(stderr, "train: %s; training goes on\n", error.c_str());
  }

  void validate(LossRow& row) {
    const double start = seconds(), sum = trainer_->evaluate(judged_);
    if (interrupted) stop();
    progress_.judged = progress_.step;
    if (judged_.empty()) return;
    progress_.seconds += seconds() - start;
    row.validation = sum / double(count_targets(judged_));
    row.bits_per_character = progress_.bits = sum / 0.69314718055994531 / double(valid_.bytes);
    line_.clear();
    std::fprintf(stderr,
                 "train: step %lld: validation %.4f nats a %s, %.4f bits a character (byte of UTF-8); training %.4f\n",
                 static_cast<long long>(progress_.step), row.validation, unit(), row.bits_per_character, row.train);
  }

  // Some words of its own, on stdout.
  void sample() {
    write_sample(a_.prompt);
    if (plan_.instruct) write_sample(instruction_prompt({{"dog", "cake"}, {}, ""}));
  }

  void write_sample(const std::string& prompt) {
    const size_t most = bytes() ? 200 : 80;
    Sampler pick({0.8f, 0.9f, plan_.seed});
    std::vector<int> ids;
    if (bytes()) {
      ids.push_back(kStartId);
      for (const char byte : prompt) ids.push_back(uint8_t(byte));
    } else {
      ids = tokenizer_.encode(prompt);
    }
    if (ids.empty()) ids.push_back(std::max(0, tokenizer_.eos()));
    if (ids.size() > size_t(plan_.context)) ids.resize(size_t(plan_.context));
    for (size_t end = std::min(ids.size() + most, size_t(plan_.context)); ids.size() < end;) {
      const int id = pick(trainer_->next_logits(ids), vocab_size());
      if (id == end_id()) break;
      ids.push_back(id);
    }
    if (bytes()) ids.erase(ids.begin());  // kStartId is no byte
    std::printf("[step %lld] %s\n", static_cast<long long>(progress_.step), tokenizer_.decode(ids).c_str());
    std::fflush(stdout);
  }

  // must: a failure ends the program; else it is told, and training goes on.
  void checkpoint(bool must) {
    std::string error;
    if (write_checkpoint(a_.checkpoint, plan_, progress_, blob_, *model_, *trainer_, error)) {
      saved_ = progress_.step;
      return;
    }
    if (must) throw Failure{1, error};
    warn(error + "; the checkpoint of step " + std::to_string(saved_) + " stays");
  }

  void write() {
    plan_.lora.rank > 0 ? write_lora() : write_model();
    std::fprintf(stderr, "train: %s keeps the training%s; delete it if you want neither\n", a_.checkpoint.c_str(),
                 plan_.lora.rank > 0 ? ": --resume writes the folder again"
                                     : ": --resume --type f32 writes the model as another type");
  }

  void write_lora() {
    std::string error;
    if (!write_adapter(a_.output, plan_.lora, model_->adapters, error))
      throw Failure{1, error + "; nothing is lost: --resume writes it again"};
    std::fprintf(stderr,
                 "%s: an adapter, after %s of training; try: export/convert %s --lora %s --type q8 -o OUT.bin\n",
                 a_.output.c_str(), duration(progress_.seconds).c_str(), a_.init.empty() ? "BASE" : a_.init.c_str(),
                 a_.output.c_str());
  }

  void write_model() {
    ModelParts parts;
    parts.config = plan_.config;
    if (bytes()) set_architecture(plan_.megabyte, parts);
    parts.type = a_.type == "f32" ? Type::f32 : a_.type == "q8" ? Type::q8 : Type::q4;
    if (!bytes()) parts.tokenizer = blob_;
    parts.threads = a_.threads;
    if (end_id() >= 0) parts.chat.stop_ids = {end_id()};
    if (bytes()) parts.chat.stop_ids.push_back(0);  // is never learnt
    char how[200];
    std::snprintf(how, sizeof how,
                  "training: %lld steps of %lld %ss, seed %llu; %.4f bits a character on %zu %ss it has not seen\n",
                  static_cast<long long>(plan_.steps), static_cast<long long>(tokens_a_step()), unit(),
                  static_cast<unsigned long long>(plan_.seed), progress_.bits, count_targets(judged_), unit());
    parts.provenance = "source: trained on " + base_name(a_.model) +
                       (plan_.distill.teacher ? ", and by a teacher" : "") + "\n" +
                       (a_.licence.empty() ? "" : "licence: " + a_.licence + "\n") + "weights: " + a_.type + "\n" +
                       how + (plan_.instruct ? kTakesInstructions : "");
    parts.self_test_ids =
        self_test_prompt(vocab_size(), tokenizer_.bos(),
                         bytes() ? size_t(std::min(plan_.context, 2 * plan_.megabyte.patch_size + 3)) : 8);
    ModelWriter writer;
    if (!writer.write(a_.output, parts, rows_of_model(*model_, !bytes() && plan_.config.tied), {}))
      throw Failure{1, writer.error + "; nothing is lost: make room, and --resume writes it again"};
    std::fprintf(stderr, "%s: %s, %.2f MB, after %s of training; try: ./run %s -i \"%s\"\n", a_.output.c_str(),
                 a_.type.c_str(), double(writer.file_bytes()) / 1e6, duration(progress_.seconds).c_str(),
                 a_.output.c_str(), a_.prompt.c_str());
  }

  const Arguments& a_;
  const double start_;
  TrainPlan plan_ = {};
  TrainProgress progress_;
  std::string blob_;
  Tokenizer tokenizer_;
  TokenText train_, valid_;
  std::vector<Window> judged_;
  std::unique_ptr<ModelTeacher> teacher_;
  std::unique_ptr<LearnedWeights> model_;
  TrainModel* llama_ = nullptr;  // the same, where it is one
  MegabyteWeights* megabyte_ = nullptr;
  std::unique_ptr<Trainer> trainer_;
  std::unique_ptr<WindowStream> stream_;
  ProgressLine line_;
  LossLog log_;
  int64_t saved_ = 0;                   // step of the checkpoint on disk
  double recent_ = 0, shown_loss_ = 0;  // seconds a step, loss: running means
};

}  // namespace

int main(int argc, char** argv) {
  return guarded("train", [&] {
    const Arguments a = parse(argc, argv);
    if (a.help) return print_help();
    Training(a).run();
  });
}
