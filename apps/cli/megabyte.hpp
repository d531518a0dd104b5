// megabyte.hpp: MEGABYTE models on the command line. A token is a byte.
#pragma once

#include "../../models/megabyte/megabyte.hpp"
#include "language_model.hpp"

namespace pocket::cli {

class Megabyte : public LanguageModel {
 public:
  // Throws Failure.
  explicit Megabyte(const std::string& path, Load load = Load::map) {
    if (!model_.open(path.c_str(), load)) throw_open_failure(path, model_.error);
    if (!tokenizer_.load(Tokenizer::to_blob(byte_vocabulary()))) throw Failure{1, path + ": " + tokenizer_.error};
  }

  std::unique_ptr<TextSession> open_session(const SessionOptions& options) const override {
    return std::make_unique<SessionOf<MegabyteSession>>(model_, options);
  }
  std::vector<MemoryItem> memory_of(const SessionOptions& options, int tokens) const override {
    return pocket::memory_of(model_, options, tokens);
  }

  ModelFile& file() override { return model_; }
  const Tokenizer& tokenizer() const override { return tokenizer_; }
  int vocab_size() const override { return kByteValues; }
  int trained_context() const override { return model_.config.max_seq_len(); }
  Unit unit() const override { return {"byte", "bytes", "bytes/s"}; }

  std::vector<UnsupportedOption> unsupported_options() const override {
    constexpr const char* kNoInstructions = "a MEGABYTE model was not trained on instructions";
    constexpr const char* kNoSession = "the session of a MEGABYTE model cannot be saved; keep the text, and use -f";
    return {{"-m chat", "a MEGABYTE model has no chat format"},
            {"--words", kNoInstructions},
            {"--features", kNoInstructions},
            {"--summary", kNoInstructions},
            {"--lora", "adapters are for Llama models"},
            {"--draft", "a draft is a Llama, which has other units than bytes"},
            {"--explain", "only the layers of a Llama can be explained"},
            {"--save", kNoSession},
            {"--resume", kNoSession},
            {"--tokenizer", "a MEGABYTE model has no tokenizer"}};
  }

  std::vector<int> encode(std::string_view text, bool) const override {
    std::vector<int> ids;
    for (const char c : text) ids.push_back(uint8_t(c));
    return ids;
  }
  std::vector<int> encode_prompt(std::string_view text) const override { return encode(text, true); }
  size_t least_tokens(std::string_view) const override { return 0; }  // encode() is as fast
  // The byte that ends and pads the texts of the training data, 0 as a rule, never occurs inside one.
  std::vector<int> forbidden_ids() const override { return model_.stop_ids; }
  bool can_extend_context() const override { return false; }
  int longest_text(int context) const override { return context; }

  size_t perplexity_window() const override { return size_t(trained_context()); }
  std::string perplexity_line(const Perplexity& p, size_t tokens) const override {
    char line[160];
    std::snprintf(line, sizeof line, "%.4f bits a byte; perplexity %.4f +- %.4f (%.0f bytes of %zu)\n",
                  std::log2(p.value()), p.value(), p.error(), p.count, tokens);
    return line;
  }

  std::string description() const override {
    const MegabyteConfig& c = model_.config;
    char lines[1024];
    std::snprintf(lines, sizeof lines,
                  "%.1f M parameters: MEGABYTE, patches of %d bytes, %d heads of %d\n"
                  "global: dim %d, hidden %d, %d layers; local: dim %d, hidden %d, %d layers\n"
                  "trained for %d bytes; positions: rotary %s, embedded %s\n"
                  "matrices %s, embedding %s; file %.1f MB; no tokenizer: a token is a byte\n",
                  million_parameters(tensor_specs(c)), c.patch_size, c.n_heads, c.head_dim, c.global.dim,
                  c.global.hidden_dim, c.global.n_layers, c.local.dim, c.local.hidden_dim, c.local.n_layers,
                  c.max_seq_len(), c.rotary ? "yes" : "no", c.positions ? "yes" : "no",
                  type_name(model_.local.layers[0].wq.type), type_name(model_.local.embedding.type),
                  double(model_.file_bytes) / 1e6);
    return lines;
  }

 private:
  MegabyteModel model_;
  Tokenizer tokenizer_;
};

}  // namespace pocket::cli
