// cli.hpp: the command line of run.cpp, which includes it last. It puts the engine and the tokenizer together: what it
// reads, what it prints, and what it says when something is wrong. No part of the lesson and of no use to a library.
#ifndef POCKET_CLI_HPP
#define POCKET_CLI_HPP

#include <sys/resource.h>

#include <numeric>
#include <utility>

#include "../../export/engine.hpp"
#include "../../export/program.hpp"
#include "../../models/instruction.hpp"
#include "../../export/json_writer.hpp"
#include "../../models/megabyte/megabyte.hpp"

namespace pocket::cli {

struct Arguments {
  std::string model, prompt, file, ids, system, tokenizer, mode = "generate", kernel, logits, perplexity, encode;
  std::string save, resume;
  std::string words, features, summary;
  std::string chat_template;
  std::vector<std::string> stop;
  int n = -1, top_k = 0, threads = 0, context = 0, batch = 256, top = 0;
  float temperature = 0.8f, top_p = 0.9f, min_p = 0, repeat_penalty = 1;
  std::string seed, kv = "auto";
  bool quiet = false, info = false, self_test = false, kernels = false, help = false, version = false;
  bool lookup = false, json = false, man = false;
  bool has_prompt = false, has_encode = false, instructed = false;
};

inline const Option<Arguments> kOptions[] = {
    {"", "", "model.bin -i \"It was\" -n 100 --stop \"The end\"", "What to say"},
    {"-i", "--prompt", "TEXT", "go on with this text; in chat, the first question", &Arguments::prompt},
    {"-f", "--file", "FILE", "take the prompt from a file, - for standard input", &Arguments::file},
    {"", "--words", "dog,cake,sad", "a story with these words, of a model that writes on command", &Arguments::words},
    {"", "--features", "LIST", "a story with these: Dialogue, Moral, Sad ending", &Arguments::features},
    {"", "--summary", "SENTENCE", "a story in which this happens", &Arguments::summary},
    {"-m", "--mode", "MODE", "generate (go on with a text) or chat (answer, line by line; /help there)",
     &Arguments::mode},
    {"-y", "--system", "TEXT", "the system prompt of a chat", &Arguments::system},
    {"", "--template", "NAME", "a chat's layout: zephyr, chatml, llama-2, llama-3, alpaca, vicuna, vicuna-lines, plain",
     &Arguments::chat_template},
    {"-n", "--tokens", "N", "at most so many new tokens; 0: until the context is full [256; chat 0]", &Arguments::n, 0,
     1e9},
    {"", "--stop", "TEXT", "end before this text; may be given several times", &Arguments::stop},
    {"", "", "model.bin --resume story.session -n 100 --save story.session", "To go on another time"},
    {"", "--save", "FILE", "at the end of the text, or at Ctrl-C, keep all that is needed to go on", &Arguments::save},
    {"", "--resume", "FILE", "go on where --save was; prints what is new; a prompt, if given, comes next",
     &Arguments::resume},
    {"", "", "model.bin -i \"The sea\" -t 1.2 --min-p 0.1 -s 7", "How to choose the next token"},
    {"-t", "--temperature", "T", "0: always the likeliest; 1: as the model learnt it [0.8]", &Arguments::temperature, 0,
     100},
    {"-p", "--top-p", "P", "among the likeliest that together reach P; 1: all [0.9]", &Arguments::top_p, 0, 1},
    {"-k", "--top-k", "K", "among the K likeliest; 0: all [0]", &Arguments::top_k, 0, 1e9},
    {"", "--min-p", "P", "among those at least P times as likely as the likeliest [0]", &Arguments::min_p, 0, 1},
    {"-r", "--repeat-penalty", "R", "make the last 64 tokens less likely; 1: off, 1.1: a little [1]",
     &Arguments::repeat_penalty, 0.01, 100},
    {"-s", "--seed", "N", "the same seed tells the same text, on every machine [the time]", &Arguments::seed},
    {"", "", "model.bin -f letter.txt --lookup --threads 4", "How to run"},
    {"", "--lookup", "", "guess from the text so far: the same text, sooner where it repeats itself",
     &Arguments::lookup},
    {"", "--threads", "N", "[one per CPU]", &Arguments::threads, 1, 256},
    {"", "--ctx", "N", "positions to make room for [what the model was trained for]", &Arguments::context, 1, 1 << 22},
    {"", "--kv", "TYPE", "keep keys and values as q8, f32 or auto (f32 for f32 models) [auto]", &Arguments::kv},
    {"", "--kernel", "NAME", "one of --kernels [the first]; all give the same bits", &Arguments::kernel},
    {"-z", "--tokenizer", "FILE", "a SentencePiece .model instead of the model file's own", &Arguments::tokenizer},
    {"", "", "model.bin -i \"2 + 2 =\" -n 3 -t 0 --top 5 --json 2> figures.json", "What to tell, on stderr"},
    {"", "--top", "N", "of each token the N likeliest, with probabilities, a line each; with --json in there",
     &Arguments::top, 0, 1000},
    {"", "--json", "", "the figures as one JSON object, instead of the line at the end", &Arguments::json},
    {"-q", "--quiet", "", "no line of figures at the end", &Arguments::quiet},
    {"", "", "model.bin --info --ctx 2048", "Instead of a text"},
    {"", "--info", "", "what is in the file, and the memory that this context will take", &Arguments::info},
    {"", "--selftest", "", "check every byte of the tensors, and the file's own test of this machine",
     &Arguments::self_test},
    {"", "--perplexity", "FILE", "how well the model foresees a text (windows of 512 tokens)", &Arguments::perplexity},
    {"", "--encode", "TEXT", "print the token ids of a text", &Arguments::encode},
    {"", "--kernels", "", "the kernel sets that this CPU can run, best first", &Arguments::kernels},
    {"-h", "--help", "", "this text", &Arguments::help},
    {"", "--man", "", "the same as a man page, in troff: run --man | man -l -", &Arguments::man},
    {"", "--version", "", "of this program, and of the model files that it reads", &Arguments::version},
    {"", "", "model.bin --ids 1,306,4658 --logits logits.f32", "For tests and scripts"},
    {"", "--ids", "1,306,...", "the prompt as token ids, nothing added", &Arguments::ids},
    {"", "--logits", "FILE", "write the prompt's logits, float32 (tokens, vocab_size), and stop", &Arguments::logits},
    {"", "--batch", "N", "prompt tokens per forward [256]; does not change the text", &Arguments::batch, 1, 1e9},
};

inline constexpr const char* kExamples[][2] = {
    {"model.bin -i \"Once upon a time\"", "go on with a text"},
    {"model.bin -m chat", "talk; /help there lists what else it can do"},
    {"model.bin -i \"2 + 2 =\" -t 0 -n 5", "the likeliest five tokens"},
    {"model.bin -f letter.txt -n 100 -q", "go on with a file, and print only the text"},
    {"model.bin --info", "what it is, and what memory it takes"},
};
inline constexpr const char* kNotes =
    "Without a model it is models/stories.bin, which comes with it, is small, and tells stories.\n"
    "models/get fetches larger ones; export/convert makes a model.bin from a checkpoint, models/train from a text.\n"
    "stdout is the text, stderr the rest. Exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted.\n";

inline void print_help() {
  std::printf("run: a language model on a CPU\n\n");
  for (const auto& [arguments, what] : kExamples) std::printf("  run %-38s %s\n", arguments, what);
  std::printf("\n%s", kNotes);
  print_options(kOptions, "run");
}

inline void print_man() {
  std::printf(".TH POCKETLLAMA 1 \"\" \"pocketllama %s\"\n.SH NAME\npocketllama \\- a language model on a CPU\n",
              kVersion);
  std::printf(".SH SYNOPSIS\n.B pocketllama\n.I model.bin\n[options]\n.SH DESCRIPTION\n%s", man_text(kNotes).c_str());
  print_man_options(kOptions, "pocketllama");
  std::printf(".SH EXAMPLES\n");
  for (const auto& [arguments, what] : kExamples) {
    std::printf(".PP\n%s:\n", man_text(what).c_str());
    print_man_example("pocketllama " + std::string(arguments));
  }
}

// Names of an option's list, without the spaces around them.
inline std::vector<std::string> names(const char* option, const std::string& list) {
  std::vector<std::string> out;
  for (const std::string& part : list.empty() ? std::vector<std::string>() : split(list)) {
    const size_t first = part.find_first_not_of(' ');
    if (first == std::string::npos) throw Failure{2, std::string(option) + ": expected names between the commas"};
    out.push_back(part.substr(first, part.find_last_not_of(' ') + 1 - first));
  }
  return out;
}

// The prompt that --words, --features and --summary stand for.
inline void set_instruction(Arguments& a) {
  const Instruction wanted = {names("--words", a.words), names("--features", a.features), a.summary};
  a.instructed = !wanted.empty();
  if (!a.instructed) return;
  for (const std::string& f : wanted.features)
    if (std::find(std::begin(kFeatures), std::end(kFeatures), f) == std::end(kFeatures))
      throw Failure{2, "--features: expected some of " + feature_names() + ", found '" + f + "'"};
  if (a.mode == "chat" || a.has_prompt || !a.file.empty() || !a.ids.empty())
    throw Failure{2,
                  "--words, --features and --summary make a prompt of their own; leave out -i, -f, --ids and -m chat"};
  a.prompt = instruction_prompt(wanted);
  const auto control = [](char c) { return uint8_t(c) < 32 && c != '\n'; };
  const size_t lines = size_t(std::count(a.prompt.begin(), a.prompt.end(), '\n'));
  const size_t parts = size_t(!wanted.words.empty()) + !wanted.features.empty() + !wanted.summary.empty();
  if (lines > parts || std::any_of(a.prompt.begin(), a.prompt.end(), control))
    throw Failure{2, "--words, --features and --summary: expected one line each, found a line break or a tab"};
}

// The model that comes with the program: models/stories.bin beside it, or where `make install` puts it. "": neither.
inline std::string shipped_model() {
  char program[4096] = "";
#if defined(__linux__)
  if (readlink("/proc/self/exe", program, sizeof program - 1) < 0) program[0] = 0;
#endif
  const std::string path = program, folder = path.substr(0, path.rfind('/') + 1);
  for (const std::string& file : {folder + "models/stories.bin", folder + "../share/pocketllama/stories.bin"})
    if (access(file.c_str(), R_OK) == 0) return file;
  return "";
}

inline Arguments parse(int argc, char** argv) {
  Arguments a;
  const std::vector<std::string> given = parse_options(argc, argv, kOptions, "put a text in quotes behind -i", a);
  a.has_prompt = std::count(given.begin(), given.end(), "--prompt") > 0;
  a.has_encode = std::count(given.begin(), given.end(), "--encode") > 0;
  const auto one_of = [](const char* name, const std::string& value, std::initializer_list<const char*> all,
                         const char* text) {
    for (const char* good : all)
      if (value == good) return;
    throw Failure{2, std::string(name) + ": expected " + text + ", found '" + value + "'"};
  };
  one_of("-m", a.mode, {"generate", "chat"}, "generate or chat");
  one_of("--kv", a.kv, {"auto", "q8", "f32"}, "auto, q8 or f32");
  if (!a.chat_template.empty() && a.mode != "chat") throw Failure{2, "--template: is for -m chat"};
  if (a.has_prompt + !a.file.empty() + !a.ids.empty() > 1) throw Failure{2, "-i, -f and --ids: expected one of them"};
  set_instruction(a);
  for (const char* option : {"--save", "--resume", "--lookup", "--top"})
    if (a.mode == "chat" && std::count(given.begin(), given.end(), option) > 0)
      throw Failure{2, std::string(option) + ": goes on with a text, not with a chat; leave out -m chat"};
  if (a.model.empty() && a.mode != "chat") a.model = shipped_model();
  if (a.model.empty() && !a.help && !a.man && !a.version && !a.kernels)
    throw Failure{
        2, "no model given; try: models/get smollm2-135m-instruct, then: run models/smollm2-135m-instruct.bin -m chat"};
  return a;
}

inline std::atomic<Session*> running{nullptr};
inline std::atomic<MegabyteSession*> running_bytes{nullptr};

inline void on_signal(int) {
  interrupted = 1;
  if (Session* session = running.load()) session->cancel();
  if (MegabyteSession* session = running_bytes.load()) session->cancel();
}

// stdout. To a terminal no control characters pass but newline and tab: a model must not be able to move the cursor.
class Output {
 public:
  void write(const std::string& text) {
    const std::string out = terminal_ ? without_controls(text) : text;
    if (std::fwrite(out.data(), 1, out.size(), stdout) != out.size() || std::fflush(stdout) != 0)
      throw Failure{1, std::string("standard output: ") + std::strerror(errno)};
  }
  // After a text: on a terminal the next thing begins on a line of its own; a file gets the text and nothing else.
  void end_text() {
    if (terminal_) write("\n");
  }

 private:
  bool terminal_ = isatty(1);
};

// Lets text through up to a stop text, also where that comes in pieces.
class StopFilter {
 public:
  explicit StopFilter(const std::vector<std::string>& stops) : stops_(stops) {}
  bool stopped = false;

  // What may be printed now, whole characters. Of several stop texts the one that is complete first counts.
  std::string push(const std::string& text) {
    if (stopped) return "";
    held_ += text;
    size_t safe = held_.size(), end = std::string::npos;
    for (const std::string& stop : stops_) {
      const size_t at = stop.empty() ? std::string::npos : held_.find(stop);
      if (at == std::string::npos || at + stop.size() > end || (at + stop.size() == end && at > safe)) continue;
      stopped = true, safe = at, end = at + stop.size();
    }
    for (const std::string& stop : stops_)
      for (size_t n = std::min(stop.size(), held_.size()); !stopped && n > 0; n--)
        if (held_.compare(held_.size() - n, n, stop, 0, n) == 0) safe = std::min(safe, held_.size() - n);
    while (safe > 0 && safe < held_.size() && (uint8_t(held_[safe]) & 0xC0) == 0x80) safe--;
    const std::string out = held_.substr(0, safe);
    held_ = stopped ? "" : held_.substr(safe);
    return out;
  }
  std::string flush() { return std::exchange(held_, ""); }

 private:
  const std::vector<std::string>& stops_;
  std::string held_;
};

struct Figures {
  double prompt_seconds = 0, seconds = 0;
  size_t prompt_tokens = 0, tokens = 0;
  size_t guesses = 0, guesses_right = 0;  // --lookup
  const char* end = nullptr;              // why a text has ended
  std::vector<std::string> choices;       // --top, as JSON: one for each choice of a token

  // The first token comes from the prompt's logits; every other one from a pass over all weights.
  double rate() const { return tokens > 1 && seconds > 0 ? double(tokens - 1) / seconds : 0; }
  // Passes over the weights a second: a right guess spares one.
  double passes() const { return rate() > 0 ? double(tokens - 1 - std::min(tokens - 1, guesses_right)) / seconds : 0; }
  double prompt_rate() const { return prompt_seconds > 0 ? double(prompt_tokens) / prompt_seconds : 0; }

  // A prompt from `start` on, and `made` tokens from `first` on, until now.
  void add(size_t prompt, double start, size_t made, double first) {
    const double end = pocket::seconds();
    prompt_tokens += prompt, tokens += made;
    prompt_seconds += (made == 0 ? end : first) - start;
    seconds += made == 0 ? 0 : end - first;
  }
};

// Linux says it in /proc: getrusage would count what the starting program occupied before this one took its place.
inline size_t peak_memory() {
  size_t kib = 0;
  if (std::FILE* file = std::fopen("/proc/self/status", "r")) {
    for (char line[128]; !kib && std::fgets(line, sizeof line, file);) std::sscanf(line, "VmHWM: %zu", &kib);
    std::fclose(file);
  }
  if (kib) return kib * 1024;
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
#ifdef __APPLE__
  return size_t(usage.ru_maxrss);
#else
  return size_t(usage.ru_maxrss) * 1024;
#endif
}

// What a model of bytes cannot do.
inline void check_bytes_arguments(const Arguments& a) {
  const struct {
    const char* option;
    bool given;
    const char* why;
  } all[] = {{"-m chat", a.mode == "chat", "knows no turns"},
             {"--words, --features, --summary", a.instructed, "has not learnt to write on command"},
             {"--save", !a.save.empty(), "cannot be kept half-way; keep the text, and go on with it by -f"},
             {"--resume", !a.resume.empty(), "cannot be kept half-way; go on with the text by -f"},
             {"--tokenizer", !a.tokenizer.empty(), "has no tokenizer"}};
  for (const auto& o : all)
    if (o.given)
      throw Failure{1, a.model + ": " + o.option + ": this is a MEGABYTE model, which goes on with bytes and " + o.why};
}

// Everything that a run needs, opened in the order in which things can be wrong.
struct Run {
  const Arguments& args;
  bool bytes;  // a MEGABYTE model, not a Llama
  Model model;
  MegabyteModel megabyte;
  Tokenizer tokenizer;
  Output out;
  Figures figures;
  uint64_t seed = 0;

  explicit Run(const Arguments& a) : args(a), bytes(is_megabyte(a.model.c_str())) {
    if (!(bytes ? megabyte.open(a.model.c_str()) : model.open(a.model.c_str())))
      throw Failure{1, file().error + (access(a.model.c_str(), F_OK) ? "; models/get shows models to fetch" : "")};
    if (bytes) check_bytes_arguments(a);
    const bool own = a.tokenizer.empty();
    const std::string blob = own ? "" : read_all(a.tokenizer);
    if (!(bytes ? tokenizer.load(Tokenizer::to_blob(byte_vocabulary()))
          : own ? tokenizer.load(model.tokenizer_bytes())
                : tokenizer.load_sentencepiece(blob)))
      throw Failure{1, (own ? a.model : a.tokenizer) + ": " + tokenizer.error};
    if (!bytes && tokenizer.size() > model.config.vocab_size)
      throw Failure{1, "tokenizer: expected at most the model's " + std::to_string(model.config.vocab_size) +
                           " pieces, found " + std::to_string(tokenizer.size())};
    seed = a.seed.empty() ? uint64_t(std::chrono::system_clock::now().time_since_epoch().count()) % 1000000
                          : uint64_t(number("-s", a.seed, 0, 9007199254740992.0, true));
  }

  ModelFile& file() { return bytes ? static_cast<ModelFile&>(megabyte) : model; }
  const ModelFile& file() const { return bytes ? static_cast<const ModelFile&>(megabyte) : model; }
  template <class Session> const auto& model_of() const {
    if constexpr (std::is_same_v<Session, MegabyteSession>)
      return megabyte;
    else
      return model;
  }
  int vocab_size() const { return bytes ? kByteValues : model.config.vocab_size; }
  // Positions that the model was trained for.
  int longest() const { return bytes ? megabyte.config.max_seq_len() : model.config.max_seq_len; }

  std::vector<int> encode(std::string_view text, bool bos = true) const {
    if (!bytes) return tokenizer.encode(text, bos);
    std::vector<int> ids;
    for (const char c : text) ids.push_back(uint8_t(c));
    return ids;
  }

  // A byte that ends texts, or that training fills them up with (0 as a rule), is never learnt as a part of them: what a
  // model makes of it means nothing.
  void check_learnt(const std::vector<int>& ids, const std::string& what) const {
    for (size_t i = 0; bytes && i < ids.size(); i++)
      for (const int padding : megabyte.chat.stop_ids)
        if (ids[i] == padding)
          throw Failure{1, what + ": byte " + std::to_string(padding) + " at offset " + std::to_string(i) +
                               ": texts end there, and the model has not learnt it as a part of them; leave it out"};
  }

  SessionOptions session_options() const {
    const KvType kv = args.kv == "q8" ? KvType::q8 : args.kv == "f32" ? KvType::f32 : KvType::automatic;
    return {args.context, args.threads, kv, args.kernel.empty() ? nullptr : args.kernel.c_str()};
  }

  SamplerOptions sampler_options() const {
    return {args.temperature, args.top_p, seed, args.top_k, args.min_p, args.repeat_penalty};
  }
};

inline std::atomic<Session*>& running_of(Session*) { return running; }
inline std::atomic<MegabyteSession*>& running_of(MegabyteSession*) { return running_bytes; }

// A session that Ctrl-C can stop. What follows takes either kind, a Llama's or one of bytes.
template <class Session> struct OpenSessionOf {
  Session session;
  template <class Model> OpenSessionOf(const Model& model, const SessionOptions& options) : session(model, options) {
    if (!session.error.empty()) throw Failure{session.error.rfind("kernel", 0) == 0 ? 2 : 1, session.error};
    running_of(&session).store(&session);
  }
  ~OpenSessionOf() { running_of(&session).store(nullptr); }
};
using OpenSession = OpenSessionOf<Session>;

template <class Session> [[noreturn]] void fail(const Session& session) {
  stop_if_interrupted();
  throw Failure{1, session.error};
}

// The tokens of the prompt. first: it begins the text, with what the model wants there.
inline std::vector<int> prompt_ids(Run& run, bool first = true) {
  const Arguments& a = run.args;
  std::vector<int> ids;
  if (!a.ids.empty()) {
    for (const std::string& id : split(a.ids))
      ids.push_back(int(number("--ids", id, 0, run.vocab_size() - 1, true)));
    if (a.logits.empty()) run.check_learnt(ids, "--ids");
    return ids;
  }
  if (a.instructed && run.model.provenance().find(kTakesInstructions) == std::string_view::npos)
    throw Failure{1, a.model +
                         ": has not learnt to write on command (its provenance does not say so); -i goes on with "
                         "a text"};
  ids = run.encode(a.file.empty() ? a.prompt : read_all(a.file), first);
  run.check_learnt(ids, a.file.empty() ? "-i" : a.file);
  if (!first || run.bytes) return ids;                                              // bytes can begin from nothing
  if (ids.empty() && run.tokenizer.bos() >= 0) ids.push_back(run.tokenizer.bos());  // something has to come first
  if (ids.empty()) throw Failure{2, "the prompt is empty, and this model has no token to begin with; give one with -i"};
  return ids;
}

template <class Session> void check_room(const Session& session, size_t tokens) {
  constexpr bool kBytes = std::is_same_v<Session, MegabyteSession>;  // there is no more than what the model is made for
  const int room = session.context() - session.position();
  if (tokens > size_t(room))
    throw Failure{1, "prompt: " + std::to_string(tokens) + (kBytes ? " bytes" : " tokens") +
                         ", but the context has room for " + std::to_string(room) + "; shorten it" +
                         (kBytes ? "" : ", or give more with --ctx")};
}

// All of the prompt but the last batch, which generate() takes; with a word on how far it is where that takes long.
template <class Session> std::vector<int> feed(Run& run, Session& session, Sampler& pick, std::vector<int> ids) {
  const size_t total = ids.size(), batch = size_t(run.args.batch);
  const double start = seconds();
  bool told = false;
  size_t done = 0;
  for (; total - done > batch; done += batch) {
    if (!session.forward(ids.data() + done, batch)) fail(session);
    for (size_t i = done; i < done + batch; i++) pick.remember(ids[i]);
    if (isatty(2) && seconds() - start > 2)
      told = std::fprintf(stderr, "\rprompt: %zu of %zu tokens", done + batch, total) > 0;
  }
  if (told) std::fprintf(stderr, "\r\033[K");
  return std::vector<int>(ids.begin() + long(done), ids.end());
}

// Tokens that a text may get.
inline int token_limit(const Arguments& a) {
  return a.n > 0 ? a.n : a.n == 0 || a.mode == "chat" ? std::numeric_limits<int>::max() : 256;
}

// A token as it is printed: a control token is nothing.
inline std::string printed(const Tokenizer& tokenizer, Tokenizer::Stream& stream, int id) {
  return tokenizer.type(id) == Tokenizer::PieceType::control ? "" : stream.push(id);
}

// Prints what the model adds to the prompt, but for what may still become half of a character or of a stop text; adds
// it to ids. False if that failed or was cancelled.
template <class Session, class Pick>
bool make_text(Run& run, Session& session, Pick& pick, Tokenizer::Stream& stream, StopFilter& filter,
               const std::vector<int>& prompt, std::vector<int>& ids, const Propose& propose = nullptr) {
  check_room(session, prompt.size());
  const double start = seconds();
  const size_t before = ids.size();
  double first = 0;
  const std::vector<int> last = feed(run, session, pick, prompt), &stops = run.file().chat.stop_ids;
  // After the last byte that a model is made for it would still say one, but a text is no longer than that.
  const int room = run.bytes ? session.context() - int(before) : std::numeric_limits<int>::max();
  const auto on_token = [&](int id) {
    if (ids.size() == before) first = seconds();
    ids.push_back(id);
    run.out.write(filter.push(printed(run.tokenizer, stream, id)));
    return !filter.stopped && !interrupted;
  };
  const bool good = generate(session, pick, last, std::min(room, token_limit(run.args)), stops, on_token, propose);
  run.figures.add(prompt.size(), start, ids.size() - before, first);
  return good;
}

// The figures for a program to read.
template <class Session> std::string json_figures(const Run& run, const Session& session) {
  const Figures& f = run.figures;
  std::vector<std::pair<std::string_view, std::string>> fields = {
      {"model", json(run.args.model)},
      {"kernel", json(session.kernel())},
      {"threads", std::to_string(session.threads())},
      {"temperature", json(run.args.temperature)},
      {"seed", run.args.temperature > 0 ? std::to_string(run.seed) : "null"},
      {"prompt_tokens", std::to_string(f.prompt_tokens)},
      {"prompt_seconds", json(f.prompt_seconds)},
      {"prompt_tokens_s", json(f.prompt_rate())},
      {"new_tokens", std::to_string(f.tokens)},
      {"new_seconds", json(f.seconds)},
      {"new_tokens_s", json(f.rate())},
      {"weights_gb_s", json(f.passes() * double(run.file().bytes_per_token) / 1e9)},
      {"peak_memory_bytes", std::to_string(peak_memory())},
      {"position", std::to_string(session.position())},
      {"context", std::to_string(session.context())}};
  if (f.end) fields.push_back({"end", json(f.end)});
  if (run.args.lookup) {
    fields.push_back({"guesses", std::to_string(f.guesses)});
    fields.push_back({"guesses_right", std::to_string(f.guesses_right)});
  }
  if (run.args.top > 0) fields.push_back({"choices", json_array(f.choices)});
  return json_object(fields);
}

template <class Session> void print_figures(const Run& run, const Session& session) {
  const Figures& f = run.figures;
  const char *tokens = run.bytes ? "bytes" : "tokens", *rate = run.bytes ? "bytes/s" : "tok/s";
  if (run.args.json) return void(std::fprintf(stderr, "%s\n", json_figures(run, session).c_str()));
  if (run.args.quiet) return;
  std::fprintf(stderr, "prompt %zu %s, %.1f %s; new %zu %s, %.1f %s, %.1f GB/s; peak memory %.1f MB; %s, %d thread%s",
               f.prompt_tokens, tokens, f.prompt_rate(), rate, f.tokens, tokens, f.rate(), rate,
               f.passes() * double(run.file().bytes_per_token) / 1e9, double(peak_memory()) / 1e6, session.kernel(),
               session.threads(), session.threads() == 1 ? "" : "s");
  if (run.args.lookup) std::fprintf(stderr, "; %zu of %zu guesses right", f.guesses_right, f.guesses);
  if (run.args.temperature > 0) std::fprintf(stderr, "; seed %llu", static_cast<unsigned long long>(run.seed));
  std::fprintf(stderr, "\n");
}

template <class Session> void generate_text(Run& run);  // generate.hpp
inline void chat(Run& run);                             // chat.hpp

template <class Session> void write_logits(Run& run) {
  OpenSessionOf<Session> open(run.model_of<Session>(), run.session_options());
  const std::vector<int> ids = prompt_ids(run);
  check_room(open.session, ids.size());
  NewFile file(run.args.logits);
  const size_t row = size_t(run.vocab_size()) * sizeof(float), batch = size_t(run.args.batch);
  for (size_t i = 0; i < ids.size() && file.good(); i += batch) {
    const auto write = [&](size_t, const float* logits) { return file.write(logits, row); };
    if (!open.session.forward(ids.data() + i, std::min(batch, ids.size() - i), write)) fail(open.session);
  }
  file.finish();
}

// log of the sum of e^logit: a logit less this is the log of a probability.
inline double log_sum_exp(const float* logits, int n) {
  const double top = *std::max_element(logits, logits + n);
  double sum = 0;
  for (int i = 0; i < n; i++) sum += std::exp(logits[i] - top);
  return std::log(sum) + top;
}

// -log p of `next`, from the logits before it, in nats.
inline double surprise(const float* logits, int n, int next) { return log_sum_exp(logits, n) - logits[next]; }

// As llama-perplexity does it: windows of 512 tokens, the second half of each counted, so that every token that counts
// has seen at least 256 before it. A text shorter than a window counts from its second token. Bytes fill windows as
// long as the context.
struct Windows {
  std::vector<int> ids;
  size_t size, from, count;  // of a window; its first token that counts; windows

  Windows(std::vector<int> text, int longest, const std::string& file, size_t most = 512) : ids(std::move(text)) {
    size = std::min<size_t>({most, size_t(longest), ids.size()});
    if (size < 2) throw Failure{1, file + ": expected at least 2 tokens, found " + std::to_string(ids.size())};
    from = size < most ? 1 : most / 2;
    count = ids.size() / size;
  }
  const int* window(size_t w) const { return ids.data() + w * size; }
  // Whether the logits of a window's token i foresee one that counts.
  bool counts(size_t i) const { return i + 1 >= from && i + 1 < size; }
};

// e to the mean surprise, and its standard error.
struct Perplexity {
  double sum = 0, squares = 0, count = 0;

  void add(double nats) { sum += nats, squares += nats * nats, count++; }
  double value() const { return std::exp(sum / count); }
  double error() const {
    const double mean = sum / count;
    return value() * std::sqrt(std::max(0.0, squares / count - mean * mean) / count);
  }
};

template <class Session> void perplexity(Run& run) {
  const Windows text(run.encode(read_all(run.args.perplexity)), run.longest(), run.args.perplexity,
                     run.bytes ? size_t(run.longest()) : 512);
  run.check_learnt(text.ids, run.args.perplexity);
  SessionOptions options = run.session_options();
  options.context = int(text.size);
  OpenSessionOf<Session> open(run.model_of<Session>(), options);
  Perplexity found;
  for (size_t w = 0; w < text.count; w++) {
    const int* ids = text.window(w);
    open.session.rewind(0);
    const bool good = open.session.forward(ids, text.size, [&](size_t i, const float* logits) {
      if (text.counts(i)) found.add(surprise(logits, run.vocab_size(), ids[i + 1]));
      return true;
    });
    if (!good) fail(open.session);
    if (isatty(2)) std::fprintf(stderr, "\rwindow %zu of %zu: %.4f ", w + 1, text.count, found.value());
  }
  if (isatty(2)) std::fprintf(stderr, "\r\033[K");
  char line[160];
  if (run.bytes)
    std::snprintf(line, sizeof line, "%.4f bits a byte; perplexity %.4f +- %.4f (%.0f bytes of %zu)\n",
                  std::log2(found.value()), found.value(), found.error(), found.count, text.ids.size());
  else
    std::snprintf(line, sizeof line, "perplexity %.4f +- %.4f (%.0f tokens of %zu)\n", found.value(), found.error(),
                  found.count, text.ids.size());
  run.out.write(line);
}

template <class Session> void self_test(Run& run) {
  ModelFile& file = run.file();
  if (!file.verify_tensors()) throw Failure{1, run.args.model + ": " + file.error};
  const std::vector<int>& ids = file.self_test_ids;
  if (ids.empty()) throw Failure{1, run.args.model + ": the tensors are whole, but the file has no self-test"};
  for (const std::string& name : kernel_names()) {
    if (!run.args.kernel.empty() && name != run.args.kernel) continue;
    SessionOptions options = run.session_options();
    options.kernel = name.c_str(), options.kv = KvType::automatic, options.context = int(ids.size());
    OpenSessionOf<Session> open(run.model_of<Session>(), options);
    const float* logits = open.session.forward(ids.data(), ids.size());
    if (!logits) fail(open.session);
    if (hash_logits(logits, run.vocab_size()) != file.self_test_hash)
      throw Failure{1,
                    "self-test: kernel " + name + " gives other logits than the file expects; please report this CPU"};
    run.out.write("kernel " + name + ": the logits are those that the file expects\n");
  }
  run.out.write("tensors: whole\n");
}

// What the process occupies now, before a session is open: the program, the tokenizer, the model file's head.
inline size_t resident_now() {
  long pages = 0;
  if (std::FILE* file = std::fopen("/proc/self/statm", "r")) {
    if (std::fscanf(file, "%*d %ld", &pages) != 1) pages = 0;
    std::fclose(file);
  }
  return pages > 0 ? size_t(pages) * size_t(sysconf(_SC_PAGESIZE)) : peak_memory();
}

template <class Model> void print_memory(Run& run, const Model& model) {
  const SessionOptions options = run.session_options();
  const int full = options.context > 0 ? options.context : run.longest(), some = std::min(128, full);
  const std::vector<MemoryItem> a = memory_of(model, options, some), b = memory_of(model, options, full);
  size_t sum_a = resident_now(), sum_b = sum_a;
  char line[120];
  const auto row = [&](const char* name, size_t x, size_t y) {
    std::snprintf(line, sizeof line, "  %-24s %10.1f %10.1f\n", name, double(x) / 1e6, double(y) / 1e6);
    run.out.write(line);
  };
  const char* unit = run.bytes ? " bytes" : "tokens";
  std::snprintf(line, sizeof line, "memory in MB, after    %5d %s %5d %s\n", some, unit, full, unit);
  run.out.write(line);
  row("program and tokenizer", sum_a, sum_a);
  for (size_t i = 0; i < a.size(); i++) {
    row(a[i].name, a[i].bytes, b[i].bytes);
    sum_a += a[i].bytes, sum_b += b[i].bytes;
  }
  row("sum", sum_a, sum_b);
}

inline double million_parameters(const std::vector<TensorSpec>& specs, bool tied = false) {
  uint64_t parameters = 0;
  for (const TensorSpec& spec : specs)
    if (!(tied && spec.name == "output")) parameters += uint64_t(spec.rows) * uint64_t(spec.cols);
  return double(parameters) / 1e6;
}

inline void print_provenance(Run& run) {
  const std::string text(run.file().provenance());
  run.out.write(text + (text.empty() || text.back() == '\n' ? "" : "\n"));
}

inline void info_bytes(Run& run) {
  const MegabyteModel& m = run.megabyte;
  const MegabyteConfig& c = m.config;
  char text[1024];
  std::snprintf(text, sizeof text,
                "%.1f M parameters: MEGABYTE, patches of %d bytes, %d heads of %d\n"
                "global: dim %d, hidden %d, %d layers; local: dim %d, hidden %d, %d layers\n"
                "made for %d bytes; positions: rotary %s, embedded %s\n"
                "matrices %s, embedding %s; file %.1f MB; no tokenizer: a token is a byte\n",
                million_parameters(tensor_specs(c)), c.patch_size, c.n_heads, c.head_dim, c.global.dim,
                c.global.hidden_dim, c.global.n_layers, c.local.dim, c.local.hidden_dim, c.local.n_layers,
                c.max_seq_len(), c.rotary ? "yes" : "no", c.positions ? "yes" : "no",
                type_name(m.local.layers[0].wq.type), type_name(m.local.embedding.type), double(m.file_bytes) / 1e6);
  run.out.write(text);
  print_provenance(run);
  print_memory(run, m);
}

inline void info(Run& run) {
  if (run.bytes) return info_bytes(run);
  const Model& m = run.model;
  const Config& c = m.config;
  char text[2048];
  std::snprintf(text, sizeof text,
                "%.1f M parameters: dim %d, hidden %d, %d layers, %d heads, %d KV heads of %d, vocabulary %d%s\n"
                "trained for %d positions; rope theta %g, scaling %s; norm eps %g\n"
                "matrices %s, embedding %s; file %.1f MB; tokenizer %s, %d pieces; chat %s\n",
                million_parameters(tensor_specs(c), c.tied), c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads,
                c.head_dim, c.vocab_size, c.tied ? " (tied)" : "", c.max_seq_len, c.rope_theta,
                c.rope_scaling == RopeScaling::none     ? "none"
                : c.rope_scaling == RopeScaling::linear ? "linear"
                                                        : "llama3",
                c.norm_eps, type_name(m.layers[0].wq.type), type_name(m.token_embedding.type),
                double(m.file_bytes) / 1e6,
                run.tokenizer.kind() == Tokenizer::Kind::sentencepiece ? "SentencePiece" : "byte-level BPE",
                run.tokenizer.size(), m.chat.known() ? "yes" : "no");
  run.out.write(text);
  print_provenance(run);
  print_memory(run, m);
}

inline void encode(Run& run) {
  std::string line;
  for (int id : run.encode(run.args.encode)) line += (line.empty() ? "" : ",") + std::to_string(id);
  run.out.write(line + "\n");
}

template <class Session> void compute(Run& run) {
  const Arguments& a = run.args;
  if (a.self_test) return self_test<Session>(run);
  if (!a.perplexity.empty()) return perplexity<Session>(run);
  if (!a.logits.empty()) return write_logits<Session>(run);
  if (a.mode == "chat") return chat(run);  // a Llama's
  generate_text<Session>(run);
}

inline void dispatch(const Arguments& a) {
  if (a.help) return print_help();
  if (a.man) return print_man();
  if (a.version) return void(std::printf("run %s, model format %u\n", kVersion, kFormatVersion));
  if (a.kernels) {
    for (const std::string& name : kernel_names()) std::printf("%s\n", name.c_str());
    return;
  }
  Run run(a);
  if (a.info) return info(run);
  if (a.has_encode) return encode(run);
  run.bytes ? compute<MegabyteSession>(run) : compute<Session>(run);
}

inline int main(int argc, char** argv) {
  return guarded(
      "run", [&] { dispatch(parse(argc, argv)); }, on_signal);
}

}  // namespace pocket::cli

#include "chat.hpp"
#include "generate.hpp"
#endif  // POCKET_CLI_HPP
