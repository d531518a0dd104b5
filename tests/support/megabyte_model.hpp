// megabyte_model.hpp: shared by the tests of MEGABYTE models: small shapes, their weights as a state_dict, and a naive
// implementation in double, sequence by sequence as in training.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "../../models/megabyte/megabyte_checkpoint.hpp"
#include "../../models/megabyte/megabyte_writer.hpp"
#include "pytorch_files.hpp"
#include "tiny_model.hpp"

namespace bytes {

using namespace pocket;
using Vector = std::vector<double>;

/// The sizes of a model; the feed-forward blocks are four times as wide as their stage.
struct Shape {
  int dim, local_dim, layers, local_layers, heads, head_dim, patches, patch_size;
  bool rotary = false, positions = false;
};

inline MegabyteConfig config_of(const Shape& s) {
  MegabyteConfig c;
  c.global = {s.dim, 4 * s.dim, s.layers};
  c.local = {s.local_dim, 4 * s.local_dim, s.local_layers};
  c.n_heads = s.heads;
  c.head_dim = s.head_dim;
  c.patches = s.patches;
  c.patch_size = s.patch_size;
  c.rotary = s.rotary;
  c.positions = s.positions;
  return c;
}

/// A small model with all features.
inline MegabyteConfig small_config() { return config_of({48, 32, 2, 2, 3, 16, 12, 4, true, true}); }

inline ModelParts parts_of(const MegabyteConfig& config, Type type) {
  ModelParts parts;
  set_architecture(config, parts);
  parts.type = type;
  parts.threads = 1;
  return parts;
}

/// An open model in memory.
struct MemoryModel {
  tiny::Bytes bytes;
  MegabyteModel model;

  explicit MemoryModel(tiny::Bytes b) : bytes(std::move(b)) {
    EXPECT_TRUE(model.open_memory(bytes.data(), bytes.size())) << model.error;
  }
  MemoryModel(const MegabyteConfig& config, Type type) : MemoryModel(tiny::model_bytes(parts_of(config, type))) {}
};

/// Random weights from tiny_model.hpp, with the checkpoint's names.
inline std::vector<pytorch::NamedTensor> state_dict(const MegabyteConfig& c) {
  std::vector<pytorch::NamedTensor> all;
  std::string why;
  for (const TensorSpec& spec : tensor_specs(c)) {
    std::vector<float> values(size_t(spec.rows) * spec.cols);
    EXPECT_TRUE(tiny::random_rows(spec, 0, spec.rows, values.data(), why));
    const std::string raw(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
    const std::string name = megabyte_name(spec.name);
    if (!all.empty() && all.back().name == name) {  // V follows K
      all.back().shape[0] *= 2;
      all.back().elements += raw;
      continue;
    }
    all.push_back({name, {spec.rows, spec.cols}, raw});
    if (spec.layout == Layout::vector) all.back().shape = {spec.cols};
  }
  for (const char* stage : {"0", "1"}) {
    std::string raw;
    for (int i = 0; c.rotary && i < c.head_dim / 2; i++)
      pytorch::append(raw, float(std::pow(10000.0, -2.0 * i / c.head_dim)));
    if (c.rotary) all.push_back({"transformers." + std::string(stage) + ".rotary_emb.inv_freq", {c.head_dim / 2}, raw});
  }
  return all;
}

/// The naive implementation in double: one complete sequence at a time.
class Reference {
 public:
  explicit Reference(const MegabyteConfig& config, const ReadRows& read = tiny::random_rows) : c_(config) {
    std::string why;
    for (const TensorSpec& spec : tensor_specs(c_)) {
      std::vector<float> values(size_t(spec.rows) * spec.cols);
      EXPECT_TRUE(read(spec, 0, spec.rows, values.data(), why)) << why;
      weights_[spec.name] = Vector(values.begin(), values.end());
    }
  }

  /// Logits before the first byte, and after each byte.
  std::vector<Vector> logits(const std::vector<int>& text) const {
    const int size = c_.patch_size, patches = std::max(1, (int(text.size()) + size - 1) / size);
    std::vector<Vector> sequence = {of("global.start")}, all;
    for (int k = 0; k + 1 < patches; k++) sequence.push_back(patch(text, k));
    const std::vector<Vector> global = stage("global", c_.global, sequence);
    for (int k = 0; k < patches; k++) {
      const Vector next = linear("next", global[size_t(k)]);
      std::vector<Vector> local = {of("local.start")};
      for (int i = 0; i < size && k * size + i < int(text.size()); i++) {
        local.push_back(row("local.embedding", text[size_t(k * size + i)], c_.local.dim));
        if (c_.positions) add(local.back(), row("local.positions", i, c_.local.dim));
        add(local.back(), Vector(next.begin() + i * c_.local.dim, next.begin() + (i + 1) * c_.local.dim));
      }
      const std::vector<Vector> out = stage("local", c_.local, local);
      for (size_t i = k == 0 ? 0 : 1; i < out.size(); i++) all.push_back(linear("output", out[i]));
    }
    return all;
  }

 private:
  const Vector& of(const std::string& name) const { return weights_.at(name); }
  Vector row(const std::string& name, int r, int cols) const {
    return Vector(of(name).begin() + r * cols, of(name).begin() + (r + 1) * cols);
  }
  static void add(Vector& x, const Vector& y) {
    for (size_t i = 0; i < x.size(); i++) x[i] += y[i];
  }
  Vector multiply(const std::string& name, const Vector& x) const {
    const Vector& w = of(name);
    Vector y(w.size() / x.size());
    for (size_t r = 0; r < y.size(); r++)
      for (size_t k = 0; k < x.size(); k++) y[r] += w[r * x.size() + k] * x[k];
    return y;
  }
  Vector linear(const std::string& name, const Vector& x) const {
    Vector y = multiply(name, x);
    add(y, of(name + ".bias"));
    return y;
  }
  Vector layer_norm(const std::string& name, Vector x) const {
    double mean = 0, variance = 0;
    for (double v : x) mean += v / double(x.size());
    for (double v : x) variance += (v - mean) * (v - mean) / double(x.size());
    for (size_t i = 0; i < x.size(); i++)
      x[i] = (x[i] - mean) / std::sqrt(variance + 1e-5) * of(name)[i] + of(name + ".bias")[i];
    return x;
  }
  Vector rms_norm(const std::string& name, Vector x) const {
    double squares = 0;
    for (double v : x) squares += v * v;
    const double norm = std::sqrt(squares) / std::sqrt(double(x.size()));
    for (size_t i = 0; i < x.size(); i++) x[i] = x[i] / std::max(norm, 1e-8) * of(name)[i];
    return x;
  }
  Vector patch(const std::vector<int>& text, int k) const {
    Vector x;
    for (int i = 0; i < c_.patch_size; i++) {
      const Vector e = row("global.embedding", text[size_t(k * c_.patch_size + i)], c_.local.dim);
      x.insert(x.end(), e.begin(), e.end());
    }
    x = layer_norm("embedded_norm", linear("patch", layer_norm("patch_norm", x)));
    if (c_.positions) add(x, row("global.positions", k, c_.global.dim));
    return x;
  }
  /// The token shift: the second half of every position's channels comes from the previous position. The first half is
  /// the larger one.
  static std::vector<Vector> shifted(const std::vector<Vector>& x) {
    std::vector<Vector> y = x;
    for (size_t t = 0; t < x.size(); t++)
      for (size_t i = (x[t].size() + 1) / 2; i < x[t].size(); i++) y[t][i] = t == 0 ? 0 : x[t - 1][i];
    return y;
  }
  void rotate(Vector& x, int position) const {
    const int half = c_.head_dim / 2;
    for (int head = 0; c_.rotary && head < c_.n_heads; head++)
      for (int i = 0; i < half; i++) {
        double &p = x[size_t(head * c_.head_dim + i)], &q = x[size_t(head * c_.head_dim + i + half)];
        const double angle = position * std::pow(10000.0, -2.0 * i / c_.head_dim), a = p, b = q;
        p = a * std::cos(angle) - b * std::sin(angle);
        q = b * std::cos(angle) + a * std::sin(angle);
      }
  }
  std::vector<Vector> attention(const std::string& p, const std::vector<Vector>& x) const {
    std::vector<Vector> k, v, out;
    for (size_t t = 0; t < x.size(); t++) {
      const Vector in = rms_norm(p + "attention_norm", x[t]);
      Vector q = multiply(p + "wq", in), found(q.size());
      k.push_back(multiply(p + "wk", in));
      v.push_back(multiply(p + "wv", in));
      rotate(q, int(t));
      rotate(k[t], int(t));
      for (size_t head = 0; head < q.size(); head += size_t(c_.head_dim)) {
        Vector s(t + 1);
        double sum = 0;
        for (size_t j = 0; j <= t; j++) {
          for (size_t i = head; i < head + size_t(c_.head_dim); i++) s[j] += q[i] * k[j][i];
          sum += s[j] = std::exp(s[j] / std::sqrt(double(c_.head_dim)));
        }
        for (size_t j = 0; j <= t; j++)
          for (size_t i = head; i < head + size_t(c_.head_dim); i++) found[i] += s[j] / sum * v[j][i];
      }
      out.push_back(multiply(p + "wo", found));
    }
    return out;
  }
  std::vector<Vector> stage(const std::string& name, const MegabyteStage& s, std::vector<Vector> x) const {
    for (int l = 0; l < s.n_layers; l++) {
      const std::string p = name + ".layers." + std::to_string(l) + ".";
      const std::vector<Vector> found = attention(p, shifted(x));
      for (size_t t = 0; t < x.size(); t++) add(x[t], found[t]);
      const std::vector<Vector> in = shifted(x);
      for (size_t t = 0; t < x.size(); t++) {
        Vector hidden = linear(p + "w1", rms_norm(p + "ffn_norm", in[t]));
        for (double& h : hidden) h *= 0.5 * std::erfc(-h / std::sqrt(2.0));
        add(x[t], linear(p + "w2", hidden));
      }
    }
    for (Vector& v : x) v = rms_norm(name + ".final_norm", v);
    return x;
  }

  MegabyteConfig c_;
  std::map<std::string, Vector> weights_;
};

}  // namespace bytes
