// cli.hpp: the command line of run.cpp, which includes it last. It puts the engine and the tokenizer together: what it
// reads, what it prints, and what it says when something is wrong. No part of the lesson and of no use to a library.
#ifndef POCKET_CLI_HPP
#define POCKET_CLI_HPP

#include <sys/resource.h>

#include <csignal>
#include <utility>
#include <variant>

#ifndef POCKET_RUN_CPP  // when it is not run.cpp that includes this file
#define RUN_NO_MAIN
#include "run.cpp"
#endif
#include "instruction.hpp"
#include "tokenizer.hpp"

namespace pocket::cli {

// A failure as the user sees it: one line, `PROGRAM: what: why; hint`. 1: it did not work; 2: wrong usage.
struct Failure {
  int status;
  std::string what;
};

struct Arguments {
  std::string model, prompt, file, ids, system, tokenizer, mode = "generate", kernel, logits, perplexity, encode;
  std::string words, features, summary;
  std::vector<std::string> stop;
  int n = -1, top_k = 0, threads = 0, context = 0, batch = 256;
  float temperature = 0.8f, top_p = 0.9f, min_p = 0, repeat_penalty = 1;
  std::string seed, kv = "auto";
  bool quiet = false, info = false, self_test = false, kernels = false, help = false, version = false;
  bool has_prompt = false, has_encode = false, instructed = false;
};

// A line of --help, and what its option sets in A.
template <class A> struct Option {
  const char *letter, *name, *value, *help;  // no name: a heading
  std::variant<std::monostate, bool A::*, int A::*, float A::*, std::string A::*, std::vector<std::string> A::*> into =
      {};
  double low = 0, high = 0;
};

inline const Option<Arguments> kOptions[] = {
    {"", "", "", "What to say"},
    {"-i", "--prompt", "TEXT", "go on with this text; in chat, the first question", &Arguments::prompt},
    {"-f", "--file", "FILE", "take the prompt from a file, - for standard input", &Arguments::file},
    {"", "--words", "dog,cake,sad", "a story with these words, of a model that writes on command", &Arguments::words},
    {"", "--features", "LIST", "a story with these: Dialogue, Moral, Sad ending", &Arguments::features},
    {"", "--summary", "SENTENCE", "a story in which this happens", &Arguments::summary},
    {"-m", "--mode", "MODE", "generate (go on with a text) or chat (answer, line by line)", &Arguments::mode},
    {"-y", "--system", "TEXT", "the system prompt of a chat", &Arguments::system},
    {"-n", "--tokens", "N", "at most so many new tokens; 0: until the context is full [256; chat 0]", &Arguments::n, 0,
     1e9},
    {"", "--stop", "TEXT", "end before this text; may be given several times", &Arguments::stop},
    {"", "", "", "How to choose the next token"},
    {"-t", "--temperature", "T", "0: always the likeliest; 1: as the model learnt it [0.8]", &Arguments::temperature, 0,
     100},
    {"-p", "--top-p", "P", "among the likeliest that together reach P; 1: all [0.9]", &Arguments::top_p, 0, 1},
    {"-k", "--top-k", "K", "among the K likeliest; 0: all [0]", &Arguments::top_k, 0, 1e9},
    {"", "--min-p", "P", "among those at least P times as likely as the likeliest [0]", &Arguments::min_p, 0, 1},
    {"-r", "--repeat-penalty", "R", "make the last 64 tokens less likely; 1: off, 1.1: a little [1]",
     &Arguments::repeat_penalty, 0.01, 100},
    {"-s", "--seed", "N", "the same seed tells the same text, on every machine [the time]", &Arguments::seed},
    {"", "", "", "How to run"},
    {"", "--threads", "N", "[one per CPU]", &Arguments::threads, 1, 256},
    {"", "--ctx", "N", "positions to make room for [what the model was trained for]", &Arguments::context, 1, 1 << 22},
    {"", "--kv", "TYPE", "keep keys and values as q8, f32 or auto (f32 for f32 models) [auto]", &Arguments::kv},
    {"", "--kernel", "NAME", "one of --kernels [the first]; all give the same bits", &Arguments::kernel},
    {"-z", "--tokenizer", "FILE", "a SentencePiece .model instead of the model file's own", &Arguments::tokenizer},
    {"-q", "--quiet", "", "no line of figures at the end", &Arguments::quiet},
    {"", "", "", "Instead of a text"},
    {"", "--info", "", "what is in the file, and the memory that this context will take", &Arguments::info},
    {"", "--selftest", "", "check every byte of the tensors, and the file's own test of this machine",
     &Arguments::self_test},
    {"", "--perplexity", "FILE", "how well the model foresees a text (windows of 512 tokens)", &Arguments::perplexity},
    {"", "--encode", "TEXT", "print the token ids of a text", &Arguments::encode},
    {"", "--kernels", "", "the kernel sets that this CPU can run, best first", &Arguments::kernels},
    {"", "", "", "For tests and scripts"},
    {"", "--ids", "1,306,...", "the prompt as token ids, nothing added", &Arguments::ids},
    {"", "--logits", "FILE", "write the prompt's logits, float32 (tokens, vocab_size), and stop", &Arguments::logits},
    {"", "--batch", "N", "prompt tokens per forward [256]; does not change the text", &Arguments::batch, 1, 1e9},
    {"-h", "--help", "", "this text", &Arguments::help},
    {"", "--version", "", "", &Arguments::version},
};

template <class A, size_t N> void print_options(const Option<A> (&options)[N]) {
  for (const Option<A>& o : options) {
    if (!*o.name)
      std::printf("\n%s\n", o.help);
    else
      std::printf("  %-3s %-27s %s\n", o.letter, (std::string(o.name) + " " + o.value).c_str(), o.help);
  }
}

inline void print_help() {
  std::printf(
      "run: a language model on a CPU\n\n"
      "  run model.bin -i \"Once upon a time\"        go on with a text\n"
      "  run model.bin -m chat                      talk; the end of input (Ctrl-D) ends it\n"
      "  run model.bin -i \"2 + 2 =\" -t 0 -n 5       the likeliest five tokens\n"
      "  run model.bin -f letter.txt -n 100 -q      go on with a file, and print only the text\n"
      "  run model.bin --info                       what it is, and what memory it takes\n\n"
      "models/get fetches a model; export/convert makes a model.bin from a checkpoint.\n"
      "stdout is the text, stderr the rest. Exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted.\n");
  print_options(kOptions);
}

// Single-character edits between two words (Levenshtein).
inline size_t distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); j++) row[j] = j;
  for (size_t i = 1; i <= a.size(); i++) {
    size_t diagonal = row[0]++;
    for (size_t j = 1; j <= b.size(); j++) {
      const size_t above = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])});
      diagonal = above;
    }
  }
  return row[b.size()];
}

template <class A, size_t N> const Option<A>& find_option(const Option<A> (&options)[N], const std::string& word) {
  const Option<A>* nearest = nullptr;
  size_t least = 4;
  for (const Option<A>& o : options) {
    if (!*o.name) continue;
    if (word == o.letter || word == o.name) return o;
    if (distance(word, o.name) < least) least = distance(word, o.name), nearest = &o;
  }
  throw Failure{
      2, word + ": no such option" + (nearest ? std::string("; did you mean ") + nearest->name + "?" : "; see --help")};
}

inline double number(const std::string& name, const std::string& text, double low, double high, bool whole) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  const bool plain = text.find_first_not_of("+-.0123456789eE") == std::string::npos;  // no nan, no inf, no hex
  if (text.empty() || *end || !plain || !(value >= low && value <= high) || (whole && value != std::floor(value))) {
    char range[80];
    std::snprintf(range, sizeof range, "%s from %g to %g", whole ? "a whole number" : "a number", low, high);
    throw Failure{2, name + ": expected " + range + ", found '" + text + "'"};
  }
  return value;
}

// The strings between the commas.
inline std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> parts;
  for (size_t at = 0; at <= list.size(); at += parts.back().size() + 1)
    parts.push_back(list.substr(at, std::min(list.find(',', at), list.size()) - at));
  return parts;
}

template <class A> void set_option(A& a, const Option<A>& o, const std::string& name, const std::string& value) {
  const bool may_be_empty = std::strcmp(o.value, "TEXT") == 0 || std::holds_alternative<bool A::*>(o.into);
  if (value.empty() && !may_be_empty) throw Failure{2, name + ": expected " + o.value + ", found nothing"};
  if (auto flag = std::get_if<bool A::*>(&o.into)) a.** flag = true;
  if (auto text = std::get_if<std::string A::*>(&o.into)) a.** text = value;
  if (auto list = std::get_if<std::vector<std::string> A::*>(&o.into)) (a.**list).push_back(value);
  if (auto whole = std::get_if<int A::*>(&o.into)) a.** whole = int(number(name, value, o.low, o.high, true));
  if (auto real = std::get_if<float A::*>(&o.into)) a.** real = float(number(name, value, o.low, o.high, false));
}

// Sets a.model and what the options name; returns the names of the options that were given. hint: what to do with a
// second word that is no option.
template <class A, size_t N>
std::vector<std::string> parse_options(int argc, char** argv, const Option<A> (&options)[N], const char* hint, A& a) {
  std::vector<std::string> given;
  for (int i = 1; i < argc; i++) {
    std::string word = argv[i], value;
    if (word.size() < 2 || word[0] != '-') {
      if (!a.model.empty()) throw Failure{2, "'" + word + "': one model only, and it is '" + a.model + "'; " + hint};
      a.model = word;
      continue;
    }
    const size_t equals = word.rfind("--", 0) == 0 ? word.find('=') : std::string::npos;
    const Option<A>& o = find_option(options, word.substr(0, equals));
    if (!std::holds_alternative<bool A::*>(o.into)) {
      if (equals != std::string::npos)
        value = word.substr(equals + 1);
      else if (++i < argc)
        value = argv[i];
      else
        throw Failure{2, word + ": expected " + o.value + " behind it"};
    } else if (equals != std::string::npos) {
      throw Failure{2, word + ": takes no value"};
    }
    set_option(a, o, word.substr(0, equals), value);
    given.push_back(o.name);
  }
  return given;
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
      throw Failure{2, "--features: expected some of Dialogue, Moral, Sad ending, found '" + f + "'"};
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
  if (a.has_prompt + !a.file.empty() + !a.ids.empty() > 1) throw Failure{2, "-i, -f and --ids: expected one of them"};
  set_instruction(a);
  if (a.model.empty() && !a.help && !a.version && !a.kernels)
    throw Failure{
        2, "no model given; try: models/get smollm2-135m-instruct, then: run models/smollm2-135m-instruct.bin -m chat"};
  return a;
}

inline volatile std::sig_atomic_t interrupted = 0;
inline std::atomic<Session*> running{nullptr};

inline void on_interrupt(int) {
  interrupted = 1;
  if (Session* session = running.load()) session->cancel();
}

inline void stop_if_interrupted() {
  if (interrupted) throw Failure{130, ""};
}

inline double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline std::string read_all(const std::string& name) {
  std::FILE* file = name == "-" ? stdin : std::fopen(name.c_str(), "rb");
  std::string text;
  char piece[65536];
  for (size_t n; file && (n = std::fread(piece, 1, sizeof piece, file)) > 0;) text.append(piece, n);
  const bool good = file && !std::ferror(file);
  const int why = errno;
  if (file && file != stdin) std::fclose(file);
  stop_if_interrupted();
  if (!good) throw Failure{1, name + ": " + std::strerror(why)};
  return text;
}

// stdout. To a terminal no control characters pass but newline and tab: a model must not be able to move the cursor.
class Output {
 public:
  void write(const std::string& text) {
    std::string clean;
    for (size_t i = 0; terminal_ && i < text.size(); i++) {
      const uint8_t c = uint8_t(text[i]), next = i + 1 < text.size() ? uint8_t(text[i + 1]) : 0;
      if (c == 0xC2 && next >= 0x80 && next < 0xA0)
        i++;  // U+0080 ... U+009F
      else if ((c >= 32 && c != 127) || c == '\n' || c == '\t')
        clean += text[i];
    }
    const std::string& out = terminal_ ? clean : text;
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

// Lets text through except a stop text, also where that comes in pieces.
class StopFilter {
 public:
  explicit StopFilter(const std::vector<std::string>& stops) : stops_(stops) {}
  bool stopped = false;

  std::string push(const std::string& text) {
    held_ += text;
    size_t safe = held_.size();
    for (const std::string& stop : stops_) {
      if (stop.empty()) continue;
      const size_t at = held_.find(stop);
      if (at != std::string::npos) stopped = true, safe = std::min(safe, at);
      for (size_t n = std::min(stop.size() - 1, held_.size()); n > 0 && at == std::string::npos; n--)
        if (held_.compare(held_.size() - n, n, stop, 0, n) == 0) safe = std::min(safe, held_.size() - n);
    }
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

// Everything that a run needs, opened in the order in which things can be wrong.
struct Run {
  const Arguments& args;
  Model model;
  Tokenizer tokenizer;
  Output out;
  Figures figures;
  uint64_t seed = 0;

  explicit Run(const Arguments& a) : args(a) {
    if (!model.open(a.model.c_str())) throw Failure{1, model.error};
    const bool own = a.tokenizer.empty();
    const std::string file = own ? "" : read_all(a.tokenizer);
    if (!(own ? tokenizer.load(model.tokenizer_bytes()) : tokenizer.load_sentencepiece(file)))
      throw Failure{1, (own ? a.model : a.tokenizer) + ": " + tokenizer.error};
    if (tokenizer.size() > model.config.vocab_size)
      throw Failure{1, "tokenizer: expected at most the model's " + std::to_string(model.config.vocab_size) +
                           " pieces, found " + std::to_string(tokenizer.size())};
    seed = a.seed.empty() ? uint64_t(std::chrono::system_clock::now().time_since_epoch().count()) % 1000000
                          : uint64_t(number("-s", a.seed, 0, 9007199254740992.0, true));
  }

  SessionOptions session_options() const {
    const KvType kv = args.kv == "q8" ? KvType::q8 : args.kv == "f32" ? KvType::f32 : KvType::automatic;
    return {args.context, args.threads, kv, args.kernel.empty() ? nullptr : args.kernel.c_str()};
  }

  SamplerOptions sampler_options() const {
    return {args.temperature, args.top_p, seed, args.top_k, args.min_p, args.repeat_penalty};
  }
};

// A session that Ctrl-C can stop.
struct OpenSession {
  Session session;
  OpenSession(const Model& model, const SessionOptions& options) : session(model, options) {
    if (!session.error.empty()) throw Failure{session.error.rfind("kernel", 0) == 0 ? 2 : 1, session.error};
    running.store(&session);
  }
  ~OpenSession() { running.store(nullptr); }
};

[[noreturn]] inline void fail(const Session& session) {
  stop_if_interrupted();
  throw Failure{1, session.error};
}

inline std::vector<int> prompt_ids(Run& run) {
  const Arguments& a = run.args;
  std::vector<int> ids;
  if (!a.ids.empty()) {
    for (const std::string& id : split(a.ids))
      ids.push_back(int(number("--ids", id, 0, run.model.config.vocab_size - 1, true)));
    return ids;
  }
  if (a.instructed && run.model.provenance().find(kTakesInstructions) == std::string_view::npos)
    throw Failure{1, a.model +
                         ": has not learnt to write on command (its provenance does not say so); -i goes on with "
                         "a text"};
  ids = run.tokenizer.encode(a.file.empty() ? a.prompt : read_all(a.file));
  if (ids.empty() && run.tokenizer.bos() >= 0) ids.push_back(run.tokenizer.bos());  // something has to come first
  if (ids.empty()) throw Failure{2, "the prompt is empty, and this model has no token to begin with; give one with -i"};
  return ids;
}

inline void check_room(const Session& session, size_t tokens) {
  const int room = session.context() - session.position();
  if (tokens > size_t(room))
    throw Failure{1, "prompt: " + std::to_string(tokens) + " tokens, but the context has room for " +
                         std::to_string(room) + "; shorten it, or give more with --ctx"};
}

// All of the prompt but the last batch, which generate() takes; with a word on how far it is where that takes long.
inline std::vector<int> feed(Run& run, Session& session, Sampler& pick, std::vector<int> ids) {
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

// Prints what the model adds to the prompt; returns the new ids.
inline std::vector<int> write_on(Run& run, Session& session, Sampler& pick, Tokenizer::Stream& stream,
                                 const std::vector<int>& prompt) {
  const Arguments& a = run.args;
  const bool chat = a.mode == "chat";
  const int limit = a.n > 0 ? a.n : a.n == 0 || chat ? std::numeric_limits<int>::max() : 256;
  check_room(session, prompt.size());
  const double start = seconds();
  double first = 0;
  StopFilter filter(a.stop);
  std::vector<int> ids;
  const bool good =
      generate(session, pick, feed(run, session, pick, prompt), limit, run.model.chat.stop_ids, [&](int id) {
        if (ids.empty()) first = seconds();
        ids.push_back(id);
        run.out.write(filter.push(run.tokenizer.type(id) == Tokenizer::PieceType::control ? "" : stream.push(id)));
        return !filter.stopped && !interrupted;
      });
  const double end = seconds();
  if (!filter.stopped) run.out.write(filter.push(stream.flush()) + filter.flush());
  run.figures.prompt_tokens += prompt.size(), run.figures.tokens += ids.size();
  run.figures.prompt_seconds += (ids.empty() ? end : first) - start;
  run.figures.seconds += ids.empty() ? 0 : end - first;
  if (!good) fail(session);
  stop_if_interrupted();
  return ids;
}

inline void print_figures(const Run& run, const Session& session) {
  const Figures& f = run.figures;
  if (run.args.quiet) return;
  // The first token comes from the prompt's logits; every other one from a pass over all weights.
  const double rate = f.tokens > 1 && f.seconds > 0 ? double(f.tokens - 1) / f.seconds : 0;
  std::fprintf(
      stderr,
      "prompt %zu tokens, %.1f tok/s; new %zu tokens, %.1f tok/s, %.1f GB/s; peak memory %.1f MB; %s, %d thread%s",
      f.prompt_tokens, f.prompt_seconds > 0 ? double(f.prompt_tokens) / f.prompt_seconds : 0, f.tokens, rate,
      rate * double(run.model.bytes_per_token) / 1e9, double(peak_memory()) / 1e6, session.kernel(), session.threads(),
      session.threads() == 1 ? "" : "s");
  if (run.args.temperature > 0) std::fprintf(stderr, "; seed %llu", static_cast<unsigned long long>(run.seed));
  std::fprintf(stderr, "\n");
}

inline void generate_text(Run& run) {
  OpenSession open(run.model, run.session_options());
  const std::vector<int> prompt = prompt_ids(run);
  check_room(open.session, prompt.size());
  Sampler pick(run.sampler_options());
  Tokenizer::Stream stream(run.tokenizer);
  for (int id : run.args.instructed ? std::vector<int>() : prompt)  // an order is no part of the story
    run.out.write(run.tokenizer.type(id) == Tokenizer::PieceType::control ? "" : stream.push(id));
  try {
    write_on(run, open.session, pick, stream, prompt);
    run.out.end_text();
  } catch (const Failure& f) {
    if (f.status == 130) run.out.end_text();
    throw;
  }
  print_figures(run, open.session);
}

inline bool next_message(Run& run, bool first, std::string& message) {
  const Arguments& a = run.args;
  if (first && (a.has_prompt || !a.file.empty())) return message = a.file.empty() ? a.prompt : read_all(a.file), true;
  if (isatty(0)) std::fprintf(stderr, "> ");
  message.clear();
  int c;
  while ((c = std::fgetc(stdin)) != EOF && c != '\n') message += char(c);
  stop_if_interrupted();
  return c != EOF || !message.empty();
}

inline void chat(Run& run) {
  if (!run.model.chat.known())
    throw Failure{
        1, run.args.model + ": has no chat template, so it is not known how to talk to it; -i goes on with a text"};
  OpenSession open(run.model, run.session_options());
  Session& session = open.session;
  Sampler pick(run.sampler_options());
  const Encode encode = [&](std::string_view text, bool bos) { return run.tokenizer.encode(text, bos); };
  std::vector<int> reply;
  std::string message;
  for (bool first = true; next_message(run, first, message); first = false) {
    std::vector<int> ids = chat_turn(run.model.chat, encode, run.args.system, message, first);
    const int fed = session.position();
    if (!reply.empty()) ids.insert(ids.begin(), reply.back());  // said, but not yet heard by itself
    check_room(session, ids.size());
    Tokenizer::Stream stream(run.tokenizer);
    std::vector<int> said = write_on(run, session, pick, stream, ids);
    run.out.write("\n");
    const bool all_fed = session.position() == fed + int(ids.size() + said.size());
    reply = all_fed || said.empty() ? std::vector<int>() : std::vector<int>{said.back()};
  }
  if (isatty(0)) std::fprintf(stderr, "\n");
  print_figures(run, session);
}

inline void write_logits(Run& run) {
  OpenSession open(run.model, run.session_options());
  const std::vector<int> ids = prompt_ids(run);
  check_room(open.session, ids.size());
  const std::string temporary = run.args.logits + ".tmp." + std::to_string(getpid());
  std::FILE* file = std::fopen(temporary.c_str(), "wb");
  if (!file) throw Failure{1, temporary + ": " + std::strerror(errno)};
  const size_t row = size_t(run.model.config.vocab_size) * sizeof(float), batch = size_t(run.args.batch);
  bool wrote = true, ran = true;
  for (size_t i = 0; i < ids.size() && wrote && ran; i += batch)
    ran = open.session.forward(ids.data() + i, std::min(batch, ids.size() - i), [&](size_t, const float* logits) {
      return wrote = std::fwrite(logits, 1, row, file) == row;
    });
  wrote = std::fclose(file) == 0 && wrote;
  const int why = errno;
  if (ran && wrote && std::rename(temporary.c_str(), run.args.logits.c_str()) == 0) return;
  std::remove(temporary.c_str());
  if (!ran) fail(open.session);
  throw Failure{1, run.args.logits + ": " + std::strerror(wrote ? errno : why)};
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
// has seen at least 256 before it. A text shorter than a window counts from its second token.
struct Windows {
  std::vector<int> ids;
  size_t size, from, count;  // of a window; its first token that counts; windows

  Windows(std::vector<int> text, int longest, const std::string& file) : ids(std::move(text)) {
    size = std::min<size_t>({512, size_t(longest), ids.size()});
    if (size < 2) throw Failure{1, file + ": expected at least 2 tokens, found " + std::to_string(ids.size())};
    from = size < 512 ? 1 : 256;
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

inline void perplexity(Run& run) {
  const Windows text(run.tokenizer.encode(read_all(run.args.perplexity)), run.model.config.max_seq_len,
                     run.args.perplexity);
  SessionOptions options = run.session_options();
  options.context = int(text.size);
  OpenSession open(run.model, options);
  Perplexity found;
  for (size_t w = 0; w < text.count; w++) {
    const int* ids = text.window(w);
    open.session.rewind(0);
    const bool good = open.session.forward(ids, text.size, [&](size_t i, const float* logits) {
      if (text.counts(i)) found.add(surprise(logits, run.model.config.vocab_size, ids[i + 1]));
      return true;
    });
    if (!good) fail(open.session);
    if (isatty(2)) std::fprintf(stderr, "\rwindow %zu of %zu: %.4f ", w + 1, text.count, found.value());
  }
  if (isatty(2)) std::fprintf(stderr, "\r\033[K");
  char line[160];
  std::snprintf(line, sizeof line, "perplexity %.4f +- %.4f (%.0f tokens of %zu)\n", found.value(), found.error(),
                found.count, text.ids.size());
  run.out.write(line);
}

inline void self_test(Run& run) {
  if (!run.model.verify_tensors()) throw Failure{1, run.args.model + ": " + run.model.error};
  const std::vector<int>& ids = run.model.self_test_ids;
  if (ids.empty()) throw Failure{1, run.args.model + ": the tensors are whole, but the file has no self-test"};
  for (const std::string& name : kernel_names()) {
    if (!run.args.kernel.empty() && name != run.args.kernel) continue;
    SessionOptions options = run.session_options();
    options.kernel = name.c_str(), options.kv = KvType::automatic, options.context = int(ids.size());
    OpenSession open(run.model, options);
    const float* logits = open.session.forward(ids.data(), ids.size());
    if (!logits) fail(open.session);
    if (hash_logits(logits, run.model.config.vocab_size) != run.model.self_test_hash)
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

inline void print_memory(Run& run) {
  const SessionOptions options = run.session_options();
  const int full = options.context > 0 ? options.context : run.model.config.max_seq_len, some = std::min(128, full);
  const std::vector<MemoryItem> a = memory_of(run.model, options, some), b = memory_of(run.model, options, full);
  size_t sum_a = resident_now(), sum_b = sum_a;
  char line[120];
  const auto row = [&](const char* name, size_t x, size_t y) {
    std::snprintf(line, sizeof line, "  %-24s %10.1f %10.1f\n", name, double(x) / 1e6, double(y) / 1e6);
    run.out.write(line);
  };
  std::snprintf(line, sizeof line, "memory in MB, after    %5d tokens %5d tokens\n", some, full);
  run.out.write(line);
  row("program and tokenizer", sum_a, sum_a);
  for (size_t i = 0; i < a.size(); i++) {
    row(a[i].name, a[i].bytes, b[i].bytes);
    sum_a += a[i].bytes, sum_b += b[i].bytes;
  }
  row("sum", sum_a, sum_b);
}

inline void info(Run& run) {
  const Model& m = run.model;
  const Config& c = m.config;
  uint64_t parameters = 0;
  for (const TensorSpec& spec : tensor_specs(c))
    if (!(c.tied && spec.name == "output")) parameters += uint64_t(spec.rows) * uint64_t(spec.cols);
  char text[2048];
  std::snprintf(text, sizeof text,
                "%.1f M parameters: dim %d, hidden %d, %d layers, %d heads, %d KV heads of %d, vocabulary %d%s\n"
                "trained for %d positions; rope theta %g, scaling %s; norm eps %g\n"
                "matrices %s, embedding %s; file %.1f MB; tokenizer %s, %d pieces; chat %s\n",
                double(parameters) / 1e6, c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads, c.head_dim,
                c.vocab_size, c.tied ? " (tied)" : "", c.max_seq_len, c.rope_theta,
                c.rope_scaling == RopeScaling::none     ? "none"
                : c.rope_scaling == RopeScaling::linear ? "linear"
                                                        : "llama3",
                c.norm_eps, type_name(m.layers[0].wq.type), type_name(m.token_embedding.type),
                double(m.file_bytes) / 1e6,
                run.tokenizer.kind() == Tokenizer::Kind::sentencepiece ? "SentencePiece" : "byte-level BPE",
                run.tokenizer.size(), m.chat.known() ? "yes" : "no");
  run.out.write(text + std::string(m.provenance()) +
                (m.provenance().empty() || m.provenance().back() == '\n' ? "" : "\n"));
  print_memory(run);
}

inline void encode(Run& run) {
  std::string line;
  for (int id : run.tokenizer.encode(run.args.encode)) line += (line.empty() ? "" : ",") + std::to_string(id);
  run.out.write(line + "\n");
}

inline void dispatch(const Arguments& a) {
  if (a.help) return print_help();
  if (a.version) return void(std::printf("run %s, model format %u\n", kVersion, kFormatVersion));
  if (a.kernels) {
    for (const std::string& name : kernel_names()) std::printf("%s\n", name.c_str());
    return;
  }
  Run run(a);
  if (a.info) return info(run);
  if (a.self_test) return self_test(run);
  if (a.has_encode) return encode(run);
  if (!a.perplexity.empty()) return perplexity(run);
  if (!a.logits.empty()) return write_logits(run);
  if (a.mode == "chat") return chat(run);
  generate_text(run);
}

// Ctrl-C ends the text, not the program in the middle of a character.
inline void catch_interrupts() {
  struct sigaction action = {};
  action.sa_handler = on_interrupt;
  action.sa_flags = SA_RESETHAND;  // a second one kills
  sigaction(SIGINT, &action, nullptr);
  std::signal(SIGXFSZ, SIG_IGN);  // a file that may not grow is a failed write, which is told
}

// Were one of the three standard files closed, the next file opened would take its number.
inline void check_standard_files() {
  while (true) {
    const int fd = ::open("/dev/null", O_RDWR);
    if (fd == 1) throw Failure{1, "standard output: is closed"};
    if (fd > 2 || fd < 0) return void(fd > 2 && ::close(fd));
  }
}

// Runs a program's body; what it throws becomes one line on stderr and the exit status.
template <class F> int guarded(const char* program, const F& body) {
  try {
    check_standard_files();
    catch_interrupts();
    body();
    if (std::fflush(stdout) != 0) throw Failure{1, std::string("standard output: ") + std::strerror(errno)};
    return 0;
  } catch (const Failure& f) {
    if (!f.what.empty()) std::fprintf(stderr, "%s: %s\n", program, f.what.c_str());
    return f.status;
  } catch (const std::bad_alloc&) {
    return std::fprintf(stderr, "%s: out of memory\n", program), 1;
  }
}

inline int main(int argc, char** argv) {
  return guarded("run", [&] { dispatch(parse(argc, argv)); });
}

}  // namespace pocket::cli
#endif  // POCKET_CLI_HPP
