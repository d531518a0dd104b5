// train_shape.hpp: the shape of a new model, from the options and the length of the text.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "megabyte/megabyte.hpp"
#include "train_options.hpp"

namespace pocket {

// A shape that suits texts of at least so many characters.
struct TextSize {
  size_t characters;
  int dim, layers, vocab;
};
inline constexpr TextSize kTextSizes[] = {{0, 64, 3, 512},
                                          {300000, 96, 4, 512},
                                          {2000000, 128, 6, 1024},
                                          {30000000, 256, 8, 4096},
                                          {300000000, 512, 8, 8192}};

// Of a draft. A pass of it costs a small part of the teacher's, most of it for the vocabulary.
inline constexpr TextSize kDraftSize = {0, 128, 2, 0};

inline TextSize size_for(size_t characters) {
  TextSize best = kTextSizes[0];
  for (const TextSize& s : kTextSizes)
    if (characters >= s.characters) best = s;
  return best;
}

namespace train_detail {

// The number of heads for a width.
inline int heads_for(const TrainOptions& o, int dim) {
  const int heads = o.heads ? o.heads : std::max(1, dim / (dim < 256 ? 16 : 32));
  if (dim % heads || dim / heads % 2)
    throw Failure{2, "--dim: expected an even number for each of " + std::to_string(heads) + " heads, found " +
                         std::to_string(dim) + "; try " + std::to_string(round_up(dim, 16 * (o.heads ? o.heads : 1)))};
  return heads;
}

// check_config() with messages that name the options.
template <class AnyConfig> void check_shape(const AnyConfig& c) {
  const std::map<std::string, const char*> names = {{"hidden_dim", "--hidden"},
                                                    {"n_layers", "--layers"},
                                                    {"n_heads", "--heads"},
                                                    {"n_kv_heads", "--kv-heads"},
                                                    {"head_dim", "--dim / --heads"},
                                                    {"local dim", "--local-dim"},
                                                    {"local hidden_dim", "--local-hidden"},
                                                    {"local n_layers", "--local-layers"},
                                                    {"patch_size", "--patch"},
                                                    {"patches", "--ctx / --patch"}};
  std::string error;
  const bool good = check_config(c, [&](const char* field, const std::string& expected, const std::string& found) {
    const auto name = names.find(field);
    return fail(error, (name == names.end() ? field : name->second) + (": expected " + expected) + ", found " + found);
  });
  if (!good) throw Failure{2, error};
}

}  // namespace train_detail

// The shape of a new Llama.
inline Config llama_shape(const TrainOptions& o, const TextSize& size, int vocab_size, int context) {
  Config c;
  c.dim = o.dim ? o.dim : size.dim;
  c.n_layers = o.layers ? o.layers : size.layers;
  c.n_heads = train_detail::heads_for(o, c.dim);
  c.n_kv_heads = o.kv_heads ? o.kv_heads : c.n_heads % 2 ? c.n_heads : c.n_heads / 2;
  c.hidden_dim = o.hidden ? o.hidden : std::max(16, int((int64_t(c.dim) * 8 / 3 + 8) / 16 * 16));
  c.head_dim = c.dim / c.n_heads;
  c.vocab_size = vocab_size;
  c.max_seq_len = context;
  c.tied = true;
  train_detail::check_shape(c);
  return c;
}

// The shape of a new MEGABYTE, with about as many parameters as the Llama for the same text: each stage has half of the
// layers, and these are twice as large, since all heads have their own keys and values and the feed-forward block is 4
// times as wide as the stage.
inline MegabyteConfig megabyte_shape(const TrainOptions& o, const TextSize& size) {
  MegabyteConfig c;
  const int layers = (size.layers + 1) / 2, patch = o.patch ? o.patch : 4;
  c.global.dim = o.dim ? o.dim : size.dim;
  c.global.n_layers = o.layers ? o.layers : layers;
  c.local.dim = o.local_dim ? o.local_dim : std::max(1, c.global.dim * 3 / 4);
  c.local.n_layers = o.local_layers ? o.local_layers : c.global.n_layers;
  c.global.hidden_dim = o.hidden ? o.hidden : 4 * c.global.dim;
  c.local.hidden_dim = o.local_hidden ? o.local_hidden : 4 * c.local.dim;
  c.n_heads = train_detail::heads_for(o, c.global.dim);
  c.head_dim = c.global.dim / c.n_heads;
  if (o.context % patch)
    throw Failure{2, "--ctx: expected a multiple of the patch size, " + std::to_string(patch) + ", found " +
                         std::to_string(o.context)};
  c.patch_size = patch;
  c.patches = o.context / patch;
  c.rotary = true;
  train_detail::check_shape(c);
  return c;
}

}  // namespace pocket
