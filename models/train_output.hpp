// train_output.hpp: the result of a training: a model file or an adapter folder.
#pragma once

#include <string>

#include "train_setup.hpp"

namespace pocket {

namespace train_detail {

// The value of a line of a provenance; "" if there is none.
inline std::string provenance_value(const std::string& provenance, const std::string& name) {
  const std::string text = "\n" + provenance, begin = "\n" + name + ": ";
  const size_t at = text.find(begin);
  if (at == text.npos) return "";
  return text.substr(at + begin.size(), text.find('\n', at + 1) - at - begin.size());
}

// Both parts, separated by a semicolon.
inline std::string joined(const std::string& a, const std::string& b) {
  return a + (a.empty() || b.empty() || a == b ? "" : "; ") + (a == b ? "" : b);
}

// The provenance of the model file. Part of the file, which is the same for the same training. A model that continues
// another one keeps its name, source and licence, and whether adapters apply to it.
inline std::string provenance_of(const TrainingSetup& t) {
  char how[200], bits[100] = "";
  const std::string text = t.o.draft() ? "the own text of " + base_name(t.o.teacher) + ", with its probabilities"
                                       : base_name(t.o.model) + (t.plan.distill.teacher ? ", and by a teacher" : "");
  const char* unit = t.architecture->unit();
  if (!t.validation.empty() && t.valid.bytes > 0)
    std::snprintf(bits, sizeof bits, "; %.4f bits a character on %zu %ss it has not seen", t.progress.bits,
                  count_targets(t.validation), unit);
  std::snprintf(how, sizeof how, "%lld steps of %lld %ss, seed %llu%s", static_cast<long long>(t.plan.steps),
                static_cast<long long>(t.tokens_per_step()), unit, static_cast<unsigned long long>(t.plan.seed), bits);
  const std::string& base = t.texts.provenance;
  const bool instructed = t.plan.instruct || takes_instructions(base);
  return provenance_line("name", provenance_value(base, "name")) +
         provenance_line("source", joined(provenance_value(base, "source"), "trained on " + text)) +
         provenance_line("licence", joined(provenance_value(base, "licence"), t.o.licence)) +
         provenance_line(kAdapters, provenance_value(base, kAdapters)) + provenance_line("weights", t.o.type) +
         provenance_line("training", how) + (instructed ? kTakesInstructions : "");
}

inline Type type_named(const std::string& name) {
  if (name == "f32") return Type::f32;
  return name == "q8" ? Type::q8 : Type::q4;
}

inline void write_trained_model(const TrainingSetup& t) {
  ModelParts parts;
  t.architecture->describe(parts, t.plan.context);
  if (t.chat.known() || !t.chat.stop_ids.empty()) parts.chat = t.chat;
  parts.type = type_named(t.o.type);
  if (t.plan.architecture == kLlama) parts.tokenizer = t.texts.tokenizer;
  parts.threads = t.o.threads;
  parts.provenance = provenance_of(t);
  const std::string output = one_line(t.o.output), prompt = one_line(t.o.prompt);
  ModelWriter writer;
  if (!writer.write(t.o.output, parts, t.architecture->rows(*t.weights), {}))
    throw Failure{1, writer.error + "; the checkpoint is complete: free some space and use --resume"};
  std::fprintf(stderr, "%s: %s, %.2f MB, after %s of training; try: ./run %s -i \"%s\"\n", output.c_str(),
               t.o.type.c_str(), double(writer.file_bytes()) / 1e6, duration_text(t.progress.seconds).c_str(),
               output.c_str(), prompt.c_str());
}

inline void write_trained_adapter(const TrainingSetup& t) {
  const std::string output = one_line(t.o.output), base = t.o.init.empty() ? "BASE" : one_line(t.o.init);
  std::string error;
  if (!write_adapter(t.o.output, t.plan.lora, t.weights->adapters, error))
    throw Failure{1, error + "; the checkpoint is complete: use --resume to write the folder again"};
  std::fprintf(stderr, "%s: an adapter, after %s of training; try: ./run %s --lora %s%s\n", output.c_str(),
               duration_text(t.progress.seconds).c_str(), base.c_str(), output.c_str(),
               t.chat.known() ? " -m chat" : " -i \"...\"");
}

}  // namespace train_detail

// Writes the result. Throws Failure. Messages are composed first, since nothing may fail once the result is written.
inline void write_result(const TrainingSetup& t) {
  const bool adapter = t.plan.lora.rank > 0;
  const std::string state = "the training state is in " + t.o.checkpoint + "; --resume " +
                            (adapter ? "writes the folder again" : "--type f32 writes the model as another type") +
                            ". Delete it if you do not need it.";
  adapter ? train_detail::write_trained_adapter(t) : train_detail::write_trained_model(t);
  print_message("train", state);
}

}  // namespace pocket
