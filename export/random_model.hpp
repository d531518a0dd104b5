// random_model.hpp: random weights in the shape of a known model, to measure speed and memory without a checkpoint. The
// same on every machine.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine.hpp"

namespace pocket {

/// A known shape.
struct Preset {
  const char* name;
  Config config;
};

/// What presets() adds to the numbers of a shape.
enum class PresetKind { llama, llama3, qwen2, qwen3, smollm3 };

/// The shapes as published.
inline const std::vector<Preset>& presets() {
  using Kind = PresetKind;
  static const struct {
    const char* name;
    int dim, hidden_dim, n_layers, n_heads, n_kv_heads, head_dim, vocab_size, max_seq_len;
    float rope_theta;
    bool tied;
    PresetKind kind;
  } kShapes[] = {
      {"tinyllama-1.1b", 2048, 5632, 22, 32, 4, 64, 32000, 2048, 1e4f, false, Kind::llama},
      {"smollm2-135m", 576, 1536, 30, 9, 3, 64, 49152, 8192, 1e5f, true, Kind::llama},
      {"smollm2-360m", 960, 2560, 32, 15, 5, 64, 49152, 8192, 1e5f, true, Kind::llama},
      {"smollm2-1.7b", 2048, 8192, 24, 32, 32, 64, 49152, 8192, 1.3e5f, true, Kind::llama},
      {"smollm3-3b", 2048, 11008, 36, 16, 4, 128, 128256, 65536, 5e6f, true, Kind::smollm3},
      {"llama-3.2-1b", 2048, 8192, 16, 32, 8, 64, 128256, 131072, 5e5f, true, Kind::llama3},
      {"llama-3.2-3b", 3072, 8192, 28, 24, 8, 128, 128256, 131072, 5e5f, true, Kind::llama3},
      {"qwen2.5-0.5b", 896, 4864, 24, 14, 2, 64, 151936, 32768, 1e6f, true, Kind::qwen2},
      {"qwen2.5-1.5b", 1536, 8960, 28, 12, 2, 128, 151936, 32768, 1e6f, true, Kind::qwen2},
      {"qwen3-0.6b", 1024, 3072, 28, 16, 8, 128, 151936, 40960, 1e6f, true, Kind::qwen3},
      {"qwen3-1.7b", 2048, 6144, 28, 16, 8, 128, 151936, 40960, 1e6f, true, Kind::qwen3},
      {"eurollm-1.7b", 2048, 5632, 24, 16, 8, 128, 128000, 4096, 1e4f, false, Kind::llama},
      {"falcon3-1b", 2048, 8192, 18, 8, 4, 256, 131072, 8192, 1000042, false, Kind::llama},
      {"ahma-3b", 3200, 8640, 26, 32, 32, 100, 64256, 2048, 1e4f, false, Kind::llama},
      {"granite-3.3-2b", 2048, 8192, 40, 32, 8, 64, 49159, 131072, 1e7f, true, Kind::llama},
      {"stories15m", 288, 768, 6, 6, 6, 48, 32000, 256, 1e4f, true, Kind::llama},
      {"stories42m", 512, 1376, 8, 8, 8, 64, 32000, 1024, 1e4f, true, Kind::llama},
      {"stories110m", 768, 2048, 12, 12, 12, 64, 32000, 1024, 1e4f, true, Kind::llama},
      {"tiny", 64, 172, 2, 8, 4, 8, 512, 256, 1e4f, true, Kind::llama},
  };
  static const std::vector<Preset> all = [] {
    std::vector<Preset> presets;
    for (const auto& shape : kShapes) {
      Config c;
      c.dim = shape.dim;
      c.hidden_dim = shape.hidden_dim;
      c.n_layers = shape.n_layers;
      c.n_heads = shape.n_heads;
      c.n_kv_heads = shape.n_kv_heads;
      c.head_dim = shape.head_dim;
      c.vocab_size = shape.vocab_size;
      c.max_seq_len = shape.max_seq_len;
      c.rope_theta = shape.rope_theta;
      c.tied = shape.tied;
      c.qkv_bias = shape.kind == Kind::qwen2;
      c.qk_norm = shape.kind == Kind::qwen3;
      if (c.qkv_bias || c.qk_norm || shape.kind == Kind::smollm3) c.norm_eps = 1e-6f;
      for (int l = 3; shape.kind == Kind::smollm3 && l < c.n_layers; l += 4) c.no_rope[size_t(l)] = true;
      if (shape.kind == Kind::llama3) {
        c.rope_scaling = RopeScaling::llama3;
        c.rope_factor = 32;
        c.rope_original_len = 8192;
      }
      presets.push_back({shape.name, c});
    }
    return presets;
  }();
  return all;
}

/// Rows of a tensor, seeded by its name: nearly normal, with the deviation of an untrained model; norms are 1.
inline void random_rows(const TensorSpec& spec, int64_t first, int64_t count, float* out) {
  const bool norm = spec.layout == Layout::vector && spec.name.substr(spec.name.size() - 4) == "norm";
  const std::string name =
      spec.name == "output" ? "token_embedding" : spec.name;  // the same numbers whether tied or not
  for (int64_t r = first; r < first + count; r++) {
    uint64_t state = hash_bytes(name.data(), name.size()) + uint64_t(r) * 0x9E3779B97F4A7C15;
    for (int c = 0; c < spec.cols; c += 2) {
      state = (state ^ state >> 31) * 0xD6E8FEB86659FD93 + 0x2545F4914F6CDD1D;
      // Sums of four 8-bit numbers: close to a normal distribution with deviation 148.
      for (int i = 0; i < 2 && c + i < spec.cols; i++) {
        const uint32_t bits = uint32_t(state >> (32 * i));
        const int sum = int(bits & 255) + int(bits >> 8 & 255) + int(bits >> 16 & 255) + int(bits >> 24);
        *out++ = norm ? 1.f : float(sum - 510) * (0.02f / 148.f);
      }
    }
  }
}

/// A vocabulary for random weights: single bytes and pronounceable syllables.
inline Tokenizer::Vocabulary random_vocabulary(int size) {
  Tokenizer::Vocabulary v;
  v.kind = Tokenizer::Kind::sentencepiece;
  v.unk = 0;
  v.bos = 1;
  v.eos = 2;
  v.add_bos = true;
  v.add_dummy_prefix = v.escape_whitespaces = v.byte_fallback = true;
  v.remove_extra_whitespaces = false;
  v.unk_surface = " \xE2\x81\x87 ";
  v.pieces = {{"<unk>", 0, Tokenizer::PieceType::unknown},
              {"<s>", 0, Tokenizer::PieceType::control},
              {"</s>", 0, Tokenizer::PieceType::control}};
  const char* hex = "0123456789ABCDEF";
  for (int b = 0; b < 256; b++)
    v.pieces.push_back({std::string("<0x") + hex[b / 16] + hex[b % 16] + ">", 0, Tokenizer::PieceType::byte});
  v.pieces.push_back({"\xE2\x96\x81", -1e9f, Tokenizer::PieceType::normal});  // a single space
  const char *consonants = "bdfghjklmnprstvz", *vowels = "aeiou";
  for (int i = 0; int(v.pieces.size()) < size; i++) {
    std::string text = i % 3 == 0 ? "\xE2\x96\x81" : "";
    for (int rest = i / 3, syllable = 0; syllable == 0 || rest > 0; rest /= 80, syllable++)
      text += {consonants[rest % 16], vowels[rest / 16 % 5]};
    if (i % 3 == 2) text += consonants[i / 3 % 16];
    v.pieces.push_back({text, -float(i), Tokenizer::PieceType::normal});
  }
  v.pieces.resize(size_t(size));
  return v;
}

}  // namespace pocket
