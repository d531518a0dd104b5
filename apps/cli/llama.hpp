// llama.hpp: Llama models on the command line.
#pragma once

#include "../../export/adapter.hpp"
#include "../../export/model_texts.hpp"
#include "language_model.hpp"
#include "reference.hpp"

namespace pocket::cli {

// A session of a Llama. `session` is the engine's own.
class LlamaSession : public SessionOf<Session> {
 public:
  using SessionOf::SessionOf;
  Session* llama_session() override { return &session; }
};

class Llama : public LanguageModel {
 public:
  // tokenizer_file: a SentencePiece model, "" for the model's own tokenizer. kernel: as in --kernel. Throws Failure.
  explicit Llama(const std::string& path, const std::string& tokenizer_file = "", const std::string& kernel = "",
                 Load load = Load::map, const std::vector<std::string>& lora = {})
      : reference_(kernel == "reference") {
    if (!model.open(path.c_str(), load)) throw_open_failure(path, model.error);
    const bool own = tokenizer_file.empty();
    if (!(own ? tokenizer_.load(model.tokenizer_bytes())
              : tokenizer_.load_sentencepiece(read_all(tokenizer_file, kLongestTokenizer))))
      throw Failure{1, (own ? path : tokenizer_file) + ": " + tokenizer_.error};
    if (std::string error; !load_chat_template(model, tokenizer_, chat_, error)) throw Failure{1, path + ": " + error};
    open_adapters(path, lora);
  }

  std::unique_ptr<TextSession> open_session(const SessionOptions& options) const override {
    if (reference_) return std::make_unique<ReferenceSession>(model, options);
    return std::make_unique<LlamaSession>(model, adapted(options));
  }
  // The options with the adapters of --lora.
  SessionOptions adapted(SessionOptions options) const {
    options.adapter = adapter();
    return options;
  }
  const Adapter* adapter() const override { return adapters_.bytes() > 0 ? &adapters_.adapter() : nullptr; }
  std::vector<MemoryItem> memory_of(const SessionOptions& options, int tokens) const override {
    const auto items = pocket::memory_of(model, options, tokens);
    std::vector<MemoryItem> all(items.begin(), items.end());
    if (adapter()) all.push_back({"adapters", adapters_.bytes()});
    return all;
  }

  ModelFile& file() override { return model; }
  const Tokenizer& tokenizer() const override { return tokenizer_; }
  ChatTemplate* chat_template() override { return &chat_; }
  void set_chat_template(ChatTemplate chat) override {
    chat_ = std::move(chat);
    if (!tokenizer_.make_control(chat_.ids())) throw Failure{1, tokenizer_.error};
  }
  int vocab_size() const override { return model.config.vocab_size; }
  int trained_context() const override { return model.config.max_seq_len; }

  std::vector<UnsupportedOption> unsupported_options() const override {
    if (!reference_) return {};
    return {{"--explain", "--kernel reference is for comparisons; remove one of them", 2},
            {"--draft", "--kernel reference is for comparisons; remove one of them", 2},
            {"--save", "--kernel reference has no KV cache that can be saved", 2},
            {"--resume", "--kernel reference cannot load a saved KV cache", 2},
            {"--lora", "--kernel reference is the plain forward pass; merge the adapter with export/convert --lora", 2},
            {"--selftest", "--kernel reference gives other bits than the kernel sets, which are tested without it", 2}};
  }

  std::vector<int> encode(std::string_view text, bool bos) const override { return ids_of(tokenizer_, text, bos); }
  std::vector<int> encode_prompt(std::string_view text) const override {
    std::vector<int> ids = ids_of(tokenizer_, text);
    if (ids.empty() && tokenizer_.bos() >= 0) ids.push_back(tokenizer_.bos());
    if (ids.empty()) throw Failure{2, "the prompt is empty, and this model has no BOS token; give a prompt with -i"};
    return ids;
  }

  std::string description() const override {
    const Config& c = model.config;
    const char* scaling[] = {"none", "linear", "llama3"};  // by RopeScaling
    char lines[2048];
    std::string parts;
    for (const auto& [has, name] :
         {std::pair(c.qkv_bias, "biases of q, k and v"), std::pair(c.o_bias, "bias of o"),
          std::pair(c.mlp_bias, "biases of the feed-forward block"), std::pair(c.qk_norm, "norms of q and k")})
      if (has) parts += std::string("; ") + name;
    if (c.no_rope.any()) parts += "; " + std::to_string(c.no_rope.count()) + " layers without rope";
    std::snprintf(lines, sizeof lines,
                  "%.1f M parameters: dim %d, hidden %d, %d layers, %d heads, %d KV heads of %d, vocabulary %d%s\n"
                  "trained for %d positions; rope theta %g, scaling %s; norm eps %g%s\n"
                  "matrices %s, embedding %s; file %.1f MB; tokenizer %s, %d pieces; chat %s\n",
                  million_parameters(tensor_specs(c), c.tied), c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads,
                  c.head_dim, c.vocab_size, c.tied ? " (tied)" : "", c.max_seq_len, c.rope_theta,
                  scaling[int(c.rope_scaling)], c.norm_eps, parts.c_str(), type_name(model.layers[0].wq.type),
                  type_name(model.token_embedding.type), double(model.file_bytes) / 1e6,
                  tokenizer_.kind() == Tokenizer::Kind::sentencepiece ? "SentencePiece" : "byte-level BPE",
                  tokenizer_.size(), chat_.known() ? "yes" : "no");
    return lines;
  }

  Model model;

 private:
  // Throws Failure.
  void open_adapters(const std::string& path, const std::vector<std::string>& lora) {
    std::vector<LoraSource> sources(lora.size());
    std::string error;
    for (size_t i = 0; i < lora.size(); i++)
      if (!parse_lora(lora[i], sources[i], error)) throw Failure{2, "--lora " + error};
    if (!lora.empty() && !adapters_.open(sources, model)) throw Failure{1, path + ": --lora: " + adapters_.error};
  }

  Tokenizer tokenizer_;
  ChatTemplate chat_;
  LoadedAdapter adapters_;
  bool reference_;  // --kernel reference
};

}  // namespace pocket::cli
