// convert.cpp: export/convert, from a checkpoint to a model file. See --help.

#include "engine.hpp"

#include <sstream>
#include <thread>
#include <utility>

#include "../models/megabyte/megabyte_checkpoint.hpp"
#include "../models/megabyte/megabyte_writer.hpp"
#include "calibrate_model.hpp"
#include "chat_template.hpp"
#include "lora.hpp"
#include "model_rows.hpp"
#include "model_texts.hpp"
#include "open_checkpoint.hpp"
#include "program.hpp"
#include "progress.hpp"
#include "random_model.hpp"

namespace {

using namespace pocket;

// ====================================================================================================================
// The command line
// ====================================================================================================================

struct Arguments {
  std::string model;  // the checkpoint: a folder or a file
  std::string output, type = "q4", tokenizer, chat_template, config, random, calibrate, steps, head, report;
  std::vector<std::string> lora;
  bool outline = false, help = false;
};

const Option<Arguments> kOptions[] = {
    {"", "", "", "Output"},
    {"-o", "--output", "FILE", "the model file to write; it appears once it is complete", &Arguments::output},
    {"", "--type", "TYPE", "q4: 4.125 bits per weight; q8: 8.5 bits, nearly lossless; f32: the reference [q4]",
     &Arguments::type},
    {"", "", "smollm2.gguf --calibrate letters.txt -o smollm2.bin", "Quantization to q4"},
    {"", "--calibrate", "TEXT|self", "quantize for this text, or for text that the model generates",
     &Arguments::calibrate},
    {"", "--calibrate-steps", "STEP", "last step to run, for comparison: search, gptq, mismatch or all [all]",
     &Arguments::steps},
    {"", "--head", "TYPE", "type of the output matrix: q4 or q8 [q4]", &Arguments::head},
    {"", "--report", "FILE", "write the error of each matrix, with --calibrate; .csv or .html", &Arguments::report},
    {"", "", "tinyllama --lora pirate --lora rhymes:0.5 -o pirate.bin", "Input"},
    {"-z", "--tokenizer", "FILE", "tokenizer.model, tokenizer.json or llama2.c's tokenizer.bin, instead of its own",
     &Arguments::tokenizer},
    {"", "--lora", "FOLDER[:SCALE]", "merge a LoRA adapter saved by PEFT, times SCALE [1]; may be repeated",
     &Arguments::lora},
    {"", "--template", "NAME", "chat template, if the checkpoint has none or an unknown one",
     &Arguments::chat_template},
    {"", "--config", "FILE", "a MEGABYTE checkpoint's constructor arguments, as JSON", &Arguments::config},
    {"", "--random", "SHAPE", "random weights instead of a checkpoint, to measure speed and memory",
     &Arguments::random},
    {"", "--outline", "", "write the file without its weights: ./run FILE --info shows the memory that the model takes",
     &Arguments::outline},
    {"", "", "", "Other"},
    {"-h", "--help", "", "this text", &Arguments::help},
};

constexpr char kHelp[] =
    "convert: writes a model file for ./run from a checkpoint\n\n"
    "  export/convert tinyllama -o tinyllama.bin                         a Hugging Face folder, to 4 bits\n"
    "  export/convert lit_model.pth --type q8 -o model.bin               a PyTorch file, to 8 bits\n"
    "  export/convert stories15M.bin -z tokenizer.model -o model.bin     llama2.c, whose tokenizer is a separate file\n"
    "  export/convert model.pt --config config.json -o model.bin         MEGABYTE\n\n"
    "The format of the checkpoint is detected from its content:\n"
    "  Hugging Face folder     config.json, safetensors or PyTorch .bin, single or sharded (f32, f16, bf16),\n"
    "                          tokenizer.model or tokenizer.json, chat template\n"
    "  PyTorch file or folder  .pth, .pt, .bin written by torch.save(), read as data; no code in it is run: lit-gpt\n"
    "                          with lit_config.json or model_config.yaml, Meta with params.json, llama2.c's ckpt.pt\n"
    "  GGUF file, or its parts version 2 or 3; F32, F16, BF16, Q8_0, Q4_0 to Q5_1, Q2_K to Q6_K, IQ4_NL, IQ4_XS;\n"
    "                          includes tokenizer and chat template\n"
    "  llama2.c checkpoint     .bin of version 0, 1 (f32) or 2 (int8); requires -z\n"
    "  MEGABYTE checkpoint     state_dict of MEGABYTE-pytorch 0.3.2 to 0.3.6 with two stages; requires --config\n"
    "  Llama of type f32       model file from models/train or export/convert: to another type, or with --lora\n\n"
    "--calibrate reduces the KL divergence of q4 to a sixth. The text is UTF-8, about 100 kB, similar to the text "
    "that\n"
    "the model is used for. Calibration takes minutes; an interrupted one is resumed by the same command. --head q8\n"
    "reduces the divergence further: SmolLM2-135M, calibrated, 0.041 instead of 0.057 with 117 MB instead of 102;\n"
    "TinyLlama-1.1B takes 36 MB more.\n\n";

// Prints a sentence in lines of at most 110 characters.
void print_wrapped(const std::string& text) {
  size_t width = 0;
  for (size_t at = 0, end; at < text.size(); at = end) {
    end = std::min(text.find(' ', at), text.size() - 1) + 1;  // of the word and the space after it
    if (width + end - at > 110) std::printf("\n"), width = 0;
    width += end - at;
    std::printf("%s", text.substr(at, end - at).c_str());
  }
  std::printf("\n");
}

void print_help() {
  std::string shapes;
  for (const Preset& p : presets()) shapes += std::string(p.name) + ", ";
  for (const MegabytePreset& p : megabyte_presets()) shapes += std::string(p.name) + ", ";
  std::printf("%s", kHelp);
  print_wrapped("NAME of --template: " + chat_family_keys() + ".");
  print_wrapped("SHAPE of --random: " + shapes.substr(0, shapes.size() - 2) + ".");
  std::printf("Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted.\n");
  print_options(kOptions, "export/convert");
}

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() > end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

bool is_one_of(const std::string& value, std::initializer_list<const char*> all) {
  return std::find(all.begin(), all.end(), value) != all.end();
}

void check_q4_options(const Arguments& a) {
  for (const auto& [name, value] : {std::pair{"--calibrate", a.calibrate}, {"--head", a.head}})
    if (!value.empty() && a.type != "q4")
      throw Failure{2, name + std::string(": only valid with --type q4; the type is ") + a.type};
  if (!a.head.empty() && !is_one_of(a.head, {"q4", "q8"}))
    throw Failure{2, "--head: expected q4 or q8, found '" + a.head + "'"};
  if (a.outline && !a.calibrate.empty()) throw Failure{2, "--outline: not valid with --calibrate"};
  if (CalibrationOptions options; !a.steps.empty() && !stop_after(a.steps, options))
    throw Failure{2, "--calibrate-steps: expected search, gptq, mismatch or all, found '" + a.steps + "'"};
  for (const auto& [name, value] : {std::pair{"--calibrate-steps", a.steps}, {"--report", a.report}})
    if (!value.empty() && a.calibrate.empty()) throw Failure{2, name + std::string(": requires --calibrate TEXT")};
  if (!a.report.empty() && !ends_with(a.report, ".csv") && !ends_with(a.report, ".html"))
    throw Failure{2, "--report: expected a file name that ends in .csv or .html, found '" + a.report + "'"};
}

bool is_megabyte(const Arguments& a) {
  const auto& all = megabyte_presets();
  return !a.config.empty() ||
         std::any_of(all.begin(), all.end(), [&](const MegabytePreset& p) { return a.random == p.name; });
}

void check_random_options(const Arguments& a) {
  if (a.random.empty()) return;
  for (const auto& [name, given] : {std::pair{"--config", !a.config.empty()}, {"--lora", !a.lora.empty()}})
    if (given) throw Failure{2, name + std::string(": only valid for a checkpoint, not with --random")};
}

void check_megabyte_options(const Arguments& a) {
  if (!is_megabyte(a)) return;
  for (const auto& [name, given] : {std::pair{"--tokenizer", !a.tokenizer.empty()},
                                    {"--calibrate", !a.calibrate.empty()},
                                    {"--template", !a.chat_template.empty()},
                                    {"--lora", !a.lora.empty()}})
    if (given) throw Failure{2, name + std::string(": not valid for a MEGABYTE model, which reads and writes bytes")};
}

Arguments parse(int argc, char** argv) {
  Arguments a;
  parse_options(argc, argv, kOptions, "convert one checkpoint at a time", a);
  if (a.help) return a;
  if (!is_one_of(a.type, {"q4", "q8", "f32"}))
    throw Failure{2, "--type: expected q4, q8 or f32, found '" + a.type + "'"};
  if (!a.chat_template.empty() && !find_chat_family(a.chat_template))
    throw Failure{2, "--template: expected one of " + chat_family_keys() + ", found '" + a.chat_template + "'"};
  check_q4_options(a);
  if (a.model.empty() == a.random.empty())
    throw Failure{2, "expected a checkpoint, or --random SHAPE; see export/convert --help"};
  check_random_options(a);
  if (a.output.empty()) throw Failure{2, "expected -o OUT.bin: the model file to write"};
  check_megabyte_options(a);
  return a;
}

// ====================================================================================================================
// Writing the model
// ====================================================================================================================

Type type_of(const std::string& name) { return name == "f32" ? Type::f32 : name == "q8" ? Type::q8 : Type::q4; }

/// How the weights are stored, for the model's provenance.
std::string quantization(const Arguments& a) {
  if (a.outline) return kOutline + a.type + " file";
  if (a.type != "q4") return a.type == "f32" ? "f32, unchanged" : "q8, groups of 32";
  const std::string how = a.calibrate.empty()     ? "errors weighted by an estimate of the inputs"
                          : a.calibrate == "self" ? "calibrated on generated text"
                                                  : "calibrated on " + base_name(a.calibrate);
  const std::string steps = a.steps.empty() || a.steps == "all" ? "" : ", steps up to " + a.steps;
  return "q4, " + how + steps + (a.head == "q8" ? ", output q8" : "");
}

/// The files that will be read.
std::vector<std::string> inputs(const Arguments& a) {
  std::vector<std::string> files = {a.tokenizer, a.config, a.calibrate};
  const auto add = [&](const std::string& path) {
    for (std::string& file : files_of_checkpoint(path)) files.push_back(std::move(file));
  };
  if (!a.model.empty()) add(a.model);
  for (const std::string& lora : a.lora) {
    LoraSource source;
    std::string error;
    if (!parse_lora(lora, source, error)) throw Failure{2, "--lora " + error};
    add(source.folder + "/adapter_model.bin");
  }
  return files;
}

/// Checks the names of all files that will be written, before the work.
void check_outputs(const Arguments& a) {
  check_distinct({a.output, a.report, calibration_name(a.output)}, inputs(a));
  std::string error;
  CalibrationFile calibration;
  if (!check_output(a.output, OutputFile::Access::random, error)) throw Failure{1, error};
  if (!a.report.empty() && !check_output(a.report, OutputFile::Access::sequential, error)) throw Failure{1, error};
  if (!a.calibrate.empty() && !calibration.check(calibration_name(a.output))) throw Failure{1, calibration.error};
}

/// Writes the model file without its weights. Throws Failure.
void write_outline(const Arguments& a, const ModelParts& parts) {
  const std::string output = one_line(a.output);
  ModelWriter writer;
  if (!writer.write_outline(a.output, parts)) throw Failure{1, writer.error};
  std::fprintf(stderr, "%s: without weights; try: ./run %s --info\n", output.c_str(), output.c_str());
}

/// Calibrates into `file`, and writes the report and the model. Throws Failure.
void write_outputs(const Arguments& a, ModelParts& parts, const ReadRows& read, CalibrationFile& file) {
  parts.type = type_of(a.type);
  parts.head_q8 = a.head == "q8";
  parts.threads = platform::cpu_count();
  const double start = seconds();
  std::vector<ReportRow> rows;
  std::string error;
  if (!a.calibrate.empty()) rows = calibrate_model({a.calibrate, a.steps, a.output}, parts, read, file);
  if (!a.report.empty() && !write_report(a.report, a.output, rows, error)) throw Failure{1, error};
  if (a.outline) return write_outline(a, parts);
  const std::string output = one_line(a.output);  // first, since nothing may fail once the model is written
  const uint64_t bytes = write_with_progress(a.output, parts, read);
  file.remove();
  std::fprintf(stderr, "%s: %s, %.1f MB, in %.1f s; try: ./run %s %s\n", output.c_str(), a.type.c_str(),
               double(bytes) / 1e6, seconds() - start, output.c_str(),
               parts.chat.known() ? "-m chat" : "-i \"Once upon a time\"");
  if (a.calibrate.empty() && parts.type == Type::q4 && a.random.empty() && !parts.architecture)
    std::fprintf(
        stderr,
        "convert: --calibrate TEXT reduces the loss of q4 to a sixth (on two cores a few minutes for a model of "
        "135M parameters, half an hour for 1.1B)\n");
}

/// The same. A failure says if the calibration, which takes long, is not lost.
void write_model(const Arguments& a, ModelParts& parts, const ReadRows& read) {
  CalibrationFile file;
  const auto hint = [&] { return std::string(file.resumable() ? "; repeat the command to resume" : ""); };
  try {
    write_outputs(a, parts, read, file);
  } catch (const Failure& f) {
    throw Failure{f.status, f.what + hint()};
  } catch (const std::bad_alloc&) {
    throw Failure{1, "out of memory" + hint()};
  }
}

/// Sets the chat template: the one of --template, or else the checkpoint's own, if its family is known. Returns the
/// name of the family, "none", or the reason why the template is not known.
std::string set_chat_template(const Arguments& a, const Checkpoint& c, ModelParts& parts) {
  Tokenizer tokenizer;
  if (!tokenizer.load(parts.tokenizer)) throw Failure{1, tokenizer.error};
  std::string family = "none", error;
  if (!a.chat_template.empty()) {
    const ChatFamily& chosen = *find_chat_family(a.chat_template);
    if (!make_chat_template(chosen, tokenizer, parts.chat, error))
      throw Failure{1, "--template " + a.chat_template + ": " + error};
    family = std::string(chosen.name) + " (chosen)";
  } else if (!c.chat_template.empty() && !recognise_chat_template(c.chat_template, tokenizer, parts.chat, family,
                                                                  c.special_tokens ? &*c.special_tokens : nullptr)) {
    print_message("convert", "unknown chat template (" + family +
                                 "); the model can continue text, but not chat; to choose a template use --template "
                                 "NAME: " +
                                 chat_family_keys());
  }
  for (int id : c.stop_ids)
    if (std::find(parts.chat.stop_ids.begin(), parts.chat.stop_ids.end(), id) == parts.chat.stop_ids.end())
      parts.chat.stop_ids.push_back(id);
  // What a user types must not become a token of the template.
  if (!tokenizer.make_control(parts.chat.ids())) throw Failure{1, tokenizer.error};
  parts.tokenizer = tokenizer.blob();
  return family;
}

// ====================================================================================================================
// The kinds of input
// ====================================================================================================================

const Preset& find_preset(const std::string& name) {
  std::string names;
  for (const Preset& p : presets()) {
    if (name == p.name) return p;
    names += std::string(" ") + p.name;
  }
  for (const MegabytePreset& p : megabyte_presets()) names += std::string(" ") + p.name;
  throw Failure{2, "--random: expected one of" + names + ", found '" + name + "'"};
}

void convert_random(const Arguments& a) {
  ModelParts parts;
  parts.config = find_preset(a.random).config;
  Checkpoint c;
  c.config = parts.config;
  c.vocabulary = random_vocabulary(c.config.vocab_size);
  std::string error;
  if (!a.tokenizer.empty() && !read_tokenizer_file(a.tokenizer, c, error)) throw Failure{1, error};
  parts.tokenizer = Tokenizer::to_blob(c.vocabulary);
  set_chat_template(a, c, parts);
  parts.provenance = provenance_line("source", "random weights of the shape " + a.random) +
                     provenance_line("weights", quantization(a));
  parts.self_test_ids = self_test_prompt(c.config.vocab_size, c.vocabulary.bos);
  write_model(a, parts, [](const TensorSpec& spec, int64_t first, int64_t count, float* out, std::string&) {
    random_rows(spec, first, count, out);
    return true;
  });
}

std::vector<LoraAdapter> open_adapters(const Arguments& a, const Config& model, bool interleaved) {
  std::vector<LoraAdapter> adapters(a.lora.size());
  for (size_t i = 0; i < adapters.size(); i++) {
    LoraSource source;
    std::string error;
    if (!parse_lora(a.lora[i], source, error)) throw Failure{2, "--lora " + error};
    if (!adapters[i].open(source, model, interleaved)) throw Failure{1, adapters[i].error};
  }
  return adapters;
}

/// A model file of a Llama of type f32, to another type or with adapters. Tokenizer, chat template and provenance are
/// kept.
void convert_model(const Arguments& a, const Model& model) {
  for (const auto& [name, given] :
       {std::pair{"--template", !a.chat_template.empty()}, {"--tokenizer", !a.tokenizer.empty()}})
    if (given) throw Failure{2, name + (": not valid for " + a.model) + ", a model file that has its own"};
  if (std::string error; !check_has_weights(model, a.model, error)) throw Failure{1, error};
  const std::vector<LoraAdapter> adapters = open_adapters(a, model.config, false);
  if (std::string error; !adapters.empty() && !check_adapters_allowed(model, error))
    throw Failure{2, "--lora: not valid for " + a.model + ": " + error};
  ModelParts parts;
  parts.config = model.config;
  Tokenizer tokenizer;
  if (!tokenizer.load(model.tokenizer_bytes())) throw Failure{1, a.model + ": " + tokenizer.error};
  if (std::string error; !load_chat_template(model, tokenizer, parts.chat, error))
    throw Failure{1, a.model + ": " + error};
  parts.self_test_ids = model.self_test_ids;
  parts.tokenizer = std::string(model.tokenizer_bytes());
  std::istringstream lines{std::string(model.provenance())};
  lines.exceptions(std::ios::badbit);  // a failed allocation is thrown, and is not the end of the lines
  for (std::string text; std::getline(lines, text);) {
    if (text.rfind("weights: ", 0) != 0) parts.provenance += one_line(text) + "\n";
  }
  for (const LoraAdapter& adapter : adapters) parts.provenance += provenance_line("lora", adapter.description());
  parts.provenance += provenance_line("weights", quantization(a));
  const ReadRows read = rows_of_file(model);
  write_model(a, parts, [&](const TensorSpec& spec, int64_t first, int64_t count, float* out, std::string& why) {
    return read(spec, first, count, out, why) && merge_lora(adapters, spec, first, count, out, why);
  });
}

void convert_checkpoint(const Arguments& a) {
  Checkpoint c;
  std::string error;
  if (Model model; model.open(a.model.c_str()) && model.all_f32) return convert_model(a, model);
  if (!open_checkpoint(a.model, a.tokenizer, c, error))
    throw Failure{1, looks_like_megabyte(a.model)
                         ? a.model +
                               ": a MEGABYTE checkpoint, which does not contain its configuration; add --config "
                               "CONFIG.json (see --help)"
                         : error};
  for (const std::string& note : c.notes) print_message("convert", note);
  const std::vector<LoraAdapter> adapters = open_adapters(a, c.config, c.interleaved_adapters);
  if (!c.has_tokenizer)
    throw Failure{1, a.model + ": no tokenizer found; name one with -z (a SentencePiece tokenizer.model)"};
  ModelParts parts;
  parts.config = c.config;
  parts.tokenizer = Tokenizer::to_blob(c.vocabulary);
  const std::string family = set_chat_template(a, c, parts);
  const auto line = [&](const char* name, const std::string& value) {
    parts.provenance += provenance_line(name, value);
  };
  line("name", c.name);
  line("source", c.source);
  line("format", c.format);
  line("licence", c.licence);
  if (c.differs_for_adapters()) line(kAdapters, kOfCheckpoint);
  for (const LoraAdapter& adapter : adapters) line("lora", adapter.description());
  line("weights", quantization(a));
  line("chat template", family);
  parts.self_test_ids = self_test_prompt(c.config.vocab_size, c.vocabulary.bos);
  write_model(a, parts, [&](const TensorSpec& spec, int64_t first, int64_t count, float* out, std::string& why) {
    return c.read_rows(spec.name, first, count, out, why) &&
           merge_lora(adapters, spec, first, count, out, why, c.tensors.at(spec.name).scale);
  });
}

/// A MEGABYTE checkpoint, or random weights of a MEGABYTE model.
void convert_megabyte(const Arguments& a) {
  MegabyteCheckpoint c;
  std::string error;
  ModelParts parts;
  for (const MegabytePreset& p : megabyte_presets())
    if (a.random == p.name) c.config = p.config;
  if (a.random.empty() && !open_megabyte(a.model, a.config, c, error)) throw Failure{1, error};
  set_architecture(c.config, parts);
  if (a.random.empty()) parts.chat.stop_ids = {c.pad_id};
  parts.provenance =
      (a.random.empty() ? provenance_line("source", c.weights.source) + provenance_line("format", c.weights.format)
                        : provenance_line("source", "random weights of the shape " + a.random)) +
      provenance_line("weights", quantization(a));
  const int test = std::min(2 * c.config.patch_size + 3, c.config.max_seq_len());  // spans three patches
  parts.self_test_ids = self_test_prompt(kByteValues, -1, size_t(test));
  write_model(a, parts, [&](const TensorSpec& spec, int64_t first, int64_t count, float* out, std::string& why) {
    if (a.random.empty()) return c.weights.read_rows(spec.name, first, count, out, why);
    random_rows(spec, first, count, out);
    return true;
  });
}

void convert(int argc, char** argv) {
  const Arguments a = parse(argc, argv);
  if (a.help) return print_help();
  check_outputs(a);
  is_megabyte(a) ? convert_megabyte(a) : a.random.empty() ? convert_checkpoint(a) : convert_random(a);
}

}  // namespace

int main(int argc, char** argv) {
  platform::take_arguments(argc, argv);
  return guarded("convert", [&] { convert(argc, argv); });
}
