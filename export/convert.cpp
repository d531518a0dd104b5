// convert.cpp: export/convert, from a checkpoint to a model.bin. See --help.

#define RUN_NO_MAIN
#include "../run.cpp"

#include <csignal>
#include <ctime>
#include <utility>

#include "../tokenizer.hpp"
#include "calibrate.hpp"
#include "chat_template.hpp"
#include "model_writer.hpp"
#include "open_checkpoint.hpp"
#include "random_model.hpp"

namespace {

using namespace pocket;

constexpr const char* kHelp =
    "convert: a checkpoint to a model.bin that run reads\n\n"
    "  export/convert IN -o OUT.bin [--type q4|q8|f32] [-z TOKENIZER]\n"
    "  export/convert --random SHAPE -o OUT.bin [--type q4|q8|f32]\n\n"
    "IN is recognised by its content:\n"
    "  a Hugging Face folder   config.json, safetensors (one file or shards; f32, f16, bf16), tokenizer.model or\n"
    "                          tokenizer.json, chat template\n"
    "  a GGUF file             F32, F16, BF16, Q8_0, Q4_0, Q4_1, with the tokenizer and chat template in it\n"
    "  a llama2.c checkpoint   the .bin of its first version; needs its tokenizer: -z tokenizer.model or "
    "tokenizer.bin\n\n"
    "  -o, --output FILE       the model file to write; it appears when it is whole\n"
    "  --type TYPE             q4: 4.125 bits a weight, the smallest and fastest [this]; q8: 8.5 bits, all but "
    "lossless;\n"
    "                          f32: 32 bits, the reference\n"
    "  -z, --tokenizer FILE    a tokenizer of its own, where the checkpoint has none, or another one\n"
    "  --random SHAPE          random weights of a known shape, to measure speed and memory with; SHAPE is one of\n"
    "                          ";

struct Failure {
  int status;
  std::string what;
};

struct Arguments {
  std::string in, out, type = "q4", tokenizer, random, calibrate, report, head;
};

volatile std::sig_atomic_t interrupted = 0;

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

void print_help() {
  std::fputs(kHelp, stdout);
  for (const Preset& p : presets()) std::printf("%s%s", &p == &presets()[0] ? "" : ", ", p.name);
  std::printf("\n\nExit: 0 done, 1 failed, 2 wrong usage, 130 interrupted.\n");
}

Arguments parse(int argc, char** argv) {
  Arguments a;
  const struct {
    const char *letter, *name;
    std::string* into;
  } options[] = {{"-o", "--output", &a.out},
                 {"", "--type", &a.type},
                 {"-z", "--tokenizer", &a.tokenizer},
                 {"", "--calibrate", &a.calibrate},
                 {"", "--report", &a.report},
                 {"", "--head", &a.head},
                 {"", "--random", &a.random}};
  for (int i = 1; i < argc; i++) {
    const std::string word = argv[i];
    if (word.size() < 2 || word[0] != '-') {
      if (!a.in.empty()) throw Failure{2, "'" + word + "': one checkpoint at a time, and it is '" + a.in + "'"};
      a.in = word;
      continue;
    }
    std::string* into = nullptr;
    for (const auto& o : options)
      if (word == o.letter || word == o.name) into = o.into;
    if (!into) throw Failure{2, word + ": no such option; see export/convert --help"};
    if (++i >= argc) throw Failure{2, word + ": expected a value behind it"};
    *into = argv[i];
  }
  if (a.type != "q4" && a.type != "q8" && a.type != "f32")
    throw Failure{2, "--type: expected q4, q8 or f32, found '" + a.type + "'"};
  if (a.in.empty() == a.random.empty())
    throw Failure{2, "expected a checkpoint, or --random SHAPE; see export/convert --help"};
  if (a.out.empty()) throw Failure{2, "expected -o OUT.bin: the model file to write"};
  return a;
}

Type type_of(const std::string& name) { return name == "f32" ? Type::f32 : name == "q8" ? Type::q8 : Type::q4; }

// A line that is written over, on a terminal; elsewhere one now and then, if it takes long.
class ProgressBar {
 public:
  bool operator()(const TensorSpec& spec, uint64_t done, uint64_t total) {
    const double now = seconds(), elapsed = now - start_, share = double(done) / double(total);
    const bool terminal = isatty(2);
    if (!interrupted && done < total && now - shown_ < (terminal ? 0.1 : 10)) return true;
    if (elapsed < 1 && done < total) return !interrupted;
    shown_ = now;
    const int left = share > 0 ? int(elapsed / share - elapsed + 0.5) : 0, bars = int(share * 30);
    if (terminal && elapsed > 1) {
      std::fprintf(stderr, "\r[%.*s%*s] %3.0f%%  %-28s %d s left \033[K", bars, "##############################",
                   30 - bars, "", share * 100, spec.name.c_str(), left);
      if (done == total) std::fprintf(stderr, "\r\033[K");
    } else if (!terminal && done < total) {
      std::fprintf(stderr, "convert: %.0f%%, %s, %d s left\n", share * 100, spec.name.c_str(), left);
    }
    return !interrupted;
  }

 private:
  double start_ = seconds(), shown_ = start_;
};

std::string quality(Type type) {
  return type == Type::f32  ? "f32, as they are"
         : type == Type::q8 ? "q8, groups of 32"
                            : "q4, scales searched by squared error";
}

// The ids that the self-test runs: spread over the vocabulary, the same for every model.
std::vector<int> self_test_prompt(int vocab_size, int bos) {
  std::vector<int> ids;
  if (bos >= 0) ids.push_back(bos);
  for (uint64_t i = 1; ids.size() < 8; i++) ids.push_back(int(i * 0x9E3779B97F4A7C15 >> 33) % vocab_size);
  return ids;
}

void write_model(const Arguments& a, ModelParts& parts, const ReadRows& read) {
  parts.type = type_of(a.type);
  parts.threads = std::max(1, int(std::thread::hardware_concurrency()));
  ModelWriter writer;
  ProgressBar bar;
  const double start = seconds();
  std::map<std::string, EncodedTensor> made;
  if (!a.calibrate.empty()) {
    std::string text, error;
    if (!read_small_file(a.calibrate, 64 << 20, text, error)) throw Failure{1, error};
    Tokenizer tokenizer;
    tokenizer.load(parts.tokenizer);
    const std::vector<int> ids = tokenizer.encode(text, false), bos = tokenizer.encode("", true);
    std::vector<std::vector<int>> windows;
    const size_t most = size_t(knob("TOKENS", 1e9));
    for (size_t i = 0; i < std::min(most, ids.size()); i += kWindow - bos.size()) {
      windows.push_back(bos);
      windows.back().insert(windows.back().end(), ids.begin() + i, ids.begin() + std::min(ids.size(), i + kWindow - bos.size()));
    }
    Calibration cal(parts.config, windows, read, parts.threads);
    double at = seconds();
    if (!cal.run(a.head == "q8" ? Type::q8 : Type::q4, [&](EncodedTensor&& t) {
          if (knob("VERBOSE", 0)) std::fprintf(stderr, "%s cost %.4g  %.1f s\n", t.spec.name.c_str(), t.error, seconds() - at);
          const std::string name = t.spec.name;
          made[name] = std::move(t);
          return !interrupted;
        }))
      throw Failure{1, cal.error};
    for (auto& [name, t] : made) {
      ReadyTensor r = {t.type, {}, [&t = t](uint64_t at, size_t n, void* out, std::string&) {
                         std::memcpy(out, t.bytes.data() + at, n);
                         return true;
                       }};
      std::memcpy(r.codebook, t.codebook, 16);
      parts.ready[name] = r;
    }
  }
  if (!writer.write(a.out, parts, read, std::ref(bar))) {
    if (isatty(2)) std::fprintf(stderr, "\r\033[K");
    if (interrupted) throw Failure{130, "interrupted; nothing was written"};
    throw Failure{1, writer.error};
  }
  std::fprintf(stderr, "%s: %s, %.1f MB, in %.1f s; try: ./run %s %s\n", a.out.c_str(), a.type.c_str(),
               double(writer.file_bytes()) / 1e6, seconds() - start, a.out.c_str(),
               parts.chat.known() ? "-m chat" : "-i \"Once upon a time\"");
}

void convert_random(const Arguments& a) {
  const Preset* preset = nullptr;
  for (const Preset& p : presets())
    if (a.random == p.name) preset = &p;
  if (!preset) {
    std::string names;
    for (const Preset& p : presets()) names += std::string(" ") + p.name;
    throw Failure{2, "--random: expected one of" + names + ", found '" + a.random + "'"};
  }
  ModelParts parts;
  parts.config = preset->config;
  Checkpoint c;
  c.config = parts.config;
  c.vocabulary = random_vocabulary(c.config.vocab_size);
  std::string error;
  if (!a.tokenizer.empty() && !read_tokenizer_file(a.tokenizer, c, error)) throw Failure{1, error};
  parts.tokenizer = Tokenizer::to_blob(c.vocabulary);
  parts.provenance =
      "source: random weights of the shape " + a.random + "\nweights: " + quality(type_of(a.type)) + "\n";
  parts.self_test_ids = self_test_prompt(c.config.vocab_size, c.vocabulary.bos);
  write_model(a, parts, [](const TensorSpec& spec, int64_t first, int64_t count, float* out, std::string&) {
    random_rows(spec, first, count, out);
    return true;
  });
}

void convert_checkpoint(const Arguments& a) {
  Checkpoint c;
  std::string error;
  if (!open_checkpoint(a.in, a.tokenizer, c, error)) throw Failure{1, error};
  if (!c.has_tokenizer)
    throw Failure{1, a.in + ": has no tokenizer; give one with -z (a SentencePiece tokenizer.model)"};
  ModelParts parts;
  parts.config = c.config;
  parts.tokenizer = Tokenizer::to_blob(c.vocabulary);
  Tokenizer tokenizer;
  if (!tokenizer.load(parts.tokenizer)) throw Failure{1, tokenizer.error};
  std::string family = "none";
  if (!c.chat_template.empty() && !recognise_chat_template(c.chat_template, tokenizer, parts.chat, family))
    std::fprintf(stderr, "convert: chat template not understood (%s); the model will go on with texts, but not chat\n",
                 family.c_str());
  for (int id : c.stop_ids)
    if (std::find(parts.chat.stop_ids.begin(), parts.chat.stop_ids.end(), id) == parts.chat.stop_ids.end())
      parts.chat.stop_ids.push_back(id);
  const auto line = [](const char* what, const std::string& text) {
    return text.empty() ? "" : what + (": " + text) + "\n";
  };
  parts.provenance = line("name", c.name) + line("source", c.source) + line("format", c.format) +
                     line("licence", c.licence) + line("weights", quality(type_of(a.type))) +
                     line("chat template", family);
  parts.self_test_ids = self_test_prompt(c.config.vocab_size, c.vocabulary.bos);
  write_model(a, parts, [&](const TensorSpec& spec, int64_t first, int64_t count, float* out, std::string& why) {
    return c.read_rows(spec.name, first, count, out, why);
  });
}

int convert_main(int argc, char** argv) {
  std::signal(SIGINT, [](int) { interrupted = 1; });
  std::signal(SIGTERM, [](int) { interrupted = 1; });
  std::signal(SIGXFSZ, SIG_IGN);  // a file that may not grow is a failed write, which is told
  try {
    for (int i = 1; i < argc; i++)
      if (!std::strcmp(argv[i], "--help") || !std::strcmp(argv[i], "-h")) return print_help(), 0;
    const Arguments a = parse(argc, argv);
    a.random.empty() ? convert_checkpoint(a) : convert_random(a);
    return 0;
  } catch (const Failure& f) {
    std::fprintf(stderr, "convert: %s\n", f.what.c_str());
    return f.status;
  } catch (const std::bad_alloc&) {
    return std::fprintf(stderr, "convert: out of memory\n"), 1;
  }
}

}  // namespace

int main(int argc, char** argv) { return convert_main(argc, argv); }
