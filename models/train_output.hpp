// train_output.hpp: the result of a training: a model file or an adapter folder.
#pragma once

#include <string>

#include "train_setup.hpp"

namespace pocket {

namespace train_detail {

// The provenance of the model file. Part of the file, which is the same for the same training.
inline std::string provenance_of(const TrainingSetup& t) {
  char how[200];
  const std::string text = t.o.draft() ? "the own text of " + base_name(t.o.teacher) + ", with its probabilities"
                                       : base_name(t.o.model) + (t.plan.distill.teacher ? ", and by a teacher" : "");
  const char* unit = t.architecture->unit();
  std::snprintf(how, sizeof how, "%lld steps of %lld %ss, seed %llu; %.4f bits a character on %zu %ss it has not seen",
                static_cast<long long>(t.plan.steps), static_cast<long long>(t.tokens_per_step()), unit,
                static_cast<unsigned long long>(t.plan.seed), t.progress.bits, count_targets(t.validation), unit);
  return provenance_line("source", "trained on " + text) + provenance_line("licence", t.o.licence) +
         provenance_line("weights", t.o.type) + provenance_line("training", how) +
         (t.plan.instruct ? kTakesInstructions : "");
}

inline Type type_named(const std::string& name) {
  if (name == "f32") return Type::f32;
  return name == "q8" ? Type::q8 : Type::q4;
}

inline void write_trained_model(const TrainingSetup& t) {
  ModelParts parts;
  t.architecture->describe(parts, t.plan.context);
  parts.type = type_named(t.o.type);
  if (t.plan.architecture == kLlama) parts.tokenizer = t.tokenizer_blob;
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
  std::fprintf(stderr, "%s: an adapter, after %s of training; try: export/convert %s --lora %s --type q8 -o OUT.bin\n",
               output.c_str(), duration_text(t.progress.seconds).c_str(), base.c_str(), output.c_str());
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
