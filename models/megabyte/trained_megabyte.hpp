// trained_megabyte.hpp: MEGABYTE as an architecture of models/train.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "../trained_architecture.hpp"
#include "megabyte_text.hpp"
#include "megabyte_writer.hpp"

namespace pocket {

// A MEGABYTE with the tokenizer of byte_vocabulary(). Both outlive the object.
class TrainedMegabyte : public TrainedArchitecture {
 public:
  TrainedMegabyte(const MegabyteConfig& config, const Tokenizer& tokenizer) : c_(config), tokenizer_(tokenizer) {}

  const char* unit() const override { return "byte"; }
  int vocab_size() const override { return kByteValues; }
  int end_id() const override { return kEndByte; }
  int dim() const override { return c_.global.dim; }
  double text_per_parameter() const override { return 60; }  // a byte is about a third of a token
  int sample_length() const override { return 200; }
  std::string shape_options() const override {
    char text[200];
    std::snprintf(text, sizeof text,
                  "--arch megabyte --patch %d --dim %d --local-dim %d --layers %d --local-layers %d --heads %d "
                  "--hidden %d --local-hidden %d",
                  c_.patch_size, c_.global.dim, c_.local.dim, c_.global.n_layers, c_.local.n_layers, c_.n_heads,
                  c_.global.hidden_dim, c_.local.hidden_dim);
    return text;
  }

  void add_story(TokenText& text, std::string_view story) const override { add_bytes(text, story); }
  std::vector<int> encode_prompt(const std::string& prompt) const override { return start_and_bytes(prompt); }
  std::string decode(const std::vector<int>& ids) const override {
    std::vector<int> bytes = ids;
    bytes.erase(std::remove(bytes.begin(), bytes.end(), kStartId), bytes.end());
    return text_of(tokenizer_, bytes);
  }

  std::unique_ptr<LearnedWeights> new_weights() const override { return std::make_unique<MegabyteWeights>(c_); }
  void initialize(LearnedWeights& weights, uint64_t seed) const override {
    pocket::initialize(static_cast<MegabyteWeights&>(weights), seed);
  }
  size_t pass_bytes(int tokens, int, bool) const override { return MegabytePass::bytes(c_, tokens); }

  void describe(ModelParts& parts, int context) const override {
    set_architecture(c_, parts);
    parts.chat.stop_ids = {kEndByte, 0};  // byte 0 pads texts in this architecture and is never trained
    parts.self_test_ids =
        self_test_prompt(kByteValues, tokenizer_.bos(), size_t(std::min(context, 2 * c_.patch_size + 3)));
  }
  ReadRows rows(const LearnedWeights& weights) const override { return rows_of_model(weights); }

 private:
  const MegabyteConfig& c_;
  const Tokenizer& tokenizer_;
};

}  // namespace pocket
