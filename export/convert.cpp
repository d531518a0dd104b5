// convert.cpp: export/convert, from a checkpoint to a model.bin. See --help.

#include "engine.hpp"

#include <csignal>
#include <ctime>
#include <sstream>
#include <utility>

#include "calibrate.hpp"
#include "calibration_text.hpp"
#include "chat_template.hpp"
#include "lora.hpp"
#include "../models/megabyte/megabyte_checkpoint.hpp"
#include "../models/megabyte/megabyte_writer.hpp"
#include "model_rows.hpp"
#include "open_checkpoint.hpp"
#include "program.hpp"
#include "random_model.hpp"
#include "report.hpp"

namespace {

using namespace pocket;

constexpr const char* kHelp =
    "convert: a checkpoint to a model.bin that run reads\n\n"
    "  export/convert IN -o OUT.bin [--type q4|q8|f32] [-z TOKENIZER] [--lora FOLDER] [--calibrate TEXT]\n"
    "  export/convert IN.pt --config CONFIG.json -o OUT.bin [--type q4|q8|f32]\n"
    "  export/convert --random SHAPE -o OUT.bin [--type q4|q8|f32]\n\n"
    "IN is recognised by its content:\n"
    "  a Hugging Face folder   config.json, safetensors or PyTorch's .bin (one file or shards; f32, f16, bf16),\n"
    "                          tokenizer.model or tokenizer.json, chat template\n"
    "  a PyTorch file or its   .pth, .pt, .bin of torch.save(), read as data, nothing in it is run: lit-gpt's with\n"
    "  folder                  lit_config.json (TinyLlama's own), Meta's with params.json, llama2.c's ckpt.pt\n"
    "  a GGUF file             version 2 or 3; F32, F16, BF16, Q8_0, Q4_0 to Q5_1, Q2_K to Q6_K, IQ4_NL, IQ4_XS;\n"
    "                          tokenizer and chat template in it\n"
    "  a llama2.c checkpoint   .bin of version 0, 1 (f32) or 2 (int8); needs its tokenizer: -z tokenizer.model or\n"
    "                          tokenizer.bin\n"
    "  a MEGABYTE checkpoint   a state_dict of MEGABYTE-pytorch 0.3.2 to 0.3.6, saved by torch.save(), of two stages;\n"
    "                          needs --config\n"
    "  a model.bin of f32      of models/train, or of this program: as another type, or with --lora\n\n"
    "  -o, --output FILE       the model file to write; it appears when it is whole\n"
    "  --type TYPE             q4: 4.125 bits a weight, the smallest and fastest [this]; q8: 8.5 bits, all but "
    "lossless;\n"
    "                          f32: 32 bits, the reference\n"
    "  --calibrate TEXT        q4 that loses a sixth as much: runs a text (UTF-8, some 100 kB, like what the model is\n"
    "                          for) through the model and quantizes it for that; takes minutes, goes on where it was\n"
    "                          interrupted. TEXT is a file, or self: the model writes its own\n"
    "  --head q8               with q4: the output matrix at 8.5 bits. SmolLM2-135M, calibrated: KL from f32\n"
    "                          0.041 instead of 0.057, 117 MB instead of 102; TinyLlama-1.1B: 36 MB more\n"
    "  --report FILE           with --calibrate: what it did to each matrix; FILE ends in .csv or .html\n"
    "  --lora FOLDER[:SCALE]   merges a LoRA adapter into the model, SCALE times [1]; several times: several "
    "adapters.\n"
    "                          FOLDER is as PEFT saves it: adapter_config.json, adapter_model.safetensors (.bin). "
    "Example:\n"
    "                          export/convert tinyllama --lora pirate --lora rhymes:0.5 -o model.bin\n"
    "  --config FILE           of a MEGABYTE checkpoint: the arguments of its constructor as JSON, {\"num_tokens\": "
    "256,\n"
    "                          \"dim\": [512, 256], \"depth\": [6, 4], \"max_seq_len\": [256, 4], ...}\n"
    "  -z, --tokenizer FILE    a tokenizer of its own, where the checkpoint has none, or another one: "
    "tokenizer.model,\n"
    "                          tokenizer.json (byte-level or made from SentencePiece) or llama2.c's tokenizer.bin\n"
    "  --template NAME         how a chat is laid out, where the checkpoint does not say or says something unknown:\n"
    "                          {families}\n"
    "  --random SHAPE          random weights of a known shape, to measure speed and memory with; SHAPE is one of\n"
    "                          ";

struct Arguments {
  std::string in, out, type = "q4", tokenizer, random, calibrate, steps, head, report, chat_template, config;
  std::vector<std::string> lora;
};

std::string duration(double s) {
  return s < 100 ? std::to_string(int(s + 0.5)) + " s" : std::to_string(int(s / 60 + 0.5)) + " min";
}

void print_help() {
  const std::string help = kHelp, mark = "{families}";
  std::string families = chat_family_keys();
  families.insert(families.rfind(',') + 2, "or ");
  const size_t at = help.find(mark);
  std::printf("%s%s%s", help.substr(0, at).c_str(), families.c_str(), help.c_str() + at + mark.size());
  for (const Preset& p : presets()) std::printf("%s, ", p.name);
  for (const MegabytePreset& p : megabyte_presets())
    std::printf("%s%s", &p == &megabyte_presets()[0] ? "" : ", ", p.name);
  std::printf("\n\nExit: 0 done, 1 failed, 2 wrong usage, 130 interrupted.\n");
}

void check_q4_options(const Arguments& a) {
  const struct {
    const char* name;
    const std::string& value;
  } all[] = {{"--calibrate", a.calibrate}, {"--head", a.head}};
  for (const auto& o : all)
    if (!o.value.empty() && a.type != "q4")
      throw Failure{2, o.name + std::string(": is for --type q4, and the type is ") + a.type};
  if (!a.head.empty() && a.head != "q8" && a.head != "q4")
    throw Failure{2, "--head: expected q4 or q8, found '" + a.head + "'"};
  if (CalibrationOptions options; !a.steps.empty() && !stop_after(a.steps, options))
    throw Failure{2, "--calibrate-steps: expected search, gptq, mismatch or all, found '" + a.steps + "'"};
  if (!a.steps.empty() && a.calibrate.empty())
    throw Failure{2, "--calibrate-steps: is of a calibration, so it needs --calibrate TEXT"};
  const auto ends = [&](const std::string& with) {
    return a.report.size() > with.size() && a.report.substr(a.report.size() - with.size()) == with;
  };
  if (a.report.empty()) return;
  if (a.calibrate.empty()) throw Failure{2, "--report: tells of a calibration, so it needs --calibrate TEXT"};
  if (!ends(".csv") && !ends(".html"))
    throw Failure{2, "--report: expected a name that ends in .csv or .html, found '" + a.report + "'"};
}

bool is_megabyte(const Arguments& a) {
  const auto& all = megabyte_presets();
  return !a.config.empty() ||
         std::any_of(all.begin(), all.end(), [&](const MegabytePreset& p) { return a.random == p.name; });
}

// What a model of bytes has no use for.
void check_bytes_options(const Arguments& a) {
  if (!is_megabyte(a)) return;
  if (!a.config.empty() && !a.random.empty()) throw Failure{2, "--config: is for a checkpoint, not for --random"};
  const struct {
    const char* name;
    bool given;
  } all[] = {{"--tokenizer", !a.tokenizer.empty()},
             {"--calibrate", !a.calibrate.empty()},
             {"--template", !a.chat_template.empty()},
             {"--lora", !a.lora.empty()}};
  for (const auto& o : all)
    if (o.given) throw Failure{2, o.name + std::string(": is for a Llama; a MEGABYTE model takes and gives bytes")};
}

Arguments parse(int argc, char** argv) {
  Arguments a;
  const struct {
    const char *letter, *name;
    std::string* into;
  } options[] = {{"-o", "--output", &a.out},          {"", "--type", &a.type},
                 {"-z", "--tokenizer", &a.tokenizer}, {"", "--random", &a.random},
                 {"", "--calibrate", &a.calibrate},   {"", "--head", &a.head},
                 {"", "--report", &a.report},         {"", "--template", &a.chat_template},
                 {"", "--config", &a.config},         {"", "--calibrate-steps", &a.steps}};
  for (int i = 1; i < argc; i++) {
    const std::string word = argv[i];
    if (word.size() < 2 || word[0] != '-') {
      if (!a.in.empty()) throw Failure{2, "'" + word + "': one checkpoint at a time, and it is '" + a.in + "'"};
      a.in = word;
      continue;
    }
    std::string* into = word == "--lora" ? &a.lora.emplace_back() : nullptr;
    for (const auto& o : options)
      if (word == o.letter || word == o.name) into = o.into;
    if (!into) throw Failure{2, word + ": no such option; see export/convert --help"};
    if (++i >= argc) throw Failure{2, word + ": expected a value behind it"};
    *into = argv[i];
  }
  if (a.type != "q4" && a.type != "q8" && a.type != "f32")
    throw Failure{2, "--type: expected q4, q8 or f32, found '" + a.type + "'"};
  if (!a.chat_template.empty() && !find_chat_family(a.chat_template))
    throw Failure{2, "--template: expected one of " + chat_family_keys() + ", found '" + a.chat_template + "'"};
  check_q4_options(a);
  if (a.in.empty() == a.random.empty())
    throw Failure{2, "expected a checkpoint, or --random SHAPE; see export/convert --help"};
  if (!a.lora.empty() && !a.random.empty()) throw Failure{2, "--lora: is for a checkpoint, not for --random"};
  if (a.out.empty()) throw Failure{2, "expected -o OUT.bin: the model file to write"};
  check_bytes_options(a);
  return a;
}

Type type_of(const std::string& name) { return name == "f32" ? Type::f32 : name == "q8" ? Type::q8 : Type::q4; }

// A line that is written over, on a terminal; elsewhere one now and then, if it takes long.
class ProgressBar {
 public:
  // share: of the work that is done. The first call tells where it starts.
  bool operator()(double share, const std::string& what) {
    const double now = seconds(), elapsed = now - start_;
    const bool terminal = isatty(2);
    if (first_ < 0) first_ = share;
    if (!interrupted && share < 1 && now - shown_ < (terminal ? 0.1 : 10)) return true;
    if (elapsed < 1 && share < 1) return !interrupted;
    shown_ = now;
    const int bars = int(share * 30);
    const std::string left = share > first_ ? duration(elapsed / (share - first_) * (1 - share)) + " left" : "";
    if (terminal && elapsed > 1) {
      std::fprintf(stderr, "\r[%.*s%*s] %3.0f%%  %-28s %s \033[K", bars, "##############################", 30 - bars,
                   "", share * 100, what.c_str(), left.c_str());
      if (share >= 1) std::fprintf(stderr, "\r\033[K");
    } else if (!terminal && share < 1) {
      std::fprintf(stderr, "convert: %.0f%%, %s, %s\n", share * 100, what.c_str(), left.c_str());
    }
    return !interrupted;
  }

 private:
  double start_ = seconds(), shown_ = start_, first_ = -1;
};

std::string quality(const Arguments& a) {
  if (a.type != "q4") return a.type == "f32" ? "f32, as they are" : "q8, groups of 32";
  const std::string how = a.calibrate.empty()     ? "errors weighted by a guess of the inputs"
                          : a.calibrate == "self" ? "calibrated on its own text"
                                                  : "calibrated on " + base_name(a.calibrate);
  const std::string steps = a.steps.empty() || a.steps == "all" ? "" : ", steps up to " + a.steps;
  return "q4, " + how + steps + (a.head == "q8" ? ", output q8" : "");
}

void write_file(const std::string& path, const ModelParts& parts, const ReadRows& read, uint64_t* bytes = nullptr) {
  ModelWriter writer;
  ProgressBar bar;
  const bool written = writer.write(path, parts, read, [&](const TensorSpec& spec, uint64_t done, uint64_t total) {
    return bar(double(done) / double(total), spec.name);
  });
  if (bytes) *bytes = writer.file_bytes();
  if (written) return;
  if (isatty(2)) std::fprintf(stderr, "\r\033[K");
  if (interrupted) throw Failure{130, "interrupted; nothing was written"};
  throw Failure{1, writer.error};
}

// The text to calibrate with, in tokens.
Windows calibration_text(const Arguments& a, const ModelParts& parts, const ReadRows& read) {
  Windows windows;
  std::string error;
  Tokenizer tokenizer;
  if (!tokenizer.load(parts.tokenizer)) throw Failure{1, tokenizer.error};
  if (a.calibrate != "self") {
    if (!read_text(a.calibrate, parts.config, tokenizer, windows, error)) throw Failure{1, error};
    return windows;
  }
  ModelParts temporary = parts;
  temporary.type = Type::q8;
  const std::string path = a.out + ".self";
  write_file(path, temporary, read);
  const std::vector<int> bos = tokenizer.encode("", true);
  ProgressBar bar;
  const bool done = write_own_text(
      path, bos.empty() ? -1 : bos[0], parts.threads, [&](double share) { return bar(share, "writes its own text"); },
      windows, error);
  unlink(path.c_str());
  if (interrupted) throw Failure{130, "interrupted; nothing was written"};
  if (!done) throw Failure{1, error};
  return windows;
}

// Everything that the result of a calibration depends on; of the weights, a row of each tensor.
uint64_t calibration_key(const CalibrationOptions& o, const ModelParts& parts, const Windows& windows,
                         const ReadRows& read) {
  Hash64 hash;
  const auto add = [&](auto value) { hash.update(&value, sizeof value); };
  const Config& c = parts.config;
  for (int v : {c.n_heads, c.n_kv_heads, c.head_dim, int(c.rope_scaling), c.rope_original_len, int(o.head)}) add(v);
  for (float v : {c.norm_eps, c.rope_theta, c.rope_factor, c.rope_low_freq, c.rope_high_freq}) add(v);
  for (double v : {o.shrink, o.shrink_few, o.damping, o.correction, double(o.lag)}) add(v);
  for (const auto& w : windows) hash.update(w.data(), w.size() * sizeof(int));
  for (const TensorSpec& spec : tensor_specs(c)) {
    std::vector<float> row(size_t(spec.cols));
    std::string error;
    if (!read(spec, spec.rows / 2, 1, row.data(), error)) throw Failure{1, error};
    hash.update(row.data(), row.size() * sizeof(float));
  }
  return hash.digest();
}

void announce(Calibration& calibration, const ModelParts& parts, size_t tokens, double disk) {
  const size_t enough = enough_tokens(parts.config);
  if (tokens < enough)
    std::fprintf(stderr,
                 "convert: calibrating: the text has %zu tokens; %zu (about %zu kB) or more would make it better\n",
                 tokens, enough, enough * 4 / 1000 + 1);
  std::fprintf(stderr, "convert: calibrating on %zu tokens: about %s, %.0f MB of memory, %.0f MB of disk meanwhile\n",
               tokens, duration(calibration.work() / calibration.speed()).c_str(), calibration.memory_bytes() / 1e6,
               disk / 1e6);
}

// Quantizes the matrices for a text, into a file beside the model's, from which the model is then written.
void calibrate(const Arguments& a, ModelParts& parts, const ReadRows& read, CalibrationFile& file,
               std::vector<ReportRow>& rows) {
  CalibrationOptions options;
  options.head = parts.head_q8 ? Type::q8 : Type::q4, options.threads = parts.threads;
  if (!a.steps.empty()) stop_after(a.steps, options);
  const Windows windows = calibration_text(a, parts, read);
  Calibration calibration(parts.config, windows, read, options);
  const size_t tokens = count_tokens(windows), stream_bytes = 8 * Calibration::stream_floats(parts.config, tokens);
  std::vector<TensorSpec> matrices;
  double disk = 2.0 * double(stream_bytes);
  for (const TensorSpec& spec : tensor_specs(parts.config))
    if (spec.layout == Layout::panels) matrices.push_back(spec), disk += double(tensor_bytes(spec, Type::q4));
  if (!file.open(a.out + ".calibrating", calibration_key(options, parts, windows, read), stream_bytes))
    throw Failure{1, file.error};
  announce(calibration, parts, tokens, disk);
  if (file.layers() > 0)
    std::fprintf(stderr, "convert: going on after layer %d of %d\n", file.layers(), parts.config.n_layers);
  ProgressBar bar;
  std::string what = "calibrating";
  const bool done = calibration.run(file, [&](double done, double total, const EncodedTensor* tensor) {
    char error[32] = "";
    if (tensor) std::snprintf(error, sizeof error, ", error %.1f%%", 100 * tensor->error);
    if (tensor) what = tensor->spec.name + error;
    return bar(done / total, what);
  });
  if (!done && interrupted && file.layers() > 0)
    throw Failure{130, "interrupted after layer " + std::to_string(file.layers()) + " of " +
                           std::to_string(parts.config.n_layers) + "; the same command goes on from there"};
  if (!done) file.remove();
  if (!done && interrupted) throw Failure{130, "interrupted; nothing was written"};
  if (!done) throw Failure{1, calibration.error};
  for (size_t i = 0; i < matrices.size(); i++) {
    const CalibrationFile::Record& r = file.records()[i];
    parts.ready[matrices[i].name] = file.ready(r);
    rows.push_back(
        {matrices[i].name, Type(r.entry.type), matrices[i].rows, matrices[i].cols, r.entry.bytes, r.error, r.drift});
  }
}

void write_model(const Arguments& a, ModelParts& parts, const ReadRows& read) {
  parts.type = type_of(a.type);
  parts.head_q8 = a.head == "q8";
  parts.threads = std::max(1, int(std::thread::hardware_concurrency()));
  const double start = seconds();
  CalibrationFile file;
  std::vector<ReportRow> rows;
  uint64_t bytes = 0;
  std::string error;
  if (!a.calibrate.empty()) calibrate(a, parts, read, file, rows);
  write_file(a.out, parts, read, &bytes);
  file.remove();
  if (!a.report.empty() && !write_report(a.report, a.out, rows, error)) throw Failure{1, error};
  std::fprintf(stderr, "%s: %s, %.1f MB, in %.1f s; try: ./run %s %s\n", a.out.c_str(), a.type.c_str(),
               double(bytes) / 1e6, seconds() - start, a.out.c_str(),
               parts.chat.known() ? "-m chat" : "-i \"Once upon a time\"");
  if (a.calibrate.empty() && parts.type == Type::q4 && a.random.empty() && !parts.architecture)
    std::fprintf(
        stderr,
        "convert: q4 loses a sixth as much if it is calibrated: --calibrate TEXT (on two cores some minutes for "
        "a model of 135M parameters, half an hour for 1.1B)\n");
}

// How the model chats: as --template says, or else as the checkpoint's own template does, if it is known. Returns the
// name of the family, "none" or why it is not known.
std::string set_chat_template(const Arguments& a, const Checkpoint& c, ModelParts& parts) {
  Tokenizer tokenizer;
  if (!tokenizer.load(parts.tokenizer)) throw Failure{1, tokenizer.error};
  std::string family = "none", error;
  if (!a.chat_template.empty()) {
    const ChatFamily& chosen = *find_chat_family(a.chat_template);
    if (!make_chat_template(chosen, tokenizer, parts.chat, error))
      throw Failure{1, "--template " + a.chat_template + ": " + error};
    family = std::string(chosen.name) + " (chosen)";
  } else if (!c.chat_template.empty() && !recognise_chat_template(c.chat_template, tokenizer, parts.chat, family)) {
    std::fprintf(stderr,
                 "convert: chat template not known (%s); the model will go on with texts, but not chat, unless one is "
                 "chosen: --template NAME, of %s\n",
                 family.c_str(), chat_family_keys().c_str());
  }
  for (int id : c.stop_ids)
    if (std::find(parts.chat.stop_ids.begin(), parts.chat.stop_ids.end(), id) == parts.chat.stop_ids.end())
      parts.chat.stop_ids.push_back(id);
  return family;
}

void convert_random(const Arguments& a) {
  const Preset* preset = nullptr;
  for (const Preset& p : presets())
    if (a.random == p.name) preset = &p;
  if (!preset) {
    std::string names;
    for (const Preset& p : presets()) names += std::string(" ") + p.name;
    for (const MegabytePreset& p : megabyte_presets()) names += std::string(" ") + p.name;
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
  set_chat_template(a, c, parts);
  parts.provenance = "source: random weights of the shape " + a.random + "\nweights: " + quality(a) + "\n";
  parts.self_test_ids = self_test_prompt(c.config.vocab_size, c.vocabulary.bos);
  write_model(a, parts, [](const TensorSpec& spec, int64_t first, int64_t count, float* out, std::string&) {
    random_rows(spec, first, count, out);
    return true;
  });
}

std::vector<LoraAdapter> open_adapters(const Arguments& a, const Config& model) {
  std::vector<LoraAdapter> adapters(a.lora.size());
  for (size_t i = 0; i < adapters.size(); i++) {
    LoraSource source;
    std::string error;
    if (!parse_lora(a.lora[i], source, error)) throw Failure{2, "--lora " + error};
    if (!adapters[i].open(source, model)) throw Failure{1, adapters[i].error};
  }
  return adapters;
}

// A model.bin of type f32: with adapters in it, or as another type. Whatever else it carries stays.
void convert_model(const Arguments& a, const Model& model) {
  if (!a.tokenizer.empty() || !a.chat_template.empty())
    throw Failure{2, (a.tokenizer.empty() ? "--template: " : "--tokenizer: ") + a.in + " is a model that has its own"};
  const std::vector<LoraAdapter> adapters = open_adapters(a, model.config);
  ModelParts parts;
  parts.config = model.config, parts.chat = model.chat, parts.self_test_ids = model.self_test_ids;
  parts.tokenizer = std::string(model.tokenizer_bytes());
  std::istringstream lines{std::string(model.provenance())};
  for (std::string text; std::getline(lines, text);)
    if (text.rfind("weights: ", 0) != 0) parts.provenance += text + "\n";
  for (const LoraAdapter& adapter : adapters) parts.provenance += "lora: " + adapter.description() + "\n";
  parts.provenance += "weights: " + quality(a) + "\n";
  const ReadRows read = rows_of_file(model);
  write_model(a, parts, [&](const TensorSpec& spec, int64_t first, int64_t count, float* out, std::string& why) {
    return read(spec, first, count, out, why) && merge_lora(adapters, spec, first, count, out, why);
  });
}

void convert_checkpoint(const Arguments& a) {
  Checkpoint c;
  std::string error;
  if (Model model; model.open(a.in.c_str()) && model.all_f32) return convert_model(a, model);
  if (!open_checkpoint(a.in, a.tokenizer, c, error))
    throw Failure{1, looks_like_megabyte(a.in) ? a.in +
                                                     ": a MEGABYTE checkpoint, which does not tell how it is built; "
                                                     "expected --config CONFIG.json beside it (see --help)"
                                               : error};
  const std::vector<LoraAdapter> adapters = open_adapters(a, c.config);
  if (!c.has_tokenizer)
    throw Failure{1, a.in + ": has no tokenizer; give one with -z (a SentencePiece tokenizer.model)"};
  ModelParts parts;
  parts.config = c.config;
  parts.tokenizer = Tokenizer::to_blob(c.vocabulary);
  const std::string family = set_chat_template(a, c, parts);
  const auto line = [](const char* what, const std::string& text) {
    return text.empty() ? "" : what + (": " + text) + "\n";
  };
  parts.provenance =
      line("name", c.name) + line("source", c.source) + line("format", c.format) + line("licence", c.licence);
  for (const LoraAdapter& adapter : adapters) parts.provenance += line("lora", adapter.description());
  parts.provenance += line("weights", quality(a)) + line("chat template", family);
  parts.self_test_ids = self_test_prompt(c.config.vocab_size, c.vocabulary.bos);
  write_model(a, parts, [&](const TensorSpec& spec, int64_t first, int64_t count, float* out, std::string& why) {
    return c.read_rows(spec.name, first, count, out, why) && merge_lora(adapters, spec, first, count, out, why);
  });
}

// A checkpoint of bytes, or random weights of such a shape.
void convert_megabyte(const Arguments& a) {
  MegabyteCheckpoint c;
  std::string error;
  ModelParts parts;
  for (const MegabytePreset& p : megabyte_presets())
    if (a.random == p.name) c.config = p.config;
  if (a.random.empty() && !open_megabyte(a.in, a.config, c, error)) throw Failure{1, error};
  set_architecture(c.config, parts);
  if (a.random.empty()) parts.chat.stop_ids = {c.pad_id};
  parts.provenance = (a.random.empty() ? "source: " + c.weights.source + "\nformat: " + c.weights.format
                                       : "source: random weights of the shape " + a.random) +
                     "\nweights: " + quality(a) + "\n";
  const int test = std::min(2 * c.config.patch_size + 3, c.config.max_seq_len());  // of three patches
  parts.self_test_ids = self_test_prompt(kByteValues, -1, size_t(test));
  write_model(a, parts, [&](const TensorSpec& spec, int64_t first, int64_t count, float* out, std::string& why) {
    if (a.random.empty()) return c.weights.read_rows(spec.name, first, count, out, why);
    random_rows(spec, first, count, out);
    return true;
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
    is_megabyte(a) ? convert_megabyte(a) : a.random.empty() ? convert_checkpoint(a) : convert_random(a);
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
