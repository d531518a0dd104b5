// memory.hpp: the memory that a session takes, by its parts.
#pragma once

#include "engine.hpp"

namespace pocket {

/// A part of the memory, for tables.
struct MemoryItem {
  const char* name;
  uint64_t bytes;
};

/// The memory of a session of its own once `tokens` positions are filled. The weights, which the model maps, come first,
/// then keys and values.
inline std::array<MemoryItem, 4> memory_of(const Model& model, const SessionOptions& options, int tokens) {
  const Config& c = model.config;
  const Buffers b(model, options, nullptr);
  const uint64_t filled = uint64_t(std::min(tokens, context_of(options, model)));
  return {{{"weights", model.bytes_per_token},
           {"keys and values", filled * position_bytes(c, keeps_f32(options, model))},
           {"activations", std::min<uint64_t>(filled, kChunk) * b.token_bytes + b.attention_bytes},
           {"logits and sampler", 4 * uint64_t(padded(c.vocab_size)) * sizeof(float)}}};
}

}  // namespace pocket
