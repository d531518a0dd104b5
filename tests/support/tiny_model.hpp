// tiny_model.hpp: shared by the tests: random numbers that are the same on every machine, small models written by
// ModelWriter, functions that corrupt model files, decoders of the number formats that run.cpp defines, and a Llama in
// double as a reference.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "../../export/engine.hpp"
#include "../../export/model_writer.hpp"
#include "files.hpp"

namespace tiny {

using namespace pocket;

// ---- Memory and numbers ----

/// Allocates exactly n elements on a 64-byte boundary, so that ASan detects a read one byte past the end.
template <class T> struct Aligned {
  using value_type = T;
  Aligned() = default;
  template <class U> Aligned(const Aligned<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t(kAlign))); }
  void deallocate(T* p, size_t) { ::operator delete(p, std::align_val_t(kAlign)); }
  bool operator==(const Aligned&) const { return true; }
  bool operator!=(const Aligned&) const { return false; }
};
using Bytes = std::vector<uint8_t, Aligned<uint8_t>>;
using Floats = std::vector<float, Aligned<float>>;

/// SplitMix64. Floats are computed from it by exact operations only, so that every machine tests the same numbers.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t bits() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    return z ^ z >> 31;
  }
  /// 0 ... n - 1
  int below(int n) { return int(bits() % uint64_t(n)); }
  double uniform(double low, double high) {
    return std::fma(high - low, double(bits() >> 11) / 9007199254740992.0, low);
  }
  /// Approximately normal with standard deviation 1: the sum of twelve uniform numbers.
  float normal() {
    double sum = -6;
    for (int i = 0; i < 12; i++) sum += uniform(0, 1);
    return float(sum);
  }

 private:
  uint64_t state_;
};

inline Floats normal_floats(Random& random, size_t n, float deviation = 1) {
  Floats values(n);
  for (float& v : values) v = random.normal() * deviation;
  return values;
}

/// Whether n floats have the same bits; a failure reports the first difference.
inline ::testing::AssertionResult same_bits(const float* a, const float* b, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (std::memcmp(a + i, b + i, sizeof(float)) != 0)
      return ::testing::AssertionFailure()
             << "element " << i << " of " << n << ": " << a[i] << " (bits " << std::hex << load<uint32_t>(a + i)
             << ") and " << b[i] << " (bits " << load<uint32_t>(b + i) << ")";
  return ::testing::AssertionSuccess();
}

/// The kernel sets that this CPU supports.
inline std::vector<const Kernels*> kernel_sets() {
  std::vector<const Kernels*> sets;
  for (const Kernels* k = kernel_table(); k->name; k++)
    if (k->supported()) sets.push_back(k);
  return sets;
}

// ---- Models ----

/// A Llama of this shape, trained for 300 positions.
inline Config shape(int dim, int hidden, int layers, int heads, int kv_heads, int head_dim, int vocab) {
  Config c;
  c.dim = dim;
  c.hidden_dim = hidden;
  c.n_layers = layers;
  c.n_heads = heads;
  c.n_kv_heads = kv_heads;
  c.head_dim = head_dim;
  c.vocab_size = vocab;
  c.max_seq_len = 300;
  return c;
}

/// A small Llama: 2 layers, 4 query heads on 2 key/value heads.
inline Config small_config() {
  Config c = shape(64, 96, 2, 4, 2, 16, 100);
  c.max_seq_len = 512;
  return c;
}

/// Random weights that depend on the tensor's name and the row only: matrices with standard deviation 1 / sqrt(cols),
/// so that products keep the magnitude of a vector; embeddings with 1; norm weights around 1; biases around 0.
inline bool random_rows(const TensorSpec& spec, int64_t first, int64_t count, float* out, std::string&) {
  const float deviation = spec.layout == Layout::panels ? 1.f / std::sqrt(float(spec.cols)) : 1.f;
  const float mean = spec.name[spec.name.rfind('.') + 1] == 'b' ? 0 : 1;  // of a vector: bq, bk, ...; or a norm
  for (int64_t r = first; r < first + count; r++) {
    Random random(hash_bytes(spec.name.data(), spec.name.size()) + uint64_t(r) * 0x2545F4914F6CDD1D);
    for (int c = 0; c < spec.cols; c++)
      *out++ = spec.layout == Layout::vector ? std::fma(0.2f, random.normal(), mean) : random.normal() * deviation;
  }
  return true;
}

inline ModelParts parts_of(const Config& config, Type type) {
  ModelParts parts;
  parts.config = config;
  parts.type = type;
  parts.threads = 1;
  return parts;
}

/// The bytes of a model file.
inline Bytes model_bytes(const ModelParts& parts, const ReadRows& rows = random_rows) {
  const TemporaryFolder folder;
  ModelWriter writer;
  if (!writer.write(folder.file("model.bin"), parts, rows, nullptr)) {
    ADD_FAILURE() << writer.error;
    return {};
  }
  const std::string file = read_file(folder.file("model.bin"));
  return Bytes(file.begin(), file.end());
}

inline std::string_view text_of(const Bytes& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// An open model in memory.
struct MemoryModel {
  Bytes bytes;
  Model model;

  explicit MemoryModel(Bytes b) : bytes(std::move(b)) {
    EXPECT_TRUE(model.open_memory(bytes.data(), bytes.size())) << model.error;
  }
  MemoryModel(const Config& config, Type type) : MemoryModel(model_bytes(parts_of(config, type))) {}
};

/// n token ids.
inline std::vector<int> random_ids(int n, int vocab_size, uint64_t seed = 1) {
  Random random(seed);
  std::vector<int> ids;
  for (int i = 0; i < n; i++) ids.push_back(random.below(vocab_size));
  return ids;
}

// ---- Corrupting a file ----

inline Header header_of(const Bytes& file) { return load<Header>(file.data()); }

template <class T> void put(Bytes& file, size_t at, T value) {
  ASSERT_LE(at + sizeof value, file.size());
  std::memcpy(file.data() + at, &value, sizeof value);
}

/// Recomputes both checksums if the tensors are within the file.
inline void update_checksums(Bytes& file) {
  Header h = header_of(file);
  const uint64_t front = h.tensors.offset;
  if (front < sizeof h || front > file.size()) return;
  h.tensors_checksum = hash_bytes(file.data() + front, file.size() - front);
  h.checksum = 0;
  std::memcpy(file.data(), &h, sizeof h);
  h.checksum = hash_bytes(file.data(), size_t(front));
  std::memcpy(file.data(), &h, sizeof h);
}

/// A copy with `value` at byte `at` and valid checksums.
template <class T> Bytes patched(Bytes file, size_t at, T value) {
  put(file, at, value);
  update_checksums(file);
  return file;
}

/// The offset of entry `i` of the tensor table.
inline size_t entry_at(const Bytes& file, size_t i) {
  return size_t(header_of(file).tensor_table.offset) + i * sizeof(TensorEntry);
}

// ---- Decoding the number formats ----

/// Weight (row, col) of a matrix in panels; run.cpp documents the layout.
inline double panel_weight(const Tensor& t, int row, int col) {
  const size_t width = (size_t(t.cols) + 63) / 64 * 64, groups = width / 32, k = size_t(col), r = size_t(row % 16);
  if (t.type == Type::f32) return load<float>(t.data + row / 16 * (width * 64) + k * 64 + r * 4);
  if (t.type == Type::q8) {
    const uint8_t* panel = t.data + row / 16 * (width * 16 + groups * 32);
    const uint32_t scale = uint32_t(load<uint16_t>(panel + width * 16 + k / 32 * 32 + r * 2)) << 16;
    return int8_t(panel[k / 4 * 64 + r * 4 + k % 4]) * double(load<float>(&scale));
  }
  const size_t group_scales = (groups * 8 + 63) / 64 * 64;
  const uint8_t* panel = t.data + row / 16 * (width * 8 + group_scales + 64);
  const uint8_t codes = panel[k / 8 * 64 + r * 4 + k % 4], scales = panel[width * 8 + k / 64 * 16 + r];
  const int code = k % 8 < 4 ? codes % 16 : codes / 16, s = k % 64 < 32 ? scales % 16 : scales / 16;
  const double group_scale = s < 8 ? 5 + s : -(5 + s - 8);
  return double(load<float>(panel + width * 8 + group_scales + r * 4)) * group_scale * t.codebook[code];
}

/// Weight (row, col) of the embedding table: rows of groups; a group is 32 floats, or a bfloat16 scale and 32 bytes.
inline double embedding_weight(const Tensor& t, int row, int col) {
  const size_t groups = (size_t(t.cols) + 63) / 64 * 2, group = size_t(row) * groups + size_t(col) / 32;
  if (t.type == Type::f32) return load<float>(t.data + group * 128 + col % 32 * 4);
  const uint32_t scale = uint32_t(load<uint16_t>(t.data + group * 34)) << 16;
  return int8_t(t.data[group * 34 + 2 + size_t(col) % 32]) * double(load<float>(&scale));
}

inline double vector_weight(const Tensor& t, int i) { return load<float>(t.data + 4 * size_t(i)); }

// ---- The plain Llama of run.cpp as the oracle of the fast forward ----

/// Radians per position of rotary pair i, as in modeling_rope_utils.py of Hugging Face transformers.
inline double reference_frequency(const Config& c, int i) {
  const double inv_freq = 1.0 / std::pow(double(c.rope_theta), 2.0 * i / c.head_dim), factor = c.rope_factor;
  if (c.rope_scaling == RopeScaling::none) return inv_freq;
  if (c.rope_scaling == RopeScaling::linear) return inv_freq / factor;
  const double old_len = c.rope_original_len, low = c.rope_low_freq, high = c.rope_high_freq;
  const double wavelen = 2 * 3.14159265358979323846 / inv_freq;
  if (wavelen > old_len / low) return inv_freq / factor;
  if (wavelen < old_len / high) return inv_freq;
  const double smooth = (old_len / wavelen - low) / (high - low);
  return (1 - smooth) * inv_freq / factor + smooth * inv_freq;
}

/// Rounds n numbers to int8 with one scale, max|x| / 127, like the engine's activations and KV cache.
inline void round_to_int8(float* x, size_t n) {
  double largest = 0;
  for (size_t i = 0; i < n; i++) largest = std::max(largest, std::fabs(double(x[i])));
  for (size_t i = 0; i < n && largest > 0; i++) x[i] = float(std::nearbyint(x[i] / largest * 127) / 127 * largest);
}

/// Everything that the plain Llama computes for some tokens.
struct Reference {
  using Vector = std::vector<float>;
  std::vector<Vector> logits;                               // (tokens, vocab_size)
  std::vector<std::vector<Vector>> layer_output;            // (layers, tokens, dim)
  std::vector<std::vector<std::vector<Vector>>> attention;  // (layers, heads, tokens, token + 1)
};

/// Whether activations are rounded to int8 before a matmul, as the engine does for q8 and q4 weights.
enum class MatmulInputs { exact, int8 };

/// The reference for a session of `model` with this KV cache.
inline Reference reference_for(const Model& model, const std::vector<int>& ids, KvType kv = KvType::f32,
                               MatmulInputs inputs = MatmulInputs::exact) {
  const Config& c = model.config;
  Reference r;
  r.layer_output.resize(size_t(c.n_layers));
  r.attention.assign(size_t(c.n_layers), std::vector<std::vector<Reference::Vector>>(size_t(c.n_heads)));
  ReferenceLlama llama(model);
  if (inputs == MatmulInputs::int8)
    llama.round_input = [](Reference::Vector& x) {
      for (size_t i = 0; i < x.size(); i += 32) round_to_int8(&x[i], std::min<size_t>(32, x.size() - i));
    };
  if (kv == KvType::q8)
    llama.round_kv = [&c](Reference::Vector& x) {
      for (size_t head = 0; head < x.size(); head += size_t(c.head_dim)) round_to_int8(&x[head], size_t(c.head_dim));
    };
  llama.observer = [&](const Observation& o) {
    if (o.kind != Observation::layer_output && o.kind != Observation::attention) return;
    auto& rows = o.kind == Observation::layer_output ? r.layer_output[o.layer] : r.attention[o.layer][o.head];
    rows.emplace_back(o.data, o.data + o.size);
  };
  for (size_t i = 0; i < ids.size(); i++) {
    const float* logits = llama.forward(ids[i], int(i));
    r.logits.emplace_back(logits, logits + c.vocab_size);
  }
  return r;
}

}  // namespace tiny
