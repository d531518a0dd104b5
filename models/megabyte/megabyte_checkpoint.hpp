// megabyte_checkpoint.hpp: reads checkpoints of MEGABYTE-pytorch 0.3.2 to 0.3.6: a state_dict saved by torch.save(),
// and the arguments of the model's constructor as JSON.
//
// Stages are numbered from coarse to fine, 0 global and 1 local, except in token_embs, which goes from fine to coarse.
#pragma once

#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "../../export/checkpoint.hpp"
#include "../../export/json_reader.hpp"
#include "../../export/pytorch.hpp"
#include "../../export/safetensors.hpp"
#include "megabyte.hpp"

namespace pocket {

// An open checkpoint.
struct MegabyteCheckpoint {
  MegabyteConfig config;
  int pad_id = 0;      // the byte that pads texts in training and is not predicted
  Checkpoint weights;  // tensors by the names of tensor_specs(config)
};

inline constexpr char kOldMegabyte[] =
    "the checkpoint is from MEGABYTE-pytorch 0.2 or older, a different architecture; expected 0.3.2 to 0.3.6";

// The two numbers of a key, one for each stage. single: a single number may stand for both.
inline bool read_stages(const JsonValue& root, const char* key, bool single, int& global, int& local,
                        std::string& error) {
  const JsonValue list = root.find(key);
  int64_t value = 0;
  if (single && list.integer(value)) {
    if (!root.get(key, 1, INT32_MAX, global, error)) return false;
    local = global;
    return true;
  }
  if (!root.need(key, JsonKind::array, error)) return false;
  if (list.size() != 2)
    return fail(error, list.where() + ": \"" + key + "\": expected 2 numbers, one for each stage, found " +
                           std::to_string(list.size()) + "; only models with two stages are supported");
  int* into = &global;
  for (const JsonValue& v : list.elements()) {
    if (!v.integer(value) || value < 1 || value > INT32_MAX)
      return fail(error, v.where() + ": \"" + key + "\": expected integers from 1, found " + v.describe());
    *into = int(value);
    into = &local;
  }
  return true;
}

// Absent keys have the constructor's default values. Keys that do not change the output of a trained model (dropout,
// flash_attn) are ignored; unknown keys might change it, and are rejected.
inline bool read_megabyte_config(const JsonValue& root, MegabyteCheckpoint& out, std::string& error) {
  static constexpr const char* kKeys[] = {"num_tokens", "dim",          "depth",     "max_seq_len", "dim_head",
                                          "heads",      "ff_mult",      "rel_pos",   "pos_emb",     "pad_id",
                                          "flash_attn", "attn_dropout", "ff_dropout"};
  for (const auto& [key, value] : root.members())
    if (std::find(std::begin(kKeys), std::end(kKeys), key) == std::end(kKeys))
      return fail(error, value.where() + ": \"" + printable(key) +
                             "\": unknown argument of MEGABYTE, which may change the output of the model");
  MegabyteConfig& c = out.config;
  constexpr int kAny = INT32_MAX;  // check_config() checks the limits
  int tokens = kByteValues, multiple = 4;
  c.head_dim = 64;
  c.n_heads = 8;
  if (!root.need("num_tokens", JsonKind::number, error) || !root.get("num_tokens", 0, kAny, tokens, error))
    return false;
  if (tokens != kByteValues) return root.refuse("num_tokens", "256, one for each byte", error);
  if (!read_stages(root, "depth", false, c.global.n_layers, c.local.n_layers, error) ||
      !read_stages(root, "max_seq_len", false, c.patches, c.patch_size, error) ||
      !read_stages(root, "dim", true, c.global.dim, c.local.dim, error) ||
      !root.get("dim_head", 1, kAny, c.head_dim, error) || !root.get("heads", 1, kAny, c.n_heads, error) ||
      !root.get("ff_mult", 1, 64, multiple, error) || !root.get("rel_pos", c.rotary, error) ||
      !root.get("pos_emb", c.positions, error) || !root.get("pad_id", 0, 255, out.pad_id, error))
    return false;
  for (MegabyteStage* s : {&c.global, &c.local})
    s->hidden_dim = int(std::min<int64_t>(int64_t(s->dim) * multiple, INT32_MAX));
  return check_config(c, [&](const char* field, const std::string& expected, const std::string& found) {
    return fail(error, root.where() + ": " + field + ": expected " + expected + ", found " + found);
  });
}

// The name in the checkpoint of a tensor of the engine, for example "global.layers.3.w1.bias".
inline std::string megabyte_name(const std::string& ours) {
  static const std::map<std::string, std::string> names = {
      {"global.embedding", "token_embs.1.0.weight"},
      {"local.embedding", "token_embs.0.weight"},
      {"global.positions", "pos_embs.0.weight"},
      {"local.positions", "pos_embs.1.weight"},
      {"global.start", "start_tokens.0"},
      {"local.start", "start_tokens.1"},
      {"patch_norm", "token_embs.1.2.weight"},
      {"patch_norm.bias", "token_embs.1.2.bias"},
      {"patch", "token_embs.1.3.weight"},
      {"patch.bias", "token_embs.1.3.bias"},
      {"embedded_norm", "token_embs.1.4.weight"},
      {"embedded_norm.bias", "token_embs.1.4.bias"},
      {"next", "to_next_transformer_projections.0.1.weight"},
      {"next.bias", "to_next_transformer_projections.0.1.bias"},
      {"output", "to_logits.weight"},
      {"output.bias", "to_logits.bias"},
      {"final_norm", "norm.g"},
      {"attention_norm", "0.norm.g"},
      {"wq", "0.to_q.weight"},
      {"wk", "0.to_kv.weight"},  // the first half of its rows
      {"wv", "0.to_kv.weight"},  // the second
      {"wo", "0.to_out.weight"},
      {"ffn_norm", "1.0.g"},
      {"w1", "1.1.weight"},
      {"w1.bias", "1.1.bias"},
      {"w2", "1.4.weight"},
      {"w2.bias", "1.4.bias"},
  };
  if (const auto found = names.find(ours); found != names.end()) return found->second;
  const std::string stage = ours.substr(0, 6) == "global" ? "transformers.0." : "transformers.1.";
  const std::string rest = ours.substr(ours.find('.') + 1);
  if (rest.rfind("layers.", 0) != 0) return stage + names.at(rest);
  const size_t end = rest.find('.', 7) + 1;
  return stage + rest.substr(0, end) + names.at(rest.substr(end));
}

// Finds every tensor of the model in the checkpoint, and checks its shape.
inline bool bind_megabyte(MegabyteCheckpoint& out, const FoundTensors& found, std::vector<std::string>& used,
                          const std::string& config, std::string& error) {
  const std::string& path = out.weights.files[0]->path();
  const MegabyteConfig& c = out.config;
  for (const TensorSpec& spec : tensor_specs(c)) {
    const std::string name = megabyte_name(spec.name), last = spec.name.substr(spec.name.rfind('.') + 1);
    const bool half = last == "wk" || last == "wv";
    std::vector<int64_t> shape = {int64_t(spec.rows) * (half ? 2 : 1), spec.cols};
    if (spec.layout == Layout::vector) shape.erase(shape.begin());
    const auto it = found.find(name);
    const std::string expected =
        path + ": tensor " + name + ": expected shape " + shape_text(shape) + " by " + base_name(config) + ", found ";
    if (it == found.end()) return fail(error, expected + "no such tensor");
    const FoundTensor& t = it->second;
    if (half && t.shape == std::vector<int64_t>{2 * int64_t(c.head_dim), spec.cols} && t.shape != shape)
      return fail(error, expected + shape_text(t.shape) + ", a single head of keys and values: " + kOldMegabyte);
    if (t.shape != shape) return fail(error, expected + shape_text(t.shape));
    StoredTensor stored = {t.file, t.offset, t.dtype, spec.rows, spec.cols};
    if (last == "wv") stored.offset += uint64_t(spec.rows) * uint64_t(stored.row_bytes());
    out.weights.tensors[spec.name] = stored;
    used.push_back(name);
  }
  return true;
}

// Checks that the rotary frequencies, which are part of the state_dict, equal the engine's.
inline bool check_frequencies(MegabyteCheckpoint& out, const FoundTensors& found, std::vector<std::string>& used,
                              std::string& error) {
  const std::string& path = out.weights.files[0]->path();
  Config rope;
  rope.head_dim = out.config.head_dim;
  const int64_t half = rope.head_dim / 2;
  for (const char* name : {"transformers.0.rotary_emb.inv_freq", "transformers.1.rotary_emb.inv_freq"}) {
    const std::string expected = path + ": tensor " + name + ": expected ";
    const auto it = found.find(name);
    if (it == found.end() || it->second.shape != std::vector<int64_t>{half})
      return fail(error, expected + "shape (" + std::to_string(half) + ") because rel_pos is true, found " +
                             (it == found.end() ? "no such tensor" : shape_text(it->second.shape)));
    std::vector<float> values(static_cast<size_t>(half));
    Checkpoint& w = out.weights;
    w.tensors[name] = {it->second.file, it->second.offset, it->second.dtype, 1, half};
    if (!w.read_rows(name, 0, 1, values.data(), error)) return false;
    w.tensors.erase(name);
    for (int i = 0; i < half; i++) {  // within the precision of bfloat16
      const double f = rope_frequency(rope, i);
      if (!(std::fabs(values[size_t(i)] - f) <= 0.01 * f))
        return fail(error, expected + "frequencies of theta 10000, " + std::to_string(f) + " at index " +
                               std::to_string(i) + ", found " + std::to_string(values[size_t(i)]));
    }
    used.push_back(name);
  }
  return true;
}

// Whether a file has the tensors of a MEGABYTE model of any version.
inline bool looks_like_megabyte(const std::string& path) {
  std::string ignored;
  const auto file = is_directory(path) ? nullptr : InputFile::open(path, ignored);
  FoundTensors found;
  return file && looks_like_zip(*file) && PyTorchFile(*file).read(0, found) && found.count("to_logits.weight") > 0 &&
         found.count("transformers.0.norm.g") > 0;
}

// Opens a checkpoint and its configuration file. On failure returns false with `error` set.
inline bool open_megabyte(const std::string& path, const std::string& config_path, MegabyteCheckpoint& out,
                          std::string& error) try {
  out = MegabyteCheckpoint();
  JsonDocument settings;
  if (!read_settings(config_path, settings, error) || !read_megabyte_config(settings.root(), out, error)) return false;
  auto file = InputFile::open(path, error);
  if (!file) return false;
  if (!looks_like_zip(*file))
    return fail(error, path + ": expected a file saved by torch.save(), found " + describe_unreadable(*file));
  PyTorchFile pytorch(*file);
  FoundTensors found;
  if (!pytorch.read(0, found)) return fail(error, pytorch.error);
  out.weights.files.push_back(std::move(file));
  if (found.count("token_emb.weight") > 0)
    return fail(error, path + ": tensor token_emb.weight: expected the name token_embs: " + kOldMegabyte);
  std::vector<std::string> used;
  if (!bind_megabyte(out, found, used, config_path, error)) return false;
  if (out.config.rotary && !check_frequencies(out, found, used, error)) return false;
  for (const std::string& name : used) found.erase(name);
  if (!found.empty())
    return fail(error, path + ": tensor " + printable(found.begin()->first) + ": not part of the model that " +
                           base_name(config_path) + " describes, found shape " +
                           shape_text(found.begin()->second.shape));
  out.weights.format = "PyTorch, MEGABYTE";
  out.weights.source = base_name(path);
  return true;
} catch (const std::exception&) {
  return fail_out_of_memory(error);
}

}  // namespace pocket
