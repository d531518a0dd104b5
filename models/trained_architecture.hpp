// trained_architecture.hpp: the interface between models/train and an architecture, and the implementation for Llama.
// megabyte/trained_megabyte.hpp has the other one.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "../export/program.hpp"
#include "frozen_llama.hpp"
#include "trained_rows.hpp"
#include "training_text.hpp"

namespace pocket {

// The properties of a model that depend on its architecture and its shape.
class TrainedArchitecture {
 public:
  virtual ~TrainedArchitecture() = default;

  virtual const char* unit() const = 0;  // of texts: "token" or "byte"
  virtual int vocab_size() const = 0;
  virtual int end_id() const = 0;                 // ends a story; -1: none
  virtual int dim() const = 0;                    // width of the model; the default learning rate depends on it
  virtual double text_per_parameter() const = 0;  // tokens or bytes to train on for each parameter, at least
  virtual int sample_length() const = 0;          // tokens or bytes of a sample
  virtual std::string shape_options() const = 0;  // the options of models/train that give this shape, without --ctx

  virtual void add_story(TokenText& text, std::string_view story) const = 0;
  virtual std::vector<int> encode_prompt(const std::string& prompt) const = 0;
  virtual std::string decode(const std::vector<int>& ids) const = 0;

  virtual std::unique_ptr<LearnedWeights> new_weights() const = 0;
  virtual void initialize(LearnedWeights& weights, uint64_t seed) const = 0;
  // Bytes of memory of a SequencePass; see there.
  virtual size_t pass_bytes(int tokens, int rank, bool has_teacher) const = 0;

  // Fills in the architecture, the stop ids and the self-test of a model file.
  virtual void describe(ModelParts& parts, int context) const = 0;
  virtual ReadRows rows(const LearnedWeights& weights) const = 0;  // for ModelWriter
};

// A Llama with a tokenizer. Both outlive the object.
class TrainedLlama : public TrainedArchitecture {
 public:
  TrainedLlama(const Config& config, const Tokenizer& tokenizer) : c_(config), tokenizer_(tokenizer) {}

  const char* unit() const override { return "token"; }
  int vocab_size() const override { return c_.vocab_size; }
  int end_id() const override { return tokenizer_.eos(); }
  int dim() const override { return c_.dim; }
  double text_per_parameter() const override { return 20; }
  int sample_length() const override { return 80; }
  std::string shape_options() const override {
    char text[200];
    std::snprintf(text, sizeof text, "--dim %d --layers %d --heads %d --kv-heads %d --hidden %d --vocab %d", c_.dim,
                  c_.n_layers, c_.n_heads, c_.n_kv_heads, c_.hidden_dim, c_.vocab_size);
    return text;
  }

  void add_story(TokenText& text, std::string_view story) const override { text.add(story, tokenizer_); }
  std::vector<int> encode_prompt(const std::string& prompt) const override {
    std::vector<int> ids = ids_of(tokenizer_, prompt);
    if (ids.empty()) ids.push_back(std::max(0, tokenizer_.eos()));
    return ids;
  }
  std::string decode(const std::vector<int>& ids) const override { return text_of(tokenizer_, ids); }

  std::unique_ptr<LearnedWeights> new_weights() const override { return std::make_unique<TrainModel>(c_); }
  void initialize(LearnedWeights& weights, uint64_t seed) const override {
    pocket::initialize(static_cast<TrainModel&>(weights), seed);
  }
  size_t pass_bytes(int tokens, int rank, bool has_teacher) const override {
    return LlamaPass::bytes(c_, tokens, rank, has_teacher);
  }

  void describe(ModelParts& parts, int) const override {
    parts.config = c_;
    if (end_id() >= 0) parts.chat.stop_ids = {end_id()};
    parts.self_test_ids = self_test_prompt(c_.vocab_size, tokenizer_.bos(), 8);
  }
  ReadRows rows(const LearnedWeights& weights) const override { return rows_of_model(weights, c_.tied); }

 private:
  const Config& c_;
  const Tokenizer& tokenizer_;
};

// A Llama whose weights stay in a file; only adapters are trained. All three outlive the object.
class TrainedFrozen : public TrainedLlama {
 public:
  TrainedFrozen(const Model& model, const Tokenizer& tokenizer)
      : TrainedLlama(model.config, tokenizer), model_(model) {}

  std::unique_ptr<LearnedWeights> new_weights() const override { return std::make_unique<FrozenLlama>(model_); }
  void initialize(LearnedWeights&, uint64_t) const override {}
  size_t pass_bytes(int tokens, int rank, bool) const override {
    return FrozenPass::bytes(model_.config, tokens, rank);
  }

 private:
  const Model& model_;
};

}  // namespace pocket
