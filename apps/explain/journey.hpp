// journey.hpp: the numbers of one token's way through layer 0, step by step, computed with the kernels of the session and
// the keys and values of its cache.
#pragma once

#include "collect.hpp"
#include "parts.hpp"

namespace pocket::explain {

struct Journey {
  using Vector = std::vector<float>;
  int position = 0, head = 0;
  Vector x;                    // (dim): the embedding
  float rms = 0;               // root mean square of x, with eps
  Vector xn;                   // (dim)
  Vector q, k, v;              // (head_dim), of the head, before rope
  Vector q_rope, k_rope;       // (head_dim)
  Vector angles;               // (head_dim / 2): radians by which each pair turns
  Vector scores, weights;      // (position + 1)
  std::vector<int> top;        // at most 5 tokens, with the largest weights
  Vector top_values;           // (top, head_dim)
  Vector output;               // (head_dim), of the head
  Vector attention_update;     // (dim)
  Vector middle, middle_norm;  // (dim)
  Vector gate, up, hidden;     // (hidden_dim)
  Vector mlp_update;           // (dim)
  Vector layer_output;         // (dim)
  Vector last, last_norm;      // (dim): after the last layer
  Vector logits;               // (vocab_size)
};

/// Rotates the pairs of a head, as rope does.
inline std::vector<float> rotated(const std::vector<float>& x, const std::vector<float>& angles) {
  std::vector<float> y = x;
  const size_t half = angles.size();
  for (size_t i = 0; i < half; i++) {
    const float cos = std::cos(angles[i]), sin = std::sin(angles[i]);
    y[i] = x[i] * cos - x[i + half] * sin;
    y[i + half] = x[i + half] * cos + x[i] * sin;
  }
  return y;
}

/// A number of the KV cache.
inline float key_of(const KvBlock& kv, bool f32, int key, int i) {
  const size_t at = size_t(kv.key_at(key) + 16 * i);
  return (f32 ? static_cast<float*>(kv.k)[at] : float(static_cast<int8_t*>(kv.k)[at])) * kv.k_scale[key];
}
inline float value_of(const KvBlock& kv, bool f32, int key, int i) {
  const size_t at = size_t(key) * size_t(kv.width) + size_t(i);
  return f32 ? static_cast<float*>(kv.v)[at] : float(static_cast<int8_t*>(kv.v)[at]) * kv.v_scale[key];
}

/// Follows token `id` at a position that was observed.
inline Journey follow(const Session& session, const Collector& seen, Parts& parts, int id, int position, int head) {
  const Model& model = session.model();
  const Config& c = model.config;
  const Layer& w = model.layers[0];
  Journey j;
  j.position = position;
  j.head = head;
  j.x.resize(size_t(padded(c.dim)));
  model.read_row(model.token_embedding, id, j.x.data());
  j.x.resize(size_t(c.dim));
  double squares = 0;
  for (const float x : j.x) squares += double(x) * x;
  j.rms = float(std::sqrt(squares / c.dim + double(c.norm_eps)));
  j.xn = parts.norm(j.x.data(), w.attention_norm);
  const int group = c.n_heads / c.n_kv_heads, kv_head = head / group;
  const auto head_of = [&](Journey::Vector all, int h, int heads, const Tensor& norm) {
    parts.normalize(all, heads, norm);
    return Journey::Vector(all.begin() + h * c.head_dim, all.begin() + (h + 1) * c.head_dim);
  };
  j.q = head_of(parts.multiply(w.wq, j.xn, w.bq), head, c.n_heads, w.q_norm);
  j.k = head_of(parts.multiply(w.wk, j.xn, w.bk), kv_head, c.n_kv_heads, w.k_norm);
  const Journey::Vector v = parts.multiply(w.wv, j.xn, w.bv);
  j.v.assign(v.begin() + kv_head * c.head_dim, v.begin() + (kv_head + 1) * c.head_dim);
  for (int i = 0; i < c.head_dim / 2; i++)
    j.angles.push_back(c.has_rope(0) ? float(position * rope_frequency(c, i)) : 0.f);
  j.q_rope = rotated(j.q, j.angles);
  j.k_rope = rotated(j.k, j.angles);
  j.output.resize(size_t(c.head_dim));
  float highest = -std::numeric_limits<float>::infinity();
  for (int t = 0; t <= position; t++) {
    const KvBlock kv = session.kv_block(0, kv_head, t / kBlockKeys);
    double score = 0;
    for (int i = 0; i < c.head_dim; i++)
      score += double(j.q_rope[size_t(i)]) * key_of(kv, session.kv_f32(), t % kBlockKeys, i);
    j.scores.push_back(float(score));
    highest = std::max(highest, float(score));
  }
  double sum = 0;
  for (const float s : j.scores) sum += std::exp(double(s - highest));
  for (int t = 0; t <= position; t++) {
    j.weights.push_back(float(std::exp(double(j.scores[size_t(t)] - highest)) / sum));
    const KvBlock kv = session.kv_block(0, kv_head, t / kBlockKeys);
    for (int i = 0; i < c.head_dim; i++)
      j.output[size_t(i)] += j.weights.back() * value_of(kv, session.kv_f32(), t % kBlockKeys, i);
  }
  j.top = largest(j.weights.data(), position + 1, 5);
  for (const int t : j.top) {
    const KvBlock kv = session.kv_block(0, kv_head, t / kBlockKeys);
    for (int i = 0; i < c.head_dim; i++) j.top_values.push_back(value_of(kv, session.kv_f32(), t % kBlockKeys, i));
  }
  const auto difference = [](const Journey::Vector& a, const Journey::Vector& b) {
    Journey::Vector d(a.size());
    for (size_t i = 0; i < a.size(); i++) d[i] = a[i] - b[i];
    return d;
  };
  const auto dim = [&](const float* at) { return Journey::Vector(at, at + c.dim); };
  j.middle = dim(seen.first_middle(size_t(position)));
  j.attention_update = difference(j.middle, j.x);
  j.middle_norm = parts.norm(j.middle.data(), w.ffn_norm);
  j.gate = parts.multiply(w.w1, j.middle_norm, w.b1);
  j.up = parts.multiply(w.w3, j.middle_norm, w.b3);
  j.hidden = parts.swiglu(j.gate, j.up);
  j.layer_output = dim(seen.output(0, size_t(position)));
  j.mlp_update = difference(j.layer_output, j.middle);
  j.last = dim(seen.output(c.n_layers - 1, size_t(position)));
  j.last_norm = parts.norm(j.last.data(), model.final_norm);
  j.logits = parts.multiply(model.output, j.last_norm, Tensor());
  return j;
}

}  // namespace pocket::explain
