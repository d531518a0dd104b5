// run.cpp: a language model in one file.
//
// Runs models of the Llama architecture (Llama, TinyLlama, SmolLM2, TinyStories, ...) on a CPU, from one model.bin that
// export/convert writes. The same model and tokens give the same bits on every CPU, for any number of threads and any
// split of the prompt into batches.
//
// Program  g++ -std=c++17 -O3 -pthread run.cpp -o run && ./run model.bin -i "Once upon a time"
//          This file and tokenizer.hpp are all it takes; `make` builds the full command line, apps/cli, around them.
// Library  copy this file (and tokenizer.hpp, if you need text) into your project:
//
//     #define POCKET_NO_MAIN
//     #include "run.cpp"
//     pocket::Model model;                                     // immutable once open; share it among threads
//     if (!model.open("model.bin")) { puts(model.error.c_str()); return 1; }
//     pocket::Session session(model);                          // KV cache and scratch; one thread at a time
//     pocket::Sampler pick;
//     const float* logits = session.forward(ids, n);           // (vocab_size,), or null and session.error
//     int next = pick(logits, model.config.vocab_size);        // feed it back: session.forward(&next, 1)
//
// The library throws no exception, never exits, prints nothing and has no global state that changes. Many sessions may
// share a model; a session belongs to one caller at a time, but any thread or signal handler may cancel() it.
//
// Read it from the top: after section 3 you know how a Llama works; the rest makes it fast and safe.
//
// model.bin, little-endian, every section on a multiple of 64 bytes:
//
//     0      +--------------------------------------------------------------+
//            | Header, 256 bytes: sizes, rope, offsets, two checksums       |
//     256    +--------------------------------------------------------------+
//            | tokenizer   (format: tokenizer.hpp)                          |
//            | chat        (stop ids; then the format of ChatTemplate)      |
//            | provenance  (text: source, licence, how it was quantized)    |
//            | self-test   (a few ids and the hash of their logits)         |
//            | tensor table (one TensorEntry each, in tensor_specs order)   |
//     4096 n +--------------------------------------------------------------+
//            | tensors: the embedding first, then the matrices in order     |
//            +--------------------------------------------------------------+
//
// A matrix is stored in panels of 16 rows, so that a SIMD lane is a row and no sum ever crosses lanes. Four consecutive
// columns of a row share one 32-bit lane, the shape that every int8 dot-product instruction reads:
//
//     q8 panel, vector v (64 bytes):   byte 4r+b = row r, column 4v+b          then bfloat16 scales (group, row)
//     q4 panel, vector v (64 bytes):   byte 4r+b = row r, columns 8v+b (low nibble) and 8v+4+b (high nibble)
//                                      then 4-bit group scales, padded to 64 bytes, and one float32 scale per row
//     f32 panel, vector k (64 bytes):  float r = row r, column k
//
// MIT licence. Copyright (c) 2026 the pocketllama authors.
#ifndef POCKET_RUN_CPP  // this file may be included twice
#define POCKET_RUN_CPP

#if defined(_WIN32)
#define NOMINMAX 1
#include <windows.h>
#else
#include <sys/mman.h>
#endif
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <algorithm>
#include <array>
#include <atomic>
#include <bitset>
#include <cerrno>
#include <cfenv>
#include <cfloat>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#if !defined(__APPLE__)
#include <sys/auxv.h>
#endif
#endif
#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || \
    defined(__NO_SIGNED_ZEROS__) || __FINITE_MATH_ONLY__
#error "run.cpp promises the same bits everywhere, which -ffast-math, its parts and -Ofast break: build it with -O3"
#elif __FLT_EVAL_METHOD__ != 0
#error "run.cpp requires float arithmetic without excess precision: for 32-bit x86, add -msse2 -mfpmath=sse"
#elif !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "run.cpp maps little-endian files in place and requires a little-endian machine"
#endif
#if defined(__clang__) && defined(__x86_64__)  // defines no macro for the parts: this file is compiled without them
#pragma float_control(push)
#pragma float_control(precise, on)
#endif
// Source files compiled with different -m flags must not share inline functions: of all copies the linker keeps one,
// whose instructions the CPU may lack. So the flags are part of every name: a macro that is defined is pasted as 1.
#ifndef POCKET_ISA
#define POCKET_PASTE(A, B, C, D, E, F, G, H, I, J, K, L, M, N) isa_##A##B##C##D##E##F##G##H##I##J##K##L##M##N
#define POCKET_PASTE_VALUES(...) POCKET_PASTE(__VA_ARGS__)
#define POCKET_ISA                                                                                                   \
  POCKET_PASTE_VALUES(__SSE3__, __SSSE3__, __SSE4_1__, __SSE4_2__, __POPCNT__, __AVX__, __FMA__, __BMI2__, __AVX2__, \
                      __AVX512F__, __AVX512VL__, __AVX512VNNI__, __ARM_FEATURE_SVE, __ARM_FEATURE_DOTPROD)
#endif

namespace pocket {
inline namespace POCKET_ISA {
#ifndef POCKET_FMA
#define POCKET_FMA std::fma  // a * b + c, rounded once. Another function of this name, where the library's rounds twice
#endif
using POCKET_FMA;

// ==== 1. The data of a model =========================================================================================
inline constexpr const char* kVersion = "0.1.0";
enum class Type : uint32_t { f32 = 0, q8 = 1, q4 = 2 };  // how a tensor's numbers are stored: section 6
enum class RopeScaling : uint32_t { none = 0, linear = 1, llama3 = 2 };
// The shape of a model, by the names of Meta's code.
struct Config {
  int dim = 0;          // width of the residual stream
  int hidden_dim = 0;   // width inside the feed-forward block
  int n_layers = 0;     // transformer blocks
  int n_heads = 0;      // query heads
  int n_kv_heads = 0;   // key/value heads; each serves n_heads / n_kv_heads query heads (GQA)
  int head_dim = 0;     // width of one head; n_heads * head_dim is usually dim
  int vocab_size = 0;   // tokens
  int max_seq_len = 0;  // positions the model was trained for
  float norm_eps = 1e-5f;
  float rope_theta = 10000.f;                    // base of the rotary frequencies
  RopeScaling rope_scaling = RopeScaling::none;  // how the frequencies were stretched for longer texts
  float rope_factor = 1;                         // linear, llama3
  float rope_low_freq = 1, rope_high_freq = 4;   // llama3: turns of a pair within rope_original_len positions
  int rope_original_len = 0;                     // llama3
  bool tied = false;                             // the output matrix is the embedding table
  // What relatives of Llama add to a layer, or leave out:
  bool qkv_bias = false, o_bias = false, mlp_bias = false;  // biases of wq, wk, wv (Qwen2), of wo, of w1, w3, w2
  bool qk_norm = false;                                     // rmsnorm of each head of q and k before rope (Qwen3)
  std::bitset<256> no_rope;                                 // layers without rope (SmolLM3)
  bool has_rope(int layer) const { return layer >= int(no_rope.size()) || !no_rope[size_t(layer)]; }
  int q_dim() const { return n_heads * head_dim; }
  int kv_dim() const { return n_kv_heads * head_dim; }
};
// panels: a matrix to multiply with, drawn above. rows: row-major, gathered. vector: float32, padded to 64 bytes.
enum class Layout { panels, rows, vector };
// A matrix (rows, cols) somewhere in a model file. The weights of a norm are a vector: one row.
struct Tensor {
  Type type = Type::f32;
  int rows = 0, cols = 0;
  const uint8_t* data = nullptr;
  size_t bytes = 0;
  int8_t codebook[16] = {};  // q4: the 16 values that a code stands for
  Layout layout = Layout::panels;
};
inline float weight(const Tensor& t, int row, int col);  // one number of a tensor of any type and layout: section 6
struct Layer {
  Tensor attention_norm;  // (dim)
  Tensor wq, wk, wv;      // (q_dim, dim), (kv_dim, dim), (kv_dim, dim)
  Tensor wo;              // (dim, q_dim)
  Tensor ffn_norm;        // (dim)
  Tensor w1, w3;          // (hidden_dim, dim): gate and up
  Tensor w2;              // (dim, hidden_dim): down
  // Empty, cols 0, in a model without them:
  Tensor bq, bk, bv, bo, b1, b3, b2;  // biases: as many numbers as their matrix has rows
  Tensor q_norm, k_norm;              // (head_dim)
};
// map: the weights are the pages of the file, which must not change while the model is open. The system ends a process
// that reads a page beyond the end of a truncated file (SIGBUS); one that is overwritten in place gives other logits.
// copy: the file is read into memory, and may change afterwards.
enum class Load { map, copy };
// The contents of every model file apart from its tensors. Immutable once open: sessions and threads may share it.
class ModelFile {
 public:
  ModelFile() = default;
  virtual ~ModelFile() { unmap(); }
  ModelFile(const ModelFile&) = delete;
  ModelFile& operator=(const ModelFile&) = delete;
  // Opens the file and checks all but the values of the tensors, once. On failure false: `error` is set, nothing open.
  bool open(const char* path, Load load = Load::map);
  // The same for bytes that the caller keeps alive and in place, on a 64-byte boundary.
  bool open_memory(const void* data, size_t size);
  std::string error;               // after a failure: the file, the field, what was expected and what was found
  std::vector<int> stop_ids;       // tokens that end a text, or a reply
  std::vector<int> self_test_ids;  // a prompt ...
  uint64_t self_test_hash = 0;     // ... and the hash of the logits of its last token (hash_logits)
  size_t file_bytes = 0;           // 0: not open
  size_t bytes_per_token = 0;      // weights that forward() reads for one token
  bool all_f32 = false;            // a reference model: no matrix is quantized

  std::string_view tokenizer_bytes() const { return tokenizer_; }  // for Tokenizer::load
  std::string_view chat_bytes() const { return chat_; }            // for ChatTemplate::load
  std::string_view provenance() const { return provenance_; }      // lines of text: source, licence, quantization
  uint64_t checksum() const { return checksum_; }                  // the header's: identifies the model
  bool verify_tensors();                                           // reads all tensors, compares their checksum
  bool read_row(const Tensor& table, int row, float* x) const;     // x (cols, padded to 64); false if unreadable

 private:
  virtual bool read() = 0;  // checks the bytes and binds the tensors; false with `error` set
  template <class Map> bool open_with(const char* name, const Map& map);
  bool map_file(const char* path, Load load);
  void unmap();
  friend struct ModelReader;
  const uint8_t* base_ = nullptr;
  size_t size_ = 0;
  int file_ = -1;       // -1: the bytes are in memory
  bool owned_ = false;  // base_ is unmapped when the model is closed
  std::string_view tokenizer_, chat_, provenance_;
  uint64_t tensors_at_ = 0, tensors_hash_ = 0, checksum_ = 0;
};
// A Llama: its shape and its weights, in a model file.
class Model : public ModelFile {
 public:
  Config config;
  Tensor token_embedding;     // (vocab_size, dim), row-major: gathered, never multiplied
  std::vector<Layer> layers;  // (n_layers)
  Tensor final_norm;          // (dim)
  Tensor output;              // (vocab_size, dim)
  int vocab_size() const { return config.vocab_size; }

 private:
  bool read() override;
};
// A change of a matrix w, of low rank (LoRA, Hu et al. 2021): w x becomes w x + b (a x).
struct LowRank {
  Tensor a, b;  // (rank, cols), (rows, rank padded to 16): panels of float32, on 64-byte boundaries
};
// Such changes of the matrices of a model, at most kMaxRank padded ranks each; those of one matrix are added in order.
struct Adapter {
  std::multimap<const Tensor*, LowRank> changes;
  uint64_t checksum = 0;  // of their values, to tell adapters apart
};
// What an observer is shown of each token, in this order. Its changes count, but not those of a Session's attention.
struct Observation {
  enum Kind { queries, attention, head_outputs, attention_residual, layer_output } kind;
  int layer, head, position;  // head: -1 except for attention; position: of the token
  float* data;  // queries, rotated, and head_outputs, the input of wo: (q_dim); attention: (position + 1),
  int size;     // sum 1; the residual stream after the attention block, and after the layer: (dim)
};
using Observer = std::function<void(const Observation&)>;

// ==== 2. A Llama in 110 plain lines ==================================================================================
// Everything that happens to one token, in float, one step after the other. It is slow and it is the reference: the
// tests compare the fast forward of section 5 with it, and `--kernel reference` runs it.

inline double rope_frequency(const Config& c, int i);  // radians per position of rotary pair i: section 9
class ReferenceLlama {
 public:
  using Vector = std::vector<float>;
  explicit ReferenceLlama(const Model& model) : model_(model), c_(model.config) {}

  // Runs one token at a position, after those before it; a repeated position forgets the later ones. Returns the logits
  // (vocab_size,): a score for each token that may come next. Null if memory is exhausted or the id invalid.
  const float* forward(int id, int position) try {
    if (id < 0 || id >= c_.vocab_size || position < 0) return nullptr;
    position_ = position;
    keys_.resize(model_.layers.size());
    values_.resize(model_.layers.size());
    Vector x(size_t(c_.dim));  // the residual stream: every block reads it and adds to it
    for (int i = 0; i < c_.dim; i++) x[i] = weight(model_.token_embedding, id, i);
    for (int l = 0; l < c_.n_layers; l++) {
      const Layer& w = model_.layers[l];
      add(x, attention(l, rmsnorm(x, w.attention_norm)));
      if (observer) observer({Observation::attention_residual, l, -1, position_, x.data(), c_.dim});
      add(x, feed_forward(w, rmsnorm(x, w.ffn_norm)));
      if (observer) observer({Observation::layer_output, l, -1, position_, x.data(), c_.dim});
    }
    logits_ = matmul(model_.output, rmsnorm(x, model_.final_norm));
    return logits_.data();
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
  Observer observer;
  std::function<void(Vector&)> round_input, round_kv;  // optional: what int8 does to matrix inputs, to keys and values

 private:
  // y = W x + b: element r is the dot product of row r with x. Llama has no biases, b is empty.
  Vector matmul(const Tensor& w, Vector x, const Tensor& bias = {}) const {
    if (round_input) round_input(x);
    Vector y(size_t(w.rows));
    for (int r = 0; r < w.rows; r++)
      for (int k = 0; k < w.cols; k++) y[r] = fma(weight(w, r, k), x[k], y[r]);  // y += w * x, rounded once
    for (int r = 0; r < bias.cols; r++) y[r] += weight(bias, 0, r);
    return y;
  }
  // Divides x by its root mean square, then scales each element by a learned weight (Zhang and Sennrich 2019). Fewer
  // weights than elements: each head by itself.
  Vector rmsnorm(Vector x, const Tensor& weights) const {
    const int n = weights.cols;
    for (float* at = x.data(); at < x.data() + x.size(); at += n) {
      float sum = 0;
      for (int i = 0; i < n; i++) sum = fma(at[i], at[i], sum);
      const float scale = 1 / std::sqrt(sum / float(n) + c_.norm_eps);
      for (int i = 0; i < n; i++) at[i] *= scale * weight(weights, 0, i);
    }
    return x;
  }
  // Encodes the position in every head by rotating pairs of elements, each at its own speed (RoPE, Su et al. 2021).
  void rope(Vector& x) const {
    const int half = c_.head_dim / 2;
    for (size_t head = 0; head < x.size(); head += size_t(c_.head_dim))
      for (int i = 0; i < half; i++) {
        const double angle = position_ * rope_frequency(c_, i);
        const float cos = float(std::cos(angle)), sin = float(std::sin(angle));
        const float a = x[head + i], b = x[head + i + half];
        x[head + i] = fma(a, cos, -(b * sin));
        x[head + i + half] = fma(b, cos, a * sin);
      }
  }
  // Each head compares its query with the keys of all tokens so far and returns the average of their values, weighted
  // by softmax(q . k / sqrt(head_dim)). The keys and values of earlier tokens are kept: they are the KV cache.
  Vector attention(int l, const Vector& x) {
    const Layer& w = model_.layers[l];
    Vector q = matmul(w.wq, x, w.bq), k = matmul(w.wk, x, w.bk), v = matmul(w.wv, x, w.bv), out(q.size());
    if (c_.qk_norm) q = rmsnorm(q, w.q_norm), k = rmsnorm(k, w.k_norm);
    if (c_.has_rope(l)) rope(q), rope(k);
    for (auto [cache, row] : {std::pair(&keys_[l], &k), std::pair(&values_[l], &v)}) {
      if (round_kv) round_kv(*row);
      cache->resize(size_t(position_) * c_.kv_dim());
      cache->insert(cache->end(), row->begin(), row->end());
    }
    if (observer) observer({Observation::queries, l, -1, position_, q.data(), c_.q_dim()});
    Vector score(size_t(position_) + 1);
    for (int head = 0; head < c_.n_heads; head++) {
      const size_t q_at = size_t(head) * c_.head_dim;
      const size_t kv_at = size_t(head / (c_.n_heads / c_.n_kv_heads)) * c_.head_dim;  // several heads share a KV head
      for (int t = 0; t <= position_; t++) {
        const float* key = &keys_[l][size_t(t) * c_.kv_dim() + kv_at];
        score[t] = 0;
        for (int i = 0; i < c_.head_dim; i++) score[t] = fma(q[q_at + i], key[i], score[t]);
        score[t] /= std::sqrt(float(c_.head_dim));
      }
      softmax(score);
      if (observer) observer({Observation::attention, l, head, position_, score.data(), position_ + 1});
      for (int t = 0; t <= position_; t++)
        for (int i = 0; i < c_.head_dim; i++)
          out[q_at + i] = fma(score[t], values_[l][size_t(t) * c_.kv_dim() + kv_at + i], out[q_at + i]);
    }
    if (observer) observer({Observation::head_outputs, l, -1, position_, out.data(), c_.q_dim()});
    return matmul(w.wo, out, w.bo);
  }
  // Scores to weights that are positive and sum to 1: e^score over the sum of all.
  static void softmax(Vector& score) {
    const float top = *std::max_element(score.begin(), score.end());
    float sum = 0;
    for (float& s : score) {
      s = std::exp(s - top);  // at most 1, so that nothing overflows
      sum += s;
    }
    for (float& s : score) s /= sum;
  }
  // w2 (silu(w1 x) * w3 x), silu(g) = g / (1 + e^-g): a gated feed-forward block (SwiGLU, Shazeer 2020).
  Vector feed_forward(const Layer& w, const Vector& x) const {
    Vector gate = matmul(w.w1, x, w.b1);
    const Vector up = matmul(w.w3, x, w.b3);
    for (size_t i = 0; i < gate.size(); i++) gate[i] *= up[i] / (1 + std::exp(-gate[i]));
    return matmul(w.w2, gate, w.b2);
  }
  static void add(Vector& x, const Vector& y) {
    for (size_t i = 0; i < x.size(); i++) x[i] += y[i];
  }
  const Model& model_;
  const Config& c_;
  int position_ = 0;
  std::vector<Vector> keys_, values_;  // of each layer: (positions, kv_dim)
  Vector logits_;                      // (vocab_size)
};

// ==== 3. Sampling and generating =====================================================================================
// Round to nearest and keep denormal numbers for the duration of a call, whatever mode the calling program uses.
struct FloatMode {
  std::fenv_t before;
  FloatMode() {
    std::fegetenv(&before);
    std::fesetenv(FE_DFL_ENV);
  }
  ~FloatMode() { std::fesetenv(&before); }
};
struct SamplerOptions {
  float temperature = 0.8f;  // 0: always the most likely token
  float top_p = 0.9f;        // the smallest set of tokens that holds more than this probability; 1: all
  uint64_t seed = 0;
  int top_k = 0;             // the k most likely only; 0: all
  float min_p = 0;           // only tokens at least this likely, relative to the most likely one
  float repeat_penalty = 1;  // logits of tokens among the last 64 are divided by it (multiplied if negative)
};
inline constexpr size_t kRepeatWindow = 64;  // tokens that the repetition penalty looks back
inline void exp_in_place(float* x, int n);   // e^x of each element, by the fastest kernel set: section 10
// Picks the next token. The same seed and logits give the same choice on every machine.
class Sampler {
 public:
  explicit Sampler(SamplerOptions options = {}) : options_(options), state_(options.seed) {
    std::fill(recent_, recent_ + kRepeatWindow, -1);
  }
  // Picks as sample() does, and remembers the choice.
  int operator()(const float* logits, int n) { return remember(sample(logits, n)); }
  // logits: (n); -infinity is chosen only if all are, +infinity always. Remembers nothing. -1: no memory, or n < 1.
  int sample(const float* logits, int n) try {
    const FloatMode mode;
    if (n <= 0) return -1;
    work_.assign(logits, logits + n);
    penalize(n);
    const int best = likeliest(work_.data(), n);
    return options_.temperature > 0 ? choose(work_[best], best) : best;
  } catch (const std::bad_alloc&) {
    return -1;
  }
  // For tokens that were not chosen here: the prompt.
  int remember(int id) { return recent_[next_++ % kRepeatWindow] = id; }
  // A Sampler with this seed continues the sequence of random numbers.
  uint64_t random_state() const { return state_; }

 protected:  // for samplers that report how they chose
  struct Candidate {
    float p;
    int id;
    static bool likelier(const Candidate& a, const Candidate& b) { return a.p != b.p ? a.p > b.p : a.id < b.id; }
  };
  // SplitMix64 (Steele, Lea and Flood 2014): 24 of its 64 bits make a float in [0, 1).
  float random() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    return float((z ^ z >> 31) >> 40) / 16777216.f;
  }
  // The first of equals; a NaN never wins.
  static int likeliest(const float* logits, int n) {
    int best = 0;
    for (int i = 1; i < n; i++)
      if (logits[i] > logits[best] || logits[best] != logits[best]) best = i;
    return best;
  }
  // Keskar et al. 2019 (CTRL); each token once, however often it occurred.
  void penalize(int n) {
    if (options_.repeat_penalty == 1.f) return;
    for (size_t i = 0; i < kRepeatWindow; i++) {
      const int id = recent_[i];
      if (id < 0 || id >= n || std::find(recent_, recent_ + i, id) != recent_ + i) continue;
      work_[id] = work_[id] > 0 ? work_[id] / options_.repeat_penalty : work_[id] * options_.repeat_penalty;
    }
  }
  // Draws from softmax(logits / temperature), reduced by min-p, top-k and top-p, in this order.
  int choose(float top, int best) {
    const float lowest = top > FLT_MAX ? top : -FLT_MAX;  // a logit of +infinity excludes all others
    for (float& w : work_) w = !(w >= lowest) ? NAN : w == top ? 0 : (w - top) / options_.temperature;
    exp_in_place(work_.data(), int(work_.size()));  // probabilities relative to the most likely token, which is 1
    candidates_.clear();
    for (size_t i = 0; i < work_.size(); i++)
      if (work_[i] >= options_.min_p) candidates_.push_back({work_[i], int(i)});
    if (options_.top_k > 0 && size_t(options_.top_k) < candidates_.size()) {
      const auto end = candidates_.begin() + options_.top_k;
      std::nth_element(candidates_.begin(), end, candidates_.end(), Candidate::likelier);
      candidates_.erase(end, candidates_.end());
      std::sort(candidates_.begin(), candidates_.end(), Candidate::likelier);  // the sums depend on the order
    }
    double total = 0;
    for (const Candidate& c : candidates_) total += c.p;
    if (options_.top_p < 1 && !candidates_.empty()) total = keep_top_p(total);
    double threshold = random() * total;
    for (const Candidate& c : candidates_) {
      threshold -= c.p;
      if (threshold < 0) return c.id;
    }
    return candidates_.empty() ? best : candidates_.back().id;
  }
  // Keeps the likeliest candidates that together hold more than top_p of the total; returns their sum. To keep the sort
  // short, candidates below (1 - top_p) * total / n are dropped first: together they hold less than 1 - top_p.
  double keep_top_p(double total) {
    const double floor = (1.0 - options_.top_p) * total / double(candidates_.size());
    const auto unlikely = [&](const Candidate& c) { return c.p < floor; };
    candidates_.erase(std::remove_if(candidates_.begin(), candidates_.end(), unlikely), candidates_.end());
    std::sort(candidates_.begin(), candidates_.end(), Candidate::likelier);
    double sum = 0;
    size_t kept = 0;
    while (kept < candidates_.size() && (kept == 0 || sum <= options_.top_p * total)) sum += candidates_[kept++].p;
    candidates_.resize(kept);
    return sum;
  }
  SamplerOptions options_;
  uint64_t state_;
  int recent_[kRepeatWindow];  // a ring; -1: empty
  size_t next_ = 0;
  std::vector<float> work_;            // (n): logits; with a temperature, then probabilities relative to the highest
  std::vector<Candidate> candidates_;  // what a choice with a temperature is drawn from
};
// Guesses the next tokens. A right guess saves time; no guess changes the text.
using Propose = std::function<std::vector<int>()>;
inline constexpr int kMaxGuesses = 127;
// Feeds the prompt, then samples up to n tokens. Ends early at a stop id (which is not handed out), when the context is
// full, or when on_token returns false. Returns false on failure, with session.error set. AnySession: Session, or a
// type with its forward, position, context, vocab_size, fail. Pick: Sampler, or a type with its operator(), remember.
// A guess goes through the model with the token before it, and counts while pick agrees (speculative decoding).
template <class AnySession, class Pick>
bool generate(AnySession& session, Pick& pick, const std::vector<int>& prompt, int n, const std::vector<int>& stop_ids,
              const std::function<bool(int id)>& on_token, const Propose& propose = nullptr) {
  int id = 0, generated = 0;
  const auto choose = [&](const float* logits) {  // false: that was the last token
    id = pick(logits, session.vocab_size());
    return id >= 0 && std::find(stop_ids.begin(), stop_ids.end(), id) == stop_ids.end() && on_token(id) &&
           ++generated < n;
  };
  const float* logits = session.forward(prompt.data(), prompt.size());
  for (int prompt_id : prompt) pick.remember(prompt_id);
  if (!logits) return false;
  bool more = n > 0 && choose(logits);
  int batch[kMaxGuesses + 1];
  size_t size = 1;
  const auto verify = [&](size_t i, const float* next) {
    more = choose(next);
    return more && i + 1 < size && id == batch[i + 1];
  };
  while (more && session.position() < session.context()) {
    size = 1;
    batch[0] = id;
    const int room = std::min({session.context() - session.position() - 1, n - generated - 1, kMaxGuesses});
    for (int guess : propose ? propose() : std::vector<int>()) {
      if (int(size) > room || guess < 0 || guess >= session.vocab_size()) break;
      batch[size++] = guess;
    }
    if (!session.forward(batch, size, std::ref(verify))) return false;
  }
  return id >= 0 || session.fail("out of memory");
}

// ==== 4. Public API ==================================================================================================
// Model, Sampler and generate are above. A session is one conversation, a workspace the means to run some of them.
inline constexpr int kMaxContext = 1 << 22;
inline constexpr int kChunk = 128;         // tokens that go through the layers together
enum class KvType { automatic, q8, f32 };  // of keys and values; automatic: f32 for f32 models, else q8
// Sets an error; false, so that a caller can return it.
inline bool set_error(std::string& error, std::string why) {
  error = std::move(why);
  return false;
}
struct SessionOptions {
  int context = 0;  // positions to reserve, at most kMaxContext; 0: the model's max_seq_len
  int threads = 0;  // 0: one per CPU
  KvType kv = KvType::automatic;
  const char* kernel = nullptr;      // a name of kernel_names(); null: the fastest this CPU supports
  const Adapter* adapter = nullptr;  // must outlive the session, unchanged; export/adapter.hpp reads one
};
// What a pass does for one session: n more tokens.
struct Step {
  class Session* session;
  const int* ids;
  size_t n;
  const float* logits = nullptr;  // the result: (vocab_size,) of the last token; null: session->error has the reason
};
// Threads and scratch memory. Sessions may share a workspace, and one pass then reads the weights once for all of them.
// It and its sessions belong to one thread at a time, apart from cancel(). It must outlive them.
class Workspace {
 public:
  explicit Workspace(const Model& model, SessionOptions options = {});  // on failure `error` is set
  ~Workspace();
  // Runs up to kChunk steps, each of another session, chunk by chunk. A step gets the bits that it would get alone, and
  // fails alone. The logits are valid until the next pass. Returns whether all steps succeeded.
  bool forward(Step* steps, size_t count);
  const Model& model() const { return model_; }
  int threads() const;
  const char* kernel() const;
  std::string error;

 private:
  friend class Session;
  const Model& model_;
  std::unique_ptr<struct Transformer> transformer_;  // section 5; null after a failed construction
};
// The position, and the keys and values of all tokens before it.
class Session {
 public:
  explicit Session(const Model& model, SessionOptions options = {});  // on failure `error` is set
  explicit Session(Workspace& shared, SessionOptions options = {});   // without threads and kernel, which are shared
  ~Session();
  // Runs the model over n more tokens. Returns the logits (vocab_size,) of the last one, valid until the workspace's
  // next pass; on failure (out of memory, id outside the vocabulary, context full, cancelled, logits not finite) null,
  // with `error` set and the position unchanged; likewise if a callback throws: the caller gets the exception.
  const float* forward(const int* ids, size_t n);
  // The same with the logits of every token: each(i, logits) in order. If it returns false, token i was the last.
  using EachLogits = std::function<bool(size_t i, const float* logits)>;
  bool forward(const int* ids, size_t n, const EachLogits& each);
  int position() const { return position_; }
  int context() const;
  int vocab_size() const { return model_.config.vocab_size; }
  const Model& model() const { return model_; }
  const Adapter* adapter() const { return adapter_; }
  bool kv_f32() const;  // keys and values are float32, not int8
  int threads() const { return workspace_ ? workspace_->threads() : 0; }
  const char* kernel() const { return workspace_ ? workspace_->kernel() : ""; }
  void rewind(int position) { position_ = std::max(0, std::min(position, position_)); }  // forgets the later tokens
  void reset();  // forgets all tokens, and returns the memory of their keys and values to the system
  // Continues from the first n positions of another session of the model instead. On failure false, and unchanged.
  bool fork(const Session& parent, int n);
  // Stops a running (or the next) forward within one layer; false withdraws a cancel that has not taken effect.
  void cancel(bool stop = true) { cancelled_.store(stop, std::memory_order_relaxed); }
  void observe(Observer observer, bool attention = true) { observer_ = {std::move(observer), attention}; }
  // To save and restore sessions (apps/cli/saved_session.hpp): a block of the KV cache; null pointers if there is none.
  struct KvBlock kv_block(int layer, int kv_head, int block) const;
  void advance() { position_ += position_ < context(); }  // the keys and values of the next position are in place
  std::string error;                                      // "": no error
  bool fail(std::string why) { return set_error(error, std::move(why)); }

 private:
  friend class Workspace;
  friend struct Transformer;
  void open(Workspace* workspace, const SessionOptions& options);
  const float* run(const int* ids, size_t n, const EachLogits* each);
  const Model& model_;
  const Adapter* adapter_ = nullptr;
  std::unique_ptr<Workspace> own_;  // if none is shared
  Workspace* workspace_;
  std::unique_ptr<struct KvCache> kv_;  // section 5; null after a failed construction
  int position_ = 0, start_ = -1;       // start_: the position before the pass that is running; -1: none
  std::atomic<bool> cancelled_{false};
  std::pair<Observer, bool> observer_;  // and whether it is shown attention weights, which take long
};
// The forward pass and the kernels take long to compile. A program of several files can compile them once: one file
// defines POCKET_DEFINE_KERNELS, the others POCKET_SEPARATE_KERNELS.
#if defined(POCKET_DEFINE_KERNELS) || defined(POCKET_SEPARATE_KERNELS)
#define POCKET_SHARED
#else
#define POCKET_SHARED inline
#endif
// The kernel sets that this CPU supports, best first; empty if memory is exhausted. All of them return the same bits.
inline std::vector<std::string> kernel_names();

// ==== 5. The fast forward ============================================================================================
// Computes what ReferenceLlama computes, more than a hundred times as fast. The differences, and their reasons:
//
// - Tokens go through the layers in chunks of up to 128, so that a weight is read from memory once for all of them.
// - Weights have 4 or 8 bits, and the input of a matrix is quantized to int8 (section 6). Generating is bound by
//   reading the weights, so fewer bytes are faster; and sums of integers are exact in any order.
// - A SIMD lane is a row of a matrix or, in a sum over a vector, one of 16 partial sums (section 9). The order of every
//   float addition is fixed, so that each instruction set, batch and number of threads gives the same bits.
// - Keys and values are int8, in blocks of 128 positions. Attention takes one block after the other and merges their
//   results (the online softmax of FlashAttention, section 9), so that no matrix of all scores exists.
// - Threads share the rows of a matrix, or the heads and blocks of attention (section 8). No sum crosses a thread.
// - exp, sin and cos are our own: those of C libraries differ. Memory is reserved before the first pass.

inline constexpr int kPanelRows = 16;   // rows of a panel, one per SIMD lane
inline constexpr int kGroup = 32;       // columns that share a scale, of weights and of activations alike
inline constexpr int kAlign = 64;       // columns are zero-padded to a multiple of this; also the bytes of a cache line
inline constexpr int kLogitRows = 8;    // tokens whose logits are computed together, if all are requested
inline constexpr int kTileTokens = 16;  // tokens of one attention task of a prompt
inline constexpr int kBlockKeys = 128;  // positions of a block of the KV cache
inline constexpr int kMaxHeadDim = 1024, kMaxRank = 1024;
static_assert(kMaxGuesses < kChunk);
template <class T> constexpr T round_up(T n, T to) { return (n + to - 1) / to * to; }
constexpr int padded(int cols) { return round_up(cols, kAlign); }
inline int panels_of(int rows) { return (rows + kPanelRows - 1) / kPanelRows; }
inline const float* floats(const Tensor& vector) { return reinterpret_cast<const float*>(vector.data); }
// Texts and numbers, one after the other, for messages.
template <class... A> std::string concat(const A&... parts) try {
  std::string out;
  const auto add = [&](const auto& part) {
    if constexpr (std::is_arithmetic_v<std::decay_t<decltype(part)>>)
      out += std::to_string(part);
    else
      out += part;
  };
  (add(parts), ...);
  return out;
} catch (const std::bad_alloc&) {
  return "out of memory";  // short enough for a string without an allocation
}
// ---- The tools of the forward pass, which later sections define ----
inline uint8_t* map_pages(int file, size_t n, bool sparse, void* at = nullptr);
inline void unmap_pages(void* memory, size_t n);
// The input of a matmul: n vectors of `cols` elements, as floats and quantized to int8 in groups of 32, each with the
// scale max|x| / 127. A view: the memory belongs to the workspace, or to the caller.
struct Activations {
  int cols;      // padded to 64
  float* f;      // (n, cols); null if only the quantized form is kept
  int8_t* q;     // (n, cols)
  float* scale;  // (n, cols / 32)
  int32_t* sum;  // (n, cols / 32): sums of q over a group, for kernels that multiply unsigned by signed bytes
  uint8_t* packed = nullptr;  // q and scale in the layout of pack_groups, for kernels that work on tiles of 16 tokens
  bool use_packed = false;    // the quantized form is in `packed` only
  // Token t alone.
  Activations token(int t) const { return from(size_t(t) * cols); }
  // From element `at` on, a multiple of 32.
  Activations from(size_t at) const {
    return {cols, f ? f + at : nullptr, q + at, scale + at / kGroup, sum + at / kGroup};
  }
  // Quantizes x (n), whole groups, as columns first ... first + n - 1 of one of `tokens` tokens.
  void quantize(const struct Kernels& k, const float* x, int token, int tokens, int first, int n) const;
  // Quantizes all columns of token t of n, from f.
  void quantize_token(const Kernels& k, int t, int n) const { quantize(k, f + size_t(t) * cols, t, n, 0, cols); }
  // Reserves memory for kChunk tokens; take(pointer, count) places one array. floats: f too.
  template <class Take> void place(int width, bool floats, Take& take);
};
// The result of attention over some keys: the largest score, the sum of e^(score - max), and the values weighted by
// e^(score - max). Divided by `sum` the values are the output of a head.
struct AttentionState {
  float max, sum;
  float* values;  // (head_dim padded to 16)
};
// The keys and values of one layer, KV head and block of positions. Keys lie in transposed tiles of 16, so that a lane
// is a key: k[(tile * head_dim + i) * 16 + lane]. Values lie row by row, so that a lane is an element:
// v[key * width + i]. The numbers are int8 with one scale per key and per value, or float32.
struct KvBlock {
  void *k = nullptr, *v = nullptr;               // attention without values gives the weights of the keys instead
  float *k_scale = nullptr, *v_scale = nullptr;  // (128); k_scale includes 1 / sqrt(head_dim)
  int head_dim = 0;                              // elements of a key, and of a value
  int width = 0;                                 // head_dim padded to 16
  ptrdiff_t ahead = 0;                           // bytes to the block that is read next, to prefetch it; 0: none
  int key_at(int key) const { return key / 16 * 16 * head_dim + key % 16; }  // its first element; the others: + 16 i
};
// A part of a matmul: panels first ... first + count - 1 of w times n tokens. Row r of w gives y[t * ldy + r].
struct PanelProduct {
  const Tensor& w;
  int first, count;
  const Activations& x;
  int n;
  float* y;
  size_t ldy;
  bool add = false;  // f32 only: y += w x
};
// Two panels of int8 weights, or of codebook values, times n tokens: see matmul_blocked.
struct BlockProduct {
  Type type;
  const uint8_t* codes[2];  // (cols / 4, 16 rows, 4 columns)
  const void* scales[2];    // (cols / 32, 16 rows): q4: float, q8: bfloat16
  int cols;
  Activations x;
  int n;
  float* acc[2];  // (n, 16 rows): the groups are added to it, in order
};
// One instruction set's version of everything that takes time: section 10 fills a table of these. The float blocks are
// the same C++ for all (section 9), compiled for the instruction set; the integer functions are written by hand.
struct Kernels {
  const char* name;
  bool (*supported)();
  void (*rmsnorm)(const float* x, const float* weight, float* y, int n, float eps);
  void (*quantize)(const float* x, int n, int8_t* q, float* scale, int32_t* sum);
  void (*rope)(float* x, int heads, int head_dim, const float* cos, const float* sin);
  void (*swiglu)(float* gate, const float* up, int n);
  void (*exp)(float* x, int n);
  void (*attend_q8)(const KvBlock& kv, int n, const float* const* q, const int* keys, AttentionState* const* out);
  void (*attend_f32)(const KvBlock& kv, int n, const float* const* q, const int* keys, AttentionState* const* out);
  void (*merge)(AttentionState& state, const AttentionState& part, int width);
  void (*matmul_f32)(const PanelProduct& p);
  // Null if the set has no such kernel. The scalar set has none: it uses dot_scalar of section 6.
  void (*unpack_q4)(const uint8_t* codes, const uint8_t* scales, const int8_t codebook[16], int cols,
                    uint8_t* out_codes, float* out_scales);
  void (*gemv)(const PanelProduct& p);           // few tokens: reads q4 weights in place
  int few_tokens;                                // for up to so many gemv is faster; kChunk: for all, without unpack_q4
  bool gemv_q8;                                  // whether gemv takes q8 too
  void (*dot)(const BlockProduct& p);            // many tokens
  void (*matmul_packed)(const PanelProduct& p);  // many tokens, in tiles of 16; q4 or q8, x.packed
};
inline const Kernels* find_kernels(const char* name);  // null: the fastest; null result: not supported by this CPU
inline const Kernels* choose_kernels(const char* name, std::string& error);  // the same with `error` set
inline size_t kv_block_bytes(int head_dim, bool f32, int keys = kBlockKeys);
inline KvBlock kv_block_at(uint8_t* at, int head_dim, bool f32, int keys = kBlockKeys);
inline void store_key(const KvBlock& kv, bool f32, int key, const float* k, const float* v);
struct Query {
  const float* q;         // (head_dim)
  int keys;               // of the block that the query may see
  AttentionState* state;  // its attention so far
};
// Threads that share jobs: section 8. Which thread runs which task varies; no result may depend on it.
class Pool {
 public:
  explicit Pool(int threads);  // starts threads - 1 workers, or as many as the system allows
  ~Pool();
  int threads() const { return workers_ ? int(workers_->threads.size()) + 1 : 1; }
  // In the child of a fork() there are no workers: forgets them, so that the caller does all the work.
  void forget_lost_workers() {
    if (process_ != getpid()) (void)workers_.release();  // destroying a thread or what it waits for would hang
  }
  // f(task, thread) for every task below n, on all threads, the caller among them; returns when all are done. work: of
  // the whole job, in ns of one thread. Waking others takes microseconds: a smaller job stays with the caller. Throws
  // std::bad_alloc if a task does, on whatever thread.
  template <class F> void parallel_for(int n, double work, const F& f);
  template <class F> void parallel_for(int n, const F& f) { parallel_for(n, kWorthSharing, f); }
  // f(first, end) for ranges of 0 ... n - 1, all but the last of a length that is a multiple of `unit`.
  template <class F> void parallel_ranges(int n, int unit, double work, const F& f);

 private:
  static constexpr double kWorthSharing = 10000;  // ns
  void take_tasks(int thread);
  void work(int thread);
  void sleep(uint64_t seen);
  std::atomic<uint64_t> ticket_{0};
  std::atomic<int> done_{0}, sleepers_{0};
  std::atomic<bool> stop_{false}, failed_{false};  // failed_: a task had no memory
  void (*call_)(const void*, int, int) = nullptr;
  const void* context_ = nullptr;
  struct Workers {
    std::mutex mutex;
    std::condition_variable wake;
    std::vector<std::thread> threads;
  };
  std::unique_ptr<Workers> workers_ = std::make_unique<Workers>();
  const pid_t process_ = getpid();
  std::vector<int> starts_;  // of the ranges of parallel_ranges
};
// Nanoseconds that one thread of a current CPU takes, roughly, for the pool: a matmul with so many bytes of weights, n
// vectors passed over once, and the attention of one token to so many keys.
inline double matmul_work(size_t bytes, int n) { return double(bytes) * n / 16; }
inline double vector_work(int width, int n) { return double(width) * n / 2; }
inline double attention_work(int q_dim, double keys) { return keys * q_dim / 16; }
// f(t) for each of n tokens. A thread gets blocks of up to 16, whose keys and packed activations share cache lines.
template <class F> void each_token(Pool& pool, int n, double work, const F& f) {
  pool.parallel_ranges(n, std::clamp(n / pool.threads(), 1, 16), work, [&](int first, int end) {
    for (int t = first; t < end; t++) f(t);
  });
}
// y = w x, one of the products of a matmul.
struct Product {
  const Tensor& w;
  float* y;  // (n, rows padded to 64)
};
// What is added to w x for some tokens: change.b (change.a x).
struct LowRankProduct {
  const Tensor& w;
  const LowRank& change;
  int token, n;
  Activations ax;  // (n, rank padded to 16), floats only
};
POCKET_SHARED void matmul_panels(const Kernels& k, const PanelProduct& p);
POCKET_SHARED void matmul_blocked(const Kernels& k, const PanelProduct& p);
// Panels that a thread takes together: four, which can be read as four streams, or two if used for several tokens.
inline int panel_unit(int n) { return n == 1 ? 4 : 2; }
inline void matmul(const Kernels& k, Pool& pool, std::initializer_list<Product> products, Activations x, int n,
                   const std::vector<LowRankProduct>& added = {});
// The panels first ... first + count - 1 of w times n tokens, to y, where their rows begin; and what adapters add.
inline void matmul_rows(const Kernels& k, const Tensor& w, int first, int count, const Activations& x, int n, float* y,
                        int ldy, const std::vector<LowRankProduct>& added) {
  const auto rows_of = [&](Tensor t) {
    t.data += size_t(first) * (t.bytes / size_t(panels_of(t.rows)));
    return t;
  };
  matmul_panels(k, {rows_of(w), 0, count, x, n, y, size_t(ldy)});
  for (const auto& [of, change, t, tokens, ax] : added)
    if (&of == &w) matmul_panels(k, {rows_of(change.b), 0, count, ax, tokens, y + t * ldy, size_t(ldy), true});
}
inline bool packs(const Kernels& k, int n);  // whether a matmul of n tokens works on tiles
template <class GetQuery>
void attend_queries(const Kernels& k, const KvBlock& kv, bool f32, int n, bool first_block, const GetQuery& query);
namespace exact {
inline void sincos(double x, double& s, double& c);
}
inline int thread_count(const SessionOptions& o) {
  return o.threads > 0 ? std::min(o.threads, 256) : std::max(1, int(std::thread::hardware_concurrency()));
}
inline bool keeps_f32(const SessionOptions& o, const ModelFile& model) {
  return o.kv == KvType::f32 || (o.kv == KvType::automatic && model.all_f32);
}
inline int context_of(const SessionOptions& o, const Model& model) {
  return o.context > 0 ? std::min(o.context, kMaxContext) : model.config.max_seq_len;
}
// Zeroed memory, which the system backs page by page as it is touched: a KV cache costs what is used of it.
struct Reservation {
  uint8_t* const data;
  const size_t bytes;
  // If there is no room, as on 32-bit systems for 4 GiB, data is null and `error` is set.
  Reservation(uint64_t n, std::string& error) : data(n != size_t(n) ? nullptr : map_pages(-1, n, true)), bytes(n) {
    if (!data) error = concat("session: cannot reserve ", n >> 20, " MiB; use a smaller context or fewer threads");
  }
  ~Reservation() {
    if (data) unmap_pages(data, bytes);
  }
  void clear() { map_pages(-1, bytes, true, data); }  // new pages in place of all that exist
  Reservation(const Reservation&) = delete;
};
// Places arrays one after the other, each on a 64-byte boundary.
struct Placement {
  uint64_t at;  // 64 bits on 32-bit systems too, where the sum may be too large to be reserved
  template <class T> void operator()(T*& pointer, uint64_t count) {
    pointer = reinterpret_cast<T*>(uintptr_t(at));
    at += round_up<uint64_t>(count * sizeof(T), 64);
  }
};
// Attention states with their values. A state is touched when it is used, so that unused ones occupy no memory.
struct AttentionStates {
  AttentionState* state;
  float* values;  // (count, width)
  int width;
  void place(Placement& take, uint64_t count, int head_dim) {
    width = round_up(head_dim, 16);
    take(state, count);
    take(values, count * width);
  }
  AttentionState* at(size_t i) const {
    state[i].values = values + i * width;
    return state + i;
  }
};
// Runs a forward pass. If it fails, undo(why) restores the positions; why is null if an error is set already.
template <class Run, class Undo> bool guarded_forward(Pool& pool, const Run& run, const Undo& undo) {
  const FloatMode mode;
  pool.forget_lost_workers();
  try {
    if (run()) return true;
    undo(nullptr);
  } catch (const std::bad_alloc&) {
    undo("out of memory");
  } catch (...) {  // of a callback
    undo(nullptr);
    throw;
  }
  return false;
}
// rmsnorm of each of `heads` heads of x. weights: (head_dim padded to 16)
inline void normalize_heads(const Kernels& k, const Config& c, float* x, int heads, const float* weights) {
  alignas(64) float head[kMaxHeadDim];
  std::fill_n(head, round_up(c.head_dim, 16), 0.f);  // with padding
  for (float* const end = x + heads * c.head_dim; x < end; x += c.head_dim) {
    std::copy_n(x, c.head_dim, head);
    k.rmsnorm(head, weights, head, c.head_dim, c.norm_eps);
    std::copy_n(head, c.head_dim, x);
  }
}
// Checks n rows of logits, `stride` apart. NaN, from damaged weights, is an error: its bits differ between CPUs.
inline bool check_finite(const float* logits, int n, int vocab_size, int stride, std::string& error) {
  bool finite = true;
  for (int t = 0; t < n; t++, logits += stride)
    for (int i = 0; i < vocab_size; i++) finite &= std::fabs(logits[i]) <= FLT_MAX;
  if (!finite) error = "logits: expected finite numbers; the weights are damaged, or too large for this type";
  return finite;
}
// The keys and values of a session: (blocks of positions, layers, KV heads) of KvBlock.
inline uint64_t position_bytes(const Config& c, bool f32) {
  return uint64_t(kv_block_bytes(c.head_dim, f32) / kBlockKeys) * c.n_layers * c.n_kv_heads;
}
struct KvCache {
  const Config& c;
  const int context;
  const bool f32;
  Reservation memory;
  KvCache(const Model& model, const SessionOptions& o, std::string& error)
      : c(model.config), context(context_of(o, model)), f32(keeps_f32(o, model)), memory(bytes(context), error) {}
  // Of all blocks of the first `positions` positions.
  uint64_t bytes(int positions) const { return round_up<uint64_t>(positions, kBlockKeys) * position_bytes(c, f32); }
  // last: the last block of a series of which this one is read, to prefetch the next.
  KvBlock block(int layer, int kv_head, int block, int last = 0) const {
    const size_t bytes = kv_block_bytes(c.head_dim, f32), heads = size_t(c.n_layers) * c.n_kv_heads;
    const size_t index = block * heads + size_t(layer) * c.n_kv_heads + kv_head;
    KvBlock kv = kv_block_at(memory.data + index * bytes, c.head_dim, f32);
    if (block < last) kv.ahead = ptrdiff_t(heads * bytes);
    return kv;
  }
};
// A workspace's memory, in one reservation. n: tokens of a chunk, at most kChunk; widths are zero-padded to 64.
struct Buffers {
  float* x;                // (n, dim): the residual stream
  Activations xn;          // (n, dim): rmsnorm(x); then .f holds what is added to x
  Activations q;           // (n, q_dim): queries; then the output of attention
  float *k, *v;            // (n, kv_dim)
  Activations gate;        // (n, hidden_dim): the input of w2; .f for w2 of type f32, and adapters
  float *cos, *sin;        // (n, head_dim / 2): rotations of the chunk's positions
  AttentionStates states;  // (threads, kTileTokens, heads of a KV head), or (blocks, n_heads) for single tokens
  size_t n_states;         // enough for a single token in a full context
  float* logits;           // (n, vocab_size)
  float* low;              // (n, 3 kMaxRank): a x of adapters, of up to three matrices
  uint64_t token_bytes;    // of x ... sin, per token of a chunk
  uint64_t attention_bytes, bytes;  // of the attention states; of everything
  Buffers(const Model& model, const SessionOptions& o, uint8_t* base) {
    const Config& c = model.config;
    const uint64_t begin = reinterpret_cast<uintptr_t>(base);
    Placement take{begin};
    take(x, size_t(kChunk) * padded(c.dim));
    xn.place(c.dim, true, take);
    q.place(c.q_dim(), true, take);
    for (float** buffer : {&k, &v}) take(*buffer, size_t(kChunk) * padded(c.kv_dim()));
    const auto takes_floats = [](const Layer& l) { return l.w2.type == Type::f32; };
    gate.place(c.hidden_dim, std::any_of(model.layers.begin(), model.layers.end(), takes_floats), take);
    for (float** buffer : {&cos, &sin}) take(*buffer, size_t(kChunk) * (c.head_dim / 2));
    token_bytes = (take.at - begin) / kChunk;
    const uint64_t scratch = take.at;
    const size_t blocks = (size_t(context_of(o, model)) + kBlockKeys - 1) / kBlockKeys;
    n_states = std::max(size_t(thread_count(o)) * kTileTokens * (c.n_heads / c.n_kv_heads), c.n_heads * blocks);
    states.place(take, n_states, c.head_dim);
    attention_bytes = take.at - scratch;
    take(logits, size_t(kChunk) * padded(c.vocab_size));
    take(low, size_t(kChunk) * 3 * kMaxRank);
    if (!gate.f) take(gate.f, size_t(kChunk) * gate.cols);
    bytes = take.at - begin;
  }
};
#if !defined(POCKET_SEPARATE_KERNELS)
// ---- The forward pass ----
struct Transformer {
  const Model& model;
  const Kernels& kernels;
  const Config& c = model.config;
  const int group = c.n_heads / c.n_kv_heads;  // query heads of a KV head
  std::vector<double> frequencies;             // (head_dim / 2): radians per position
  Pool pool;
  Reservation memory;
  Buffers buf;
  // The chunk: tokens of one step or of several, one after the other. Only attention tells sessions apart.
  struct Token {
    Step* step;
    int id, position;
    int blocks_before;  // blocks of keys that the tokens before it see
    Session& session() const { return *step->session; }
  } token[kChunk];
  struct Tile {
    int first, n;  // tokens of one step, at most kTileTokens
  } tile[kChunk];
  int n_tokens = 0, n_tiles = 0, n_blocks = 0;
  double n_keys = 0;                  // that the tokens see, in all
  bool adapted = false;               // a token's session has an adapter
  std::vector<LowRankProduct> added;  // to the products of the next matmul
  // options.threads is above 0. On failure sets `error`.
  Transformer(const Model& m, const SessionOptions& options, const Kernels& k, std::string& error)
      : model(m),
        kernels(k),
        pool(options.threads),
        memory(Buffers(model, options, nullptr).bytes, error),
        buf(model, options, memory.data) {
    for (int i = 0; i < c.head_dim / 2; i++) frequencies.push_back(rope_frequency(c, i));
  }
  // All steps, chunk by chunk. each: of a single step; then it gets the logits of every token.
  bool pass(Step* steps, size_t count, const Session::EachLogits* each) {
    const auto end = [&](const char* why) {
      bool good = true;
      for (Step* step = steps; step < steps + count; step++) {
        Session& s = *step->session;
        if (why) {
          s.fail(why);
          step->logits = nullptr;
        }
        good = good && step->logits;
        if (!step->logits && s.start_ >= 0) s.position_ = s.start_;
        s.start_ = -1;
      }
      return good;
    };
    const auto run = [&] {
      int rows = 0;  // of buf.logits in use
      for (size_t i = 0; i < count; i++) check(steps[i]);
      for (size_t next = 0; next < count && !(each && steps->logits);) {
        next = fill_chunk(steps, count, next);
        if (n_tokens == 0) break;  // the rest failed
        forward_chunk();
        hand_out_logits(rows, each);
      }
      return end(nullptr);
    };
    return guarded_forward(pool, run, end);
  }
  // Starts a step. False if it cannot run; then its session has an error.
  bool check(const Step& step) {
    Session& s = *step.session;
    if (!s.kv_) return false;  // its construction failed
    if (s.start_ >= 0) return s.fail("step: expected one of this session in a pass, found another");
    s.error.clear();
    s.start_ = s.position_;
    const size_t room = size_t(s.context() - s.position_);
    if (step.n == 0 || !step.ids) return s.fail("forward: no tokens");
    if (step.n > room) return s.fail(concat("context: room for ", room, " more tokens, not for ", step.n));
    for (size_t i = 0; i < step.n; i++)
      if (step.ids[i] < 0 || step.ids[i] >= c.vocab_size)
        return s.fail(concat("token ", i, ": expected an id below ", c.vocab_size, ", found ", step.ids[i]));
    return true;
  }
  // Takes tokens of the steps from `next` on. Returns the first step with tokens that are left.
  size_t fill_chunk(Step* steps, size_t count, size_t next) {
    n_tokens = n_tiles = n_blocks = 0;
    n_keys = adapted = 0;
    for (; next < count; next++) {
      const Step& step = steps[next];
      const Session& s = *step.session;
      if (s.start_ < 0 || !s.error.empty()) continue;
      const int done = s.position_ - s.start_, n = int(std::min(step.n - size_t(done), size_t(kChunk - n_tokens)));
      for (int i = 0; i < n; i++) {
        const int position = s.position_ + i;
        if (i % kTileTokens == 0) tile[n_tiles++] = {n_tokens, std::min(kTileTokens, n - i)};
        token[n_tokens++] = {&steps[next], step.ids[done + i], position, n_blocks};
        n_blocks += position / kBlockKeys + 1;
        n_keys += position + 1;
      }
      adapted |= s.adapter_ != nullptr;
      if (size_t(done + n) < step.n) break;
    }
    return next;
  }
  // Takes the chunk through all layers, to buf.x, unless all its steps fail.
  void forward_chunk() {
    const int half = c.head_dim / 2;
    for (int t = 0; t < n_tokens; t++) {
      if (!model.read_row(model.token_embedding, token[t].id, buf.x + size_t(t) * padded(c.dim)))
        token[t].session().fail(concat("token_embedding: row ", token[t].id, " cannot be read; the file was changed"));
      for (int i = 0; i < half; i++) {
        double sin, cos;
        exact::sincos(token[t].position * frequencies[i], sin, cos);
        buf.sin[t * half + i] = float(sin);
        buf.cos[t * half + i] = float(cos);
      }
    }
    for (int l = 0; l < c.n_layers; l++) {
      bool needed = false;
      for (int t = 0; t < n_tokens; t++) {
        Session& s = token[t].session();
        if (s.cancelled_.exchange(false, std::memory_order_relaxed)) s.fail("cancelled");
        needed |= s.error.empty();
      }
      if (!needed) return;
      layer(l, n_tokens);
    }
  }
  // After a chunk: the logits of the steps that end with it, in rows of buf.logits; or of all tokens, some at a time.
  void hand_out_logits(int& rows, const Session::EachLogits* each) {
    for (int t = 0; t < n_tokens;) {
      int wanted[kChunk], n = 0;
      for (; t < n_tokens && n < (each ? kLogitRows : kChunk); t++) {
        Session& s = token[t].session();
        if (!s.error.empty()) continue;
        s.position_ = token[t].position + 1;
        if (each || size_t(s.position_ - s.start_) == token[t].step->n) wanted[n++] = t;
      }
      float* out = buf.logits + size_t(rows) * padded(c.vocab_size);
      if (n > 0) logits(wanted, n, out);
      for (int i = 0; i < n; i++, out += padded(c.vocab_size)) {
        Step& step = *token[wanted[i]].step;
        Session& s = *step.session;
        s.position_ = token[wanted[i]].position + 1;
        if (!s.error.empty() || !check_finite(out, 1, c.vocab_size, 0, s.error)) continue;
        const size_t done = size_t(s.position_ - s.start_);
        const bool more = each && (*each)(done - 1, out);
        if (!each || !more || done == step.n) step.logits = out;
        if (each && step.logits) return;
      }
      if (!each) rows += n;
    }
  }
  // x += wo attention(rmsnorm(x)); x += w2 (silu(w1 rmsnorm(x)) * w3 rmsnorm(x)).
  void layer(int l, int n) {
    const Layer& w = model.layers[l];
    rmsnorm(w.attention_norm, n);
    multiply({{w.wq, buf.q.f}, {w.wk, buf.k}, {w.wv, buf.v}}, buf.xn, n);
    rope_and_store(l, n);
    show(Observation::queries, l, buf.q.f, c.q_dim(), n);
    for (const Tile* at = tile; at < tile + n_tiles; at++)
      if (const auto& [see, weights] = token[at->first].session().observer_; see && weights) observe_attention(l, *at);
    attention(l, n);
    multiply({{w.wo, buf.xn.f}}, buf.q, n);
    add_residual(w.bo, n);
    show(Observation::attention_residual, l, buf.x, c.dim, n);
    rmsnorm(w.ffn_norm, n);
    gate_and_up(w, n);
    multiply({{w.w2, buf.xn.f}}, buf.gate, n);
    add_residual(w.b2, n);
    show(Observation::layer_output, l, buf.x, c.dim, n);
  }
  // Shows a vector of each of n tokens to its observer.
  void show(Observation::Kind kind, int l, float* data, int size, int n) {
    for (int t = 0; t < n; t++)
      if (const auto& observe = token[t].session().observer_.first)
        observe({kind, l, -1, token[t].position, data + size_t(t) * padded(size), size});
  }
  // out (n, vocab_size padded to 64): the logits of n tokens of the chunk.
  void logits(const int* tokens, int n, float* out) {
    rmsnorm(model.final_norm, n, tokens);
    multiply({{model.output, out}}, buf.xn, n, tokens);
  }
  void multiply(std::initializer_list<Product> y, const Activations& x, int n, const int* tokens = nullptr) {
    adapt(y, x, n, tokens);
    matmul(kernels, pool, y, x, n, added);
  }
  // The first half of what adapters add to products, a x. A task takes up to 16 tokens.
  void adapt(std::initializer_list<Product> products, const Activations& x, int n, const int* tokens = nullptr) {
    float* low = buf.low;
    added.clear();
    for (int t = 0, end; adapted && t < n; t = end) {
      const auto adapter_of = [&](int i) { return token[tokens ? tokens[i] : i].session().adapter_; };
      for (end = t + 1; end < std::min(n, t + kTileTokens) && adapter_of(end) == adapter_of(t);) end++;
      for (const Product* p = products.begin(); adapter_of(t) && p < products.end(); p++)
        for (auto [at, last] = adapter_of(t)->changes.equal_range(&p->w); at != last; ++at) {
          added.push_back({p->w, at->second, t, end - t, {at->second.b.cols, low, nullptr, nullptr, nullptr}});
          low += (end - t) * at->second.b.cols;
        }
    }
    const double work = matmul_work(size_t(low - buf.low) * size_t(x.cols) * sizeof(float), 1);
    pool.parallel_for(int(added.size()), work, [&](int i, int) {
      const auto& [w, change, t, count, ax] = added[size_t(i)];
      matmul_panels(kernels, {change.a, 0, ax.cols / kPanelRows, x.token(t), count, ax.f, size_t(ax.cols)});
    });
  }
  // Token t of n for the next matmul. Float weights multiply the floats.
  void quantize(const Activations& in, int t, int n) {
    if (!model.all_f32) in.quantize_token(kernels, t, n);
  }
  // xn = rmsnorm(x) of n tokens: those of a list, or all.
  void rmsnorm(const Tensor& weights, int n, const int* tokens = nullptr) {
    const size_t width = size_t(padded(c.dim));
    each_token(pool, n, vector_work(c.dim, n), [&](int t) {
      const float* x = buf.x + size_t(tokens ? tokens[t] : t) * width;
      kernels.rmsnorm(x, floats(weights), buf.xn.f + t * width, c.dim, c.norm_eps);
      quantize(buf.xn, t, n);
    });
  }
  // Adds n elements of a bias, from `first` on, to x. Without a bias, or beyond its end, nothing happens.
  static void add_bias(float* x, const Tensor& bias, int n, int first = 0) {
    for (int i = 0; i < std::min(n, bias.cols - first); i++) x[i] += floats(bias)[first + i];
  }
  // x += xn + bias.
  void add_residual(const Tensor& bias, int n) {
    const size_t width = size_t(padded(c.dim));
    each_token(pool, n, vector_work(int(width), n), [&](int t) {
      add_bias(buf.xn.f + t * width, bias, c.dim);
      for (size_t i = t * width; i < (t + 1) * width; i++) buf.x[i] += buf.xn.f[i];
    });
  }
  // gate = silu(w1 xn) * (w3 xn). A task takes some groups of 32 rows of both matrices and continues with their result
  // while it is in the cache: one group of a long chunk, more of a short one.
  void gate_and_up(const Layer& w, int n) {
    const int panels_per_group = kGroup / kPanelRows, panels = panels_of(w.w1.rows), piece = kChunk / n;
    const double work = matmul_work(w.w1.bytes + w.w3.bytes, n);
    Activations x = buf.xn;
    x.use_packed = packs(kernels, n);
    adapt({{w.w1, nullptr}, {w.w3, nullptr}}, x, n);
    pool.parallel_ranges(buf.gate.cols / kGroup, panel_unit(n) / panels_per_group, work, [&](int first, int end) {
      alignas(64) float gate[kChunk * kGroup], up[kChunk * kGroup];
      for (int at = first; at < end; at += piece) {
        const int panel = at * panels_per_group, cols = std::min(piece, end - at) * kGroup;
        const int count = std::max(0, std::min(cols / kPanelRows, panels - panel));
        if (count * kPanelRows < cols) {  // padding
          std::fill_n(gate, n * cols, 0.f);
          std::fill_n(up, n * cols, 0.f);
        }
        matmul_rows(kernels, w.w1, panel, count, x, n, gate, cols, added);
        matmul_rows(kernels, w.w3, panel, count, x, n, up, cols, added);
        for (int t = 0; t < n; t++) {
          float* g = gate + size_t(t) * cols;
          add_bias(g, w.b1, cols, at * kGroup);
          add_bias(up + size_t(t) * cols, w.b3, cols, at * kGroup);
          kernels.swiglu(g, up + size_t(t) * cols, cols);
          if (!model.all_f32) buf.gate.quantize(kernels, g, t, n, at * kGroup, cols);
          if (adapted || w.w2.type == Type::f32)
            std::memcpy(buf.gate.f + size_t(t) * buf.gate.cols + at * kGroup, g, cols * sizeof(float));
        }
      }
    });
  }
  // Rotates queries and keys to their positions, and writes keys and values to the cache.
  void rope_and_store(int l, int n) {
    const Layer& w = model.layers[l];
    const int half = c.head_dim / 2;
    each_token(pool, n, vector_work(c.q_dim() + 2 * c.kv_dim(), n), [&](int t) {
      float* k = buf.k + size_t(t) * padded(c.kv_dim());
      float* v = buf.v + size_t(t) * padded(c.kv_dim());
      const float *cos = buf.cos + t * half, *sin = buf.sin + t * half;
      add_bias(query(t, 0), w.bq, c.q_dim());
      add_bias(k, w.bk, c.kv_dim());
      add_bias(v, w.bv, c.kv_dim());
      if (c.qk_norm) normalize_heads(kernels, c, query(t, 0), c.n_heads, floats(w.q_norm));
      if (c.qk_norm) normalize_heads(kernels, c, k, c.n_kv_heads, floats(w.k_norm));
      if (c.has_rope(l)) kernels.rope(query(t, 0), c.n_heads, c.head_dim, cos, sin);
      if (c.has_rope(l)) kernels.rope(k, c.n_kv_heads, c.head_dim, cos, sin);
      const KvCache& kv = *token[t].session().kv_;
      const int block = token[t].position / kBlockKeys, key = token[t].position % kBlockKeys;
      for (int h = 0; h < c.n_kv_heads; h++, k += c.head_dim, v += c.head_dim)
        store_key(kv.block(l, h, block), kv.f32, key, k, v);
    });
  }
  float* query(int t, int head) const { return buf.q.f + size_t(t) * padded(c.q_dim()) + head * c.head_dim; }
  // q = softmax(q k / sqrt(head_dim)) v, and its quantized form.
  void attention(int l, int n) {
    const bool single = n_tiles == n && size_t(n_blocks) * c.n_heads <= buf.n_states;
    single ? attend_single_tokens(l) : attend_tiles(l);
    show(Observation::head_outputs, l, buf.q.f, c.q_dim(), n);
    each_token(pool, n, vector_work(buf.q.cols, n), [&](int t) { quantize(buf.q, t, n); });
  }
  // A task takes a tile of tokens of a session and one KV head through all blocks.
  void attend_tiles(int l) {
    pool.parallel_for(n_tiles * c.n_kv_heads, attention_work(c.q_dim(), n_keys), [&](int task, int thread) {
      const int kv_head = task % c.n_kv_heads, first = tile[task / c.n_kv_heads].first;
      const int tokens = tile[task / c.n_kv_heads].n, last_block = token[first + tokens - 1].position / kBlockKeys;
      const size_t states = size_t(thread) * kTileTokens * group;  // of this thread
      const KvCache& kv = *token[first].session().kv_;
      for (int b = 0; b <= last_block; b++) {
        const auto get_query = [&](int i) {
          const int t = first + i / group, visible = std::min(kBlockKeys, token[t].position + 1 - b * kBlockKeys);
          return Query{query(t, kv_head * group + i % group), visible, buf.states.at(states + i)};
        };
        attend_queries(kernels, kv.block(l, kv_head, b, last_block), kv.f32, tokens * group, b == 0, get_query);
      }
      for (int i = 0; i < tokens * group; i++)
        finish_head(*buf.states.at(states + i), first + i / group, kv_head * group + i % group);
    });
  }
  // One token of each session: tokens, KV heads and blocks are all distributed over the threads, so that a long context
  // keeps them busy. The results of the blocks are merged afterwards, in the same order as above.
  void attend_single_tokens(int l) {
    const auto attend = [&](int first, int end) {
      for (int i = first, t = 0; i < end; i++) {
        while (t + 1 < n_tokens && i >= token[t + 1].blocks_before * c.n_kv_heads) t++;
        const int position = token[t].position, blocks = position / kBlockKeys + 1;
        const int at = i - token[t].blocks_before * c.n_kv_heads, kv_head = at / blocks, b = at % blocks;
        const KvCache& kv = *token[t].session().kv_;
        const auto get_query = [&](int j) {
          const int head = kv_head * group + j, visible = std::min(kBlockKeys, position + 1 - b * kBlockKeys);
          return Query{query(t, head), visible, state(t, b, head)};
        };
        attend_queries(kernels, kv.block(l, kv_head, b, blocks - 1), kv.f32, group, true, get_query);
        if (blocks == 1) finish_heads(t, kv_head);
      }
    };
    pool.parallel_ranges(n_blocks * c.n_kv_heads, 1, attention_work(c.q_dim(), n_keys), attend);
    if (n_blocks == n_tokens) return;
    pool.parallel_for(n_tokens * c.n_kv_heads, vector_work(c.q_dim(), n_blocks), [&](int i, int) {
      if (token[i / c.n_kv_heads].position >= kBlockKeys) finish_heads(i / c.n_kv_heads, i % c.n_kv_heads);
    });
  }
  AttentionState* state(int t, int block, int head) const {
    return buf.states.at(size_t(token[t].blocks_before + block) * c.n_heads + head);
  }
  // The query heads of a KV head, for a single token: merges the blocks' states.
  void finish_heads(int t, int kv_head) {
    for (int head = kv_head * group; head < (kv_head + 1) * group; head++) {
      AttentionState& merged = *state(t, 0, head);
      for (int b = 1; b <= token[t].position / kBlockKeys; b++)
        kernels.merge(merged, *state(t, b, head), buf.states.width);
      finish_head(merged, t, head);
    }
  }
  void finish_head(const AttentionState& state, int t, int head) {
    float* y = query(t, head);
    const float scale = 1.f / state.sum;
    for (int i = 0; i < c.head_dim; i++) y[i] = state.values[i] * scale;
  }
  // For an observer only: forward() never needs all weights of a row at once.
  void observe_attention(int l, const Tile& of) {
    const Session& s = token[of.first].session();
    const int blocks = token[of.first + of.n - 1].position / kBlockKeys + 1, rows = of.n * c.n_heads;
    std::vector<AttentionState> states(size_t(rows) * blocks);
    std::vector<float> weights(states.size() * kBlockKeys);
    pool.parallel_for(c.n_kv_heads * blocks, attention_work(int(weights.size()), c.head_dim / 2), [&](int i, int) {
      const int kv_head = i / blocks, b = i % blocks;
      const auto get_query = [&](int j) {
        const int t = of.first + j / group, head = kv_head * group + j % group;
        const size_t at = size_t(j / group * c.n_heads + head) * blocks + b;
        states[at].values = &weights[at * kBlockKeys];
        return Query{query(t, head), std::min(kBlockKeys, token[t].position + 1 - b * kBlockKeys), &states[at]};
      };
      KvBlock kv = s.kv_->block(l, kv_head, b);
      kv.v = nullptr;
      attend_queries(kernels, kv, s.kv_->f32, of.n * group, true, get_query);
    });
    for (int row = 0; row < rows; row++) {
      const int position = token[of.first + row / c.n_heads].position;
      AttentionState *const first = &states[size_t(row) * blocks], all = *first;
      for (auto* block = first + 1; block <= first + position / kBlockKeys; block++) kernels.merge(all, *block, 0);
      for (auto* block = first; block <= first + position / kBlockKeys; block++) {
        float scale = block->max - all.max;
        kernels.exp(&scale, 1);
        for (int j = 0; j < kBlockKeys; j++) block->values[j] *= scale / all.sum;
      }
      s.observer_.first({Observation::attention, l, row % c.n_heads, position, all.values, position + 1});
    }
  }
};
// Runs open(), which may set `error`, as a missing allocation does.
template <class F> void guarded_open(std::string& error, const F& open) {
  const FloatMode mode;
  try {
    open();
  } catch (const std::bad_alloc&) {
    error = "out of memory";
  }
}
POCKET_SHARED Workspace::Workspace(const Model& model, SessionOptions options) : model_(model) {
  options.threads = thread_count(options);  // once: it may change
  guarded_open(error, [&] {
    if (model.file_bytes == 0)
      error = "session: the model is not open";
    else if (const Kernels* kernels = choose_kernels(options.kernel, error))
      transformer_ = std::make_unique<Transformer>(model, options, *kernels, error);
  });
  if (!error.empty()) transformer_.reset();
}
POCKET_SHARED Workspace::~Workspace() = default;
POCKET_SHARED int Workspace::threads() const { return transformer_ ? transformer_->pool.threads() : 0; }
POCKET_SHARED const char* Workspace::kernel() const { return transformer_ ? transformer_->kernels.name : ""; }
POCKET_SHARED bool Workspace::forward(Step* steps, size_t count) {
  for (size_t i = 0; i < count; i++) steps[i].logits = nullptr;
  if (!transformer_) return false;
  error.clear();
  for (size_t i = 0; i < count; i++)
    if (i >= size_t(kChunk) || !steps[i].session || steps[i].session->workspace_ != this)
      error = concat("step ", i, ": expected one of at most ", kChunk, " sessions of this workspace");
  return error.empty() && transformer_->pass(steps, count, nullptr);
}
POCKET_SHARED Session::Session(const Model& model, SessionOptions options) : model_(model) {
  guarded_open(error, [&] { own_ = std::make_unique<Workspace>(model, options); });
  open(own_.get(), options);
}
POCKET_SHARED Session::Session(Workspace& shared, SessionOptions options) : model_(shared.model()) {
  open(&shared, options);
}
POCKET_SHARED void Session::open(Workspace* workspace, const SessionOptions& options) {
  workspace_ = workspace;
  guarded_open(error, [&] {
    if (error.empty() && !workspace->transformer_) error = workspace->error;
    if (error.empty() && (options.context < 0 || options.context > kMaxContext))
      error = concat("session: context: expected 0 to ", kMaxContext, ", found ", options.context);
    adapter_ = options.adapter;
    if (error.empty()) kv_ = std::make_unique<KvCache>(model_, options, error);
  });
  if (!error.empty()) kv_.reset();
}
POCKET_SHARED Session::~Session() = default;
POCKET_SHARED int Session::context() const { return kv_ ? kv_->context : 0; }
POCKET_SHARED bool Session::kv_f32() const { return kv_ && kv_->f32; }
POCKET_SHARED const float* Session::run(const int* ids, size_t n, const EachLogits* each) {
  Step step = {this, ids, n};
  return kv_ && workspace_->transformer_->pass(&step, 1, each) ? step.logits : nullptr;
}
POCKET_SHARED const float* Session::forward(const int* ids, size_t n) { return run(ids, n, nullptr); }
POCKET_SHARED bool Session::forward(const int* ids, size_t n, const EachLogits& each) { return run(ids, n, &each); }
POCKET_SHARED void Session::reset() {
  position_ = 0;
  if (kv_) kv_->memory.clear();
}
POCKET_SHARED bool Session::fork(const Session& parent, int n) {
  if (!kv_ || !parent.kv_) return kv_ ? fail(concat("fork: ", parent.error)) : false;
  if (&model_ != &parent.model_ || kv_->f32 != parent.kv_->f32 || adapter_ != parent.adapter_)
    return fail(concat("fork: expected the same model, adapter and KvType"));
  const int most = std::min(parent.position_, context());
  if (n < 0 || n > most) return fail(concat("fork: expected 0 to ", most, " positions, found ", n));
  if (&parent != this) std::memcpy(kv_->memory.data, parent.kv_->memory.data, kv_->bytes(n));
  position_ = n;
  return true;
}
POCKET_SHARED KvBlock Session::kv_block(int layer, int kv_head, int block) const {
  const Config& c = model_.config;
  const bool exists = layer >= 0 && layer < c.n_layers && kv_head >= 0 && kv_head < c.n_kv_heads && block >= 0 &&
                      block <= (context() - 1) / kBlockKeys;
  return kv_ && exists ? kv_->block(layer, kv_head, block) : KvBlock();
}
#endif

// ==== 6. Number formats, and the scalar kernels that define the bits of every faster one =============================
inline constexpr int8_t kCodebook[16] = {-63, -50, -40, -31, -24, -17, -10, -4, 1, 7, 12, 18, 25, 32, 42, 56};
template <class T> T load(const void* p) {  // unaligned
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}
// A bfloat16 is the upper half of a float32.
inline float from_bf16(uint16_t h) {
  const uint32_t bits = uint32_t(h) << 16;
  return load<float>(&bits);
}
// Bytes of the codes of one panel (16 rows), and of the whole panel.
inline size_t code_bytes(Type type, int cols) {
  const size_t k = size_t(padded(cols));
  return type == Type::f32 ? k * 64 : type == Type::q8 ? k * 16 : k * 8;
}
inline size_t panel_bytes(Type type, int cols) {
  const size_t groups = size_t(padded(cols)) / kGroup, codes = code_bytes(type, cols);
  if (type == Type::q8) return codes + groups * 32;                            // a bfloat16 per group and row
  if (type == Type::q4) return codes + round_up<size_t>(groups * 8, 64) + 64;  // 4 bits per group and row; row scales
  return codes;
}
// A row-major table, group after group: 32 floats, or a bfloat16 scale and 32 bytes.
inline size_t embedding_group_bytes(Type type) { return type == Type::q8 ? 2 + kGroup : kGroup * sizeof(float); }
inline uint64_t embedding_row_bytes(Type type, int cols) {
  return uint64_t(padded(cols)) / kGroup * embedding_group_bytes(type);
}
// The q4 scale of a group: 4 bits, +-(5 ... 12). The sign mirrors a codebook that is not symmetric.
inline float q4_scale(int s) { return float(s & 8 ? -5 - (s & 7) : 5 + (s & 7)); }
// A weight in a panel is integer * group scale * row scale (q4 only). Row r of 16, column k, group g of 32 columns:
inline int integer_weight(const Tensor& t, const uint8_t* panel, int r, int k) {
  if (t.type == Type::q8) return int8_t(panel[size_t(k / 4) * 64 + 4 * r + k % 4]);
  const uint8_t pair = panel[size_t(k / 8) * 64 + 4 * r + k % 4];
  return t.codebook[k & 4 ? pair >> 4 : pair & 15];
}
inline float group_scale(const Tensor& t, const uint8_t* panel, int r, int g) {
  const uint8_t* scales = panel + code_bytes(t.type, t.cols);
  if (t.type == Type::q8) return from_bf16(load<uint16_t>(scales + g * 32 + 2 * r));
  const uint8_t pair = scales[g / 2 * 16 + r];
  return q4_scale(g & 1 ? pair >> 4 : pair & 15);
}
inline float row_scale(const Tensor& t, const uint8_t* panel, int r) {
  return t.type == Type::q4 ? load<float>(panel + panel_bytes(t.type, t.cols) - 64 + 4 * r) : 1.f;
}
inline float weight(const Tensor& t, int row, int col) {
  if (t.layout != Layout::panels) {
    const uint8_t* at =
        t.data + row * embedding_row_bytes(t.type, t.cols) + col / kGroup * embedding_group_bytes(t.type);
    if (t.type == Type::f32) return load<float>(at + col % kGroup * 4);
    return float(int8_t(at[2 + col % kGroup])) * from_bf16(load<uint16_t>(at));
  }
  const uint8_t* panel = t.data + size_t(row / kPanelRows) * panel_bytes(t.type, t.cols);
  const int r = row % kPanelRows;
  if (t.type == Type::f32) return load<float>(panel + size_t(col) * 64 + 4 * r);
  return row_scale(t, panel, r) * (group_scale(t, panel, r, col / kGroup) * float(integer_weight(t, panel, r, col)));
}
// The definition of a matmul: row r of a panel times one token. Every kernel returns these bits.
inline float dot_scalar(const Tensor& t, const uint8_t* panel, int r, const Activations& x) {
  float acc = 0;
  for (int k = 0; t.type == Type::f32 && k < x.cols; k++)
    acc = fma(load<float>(panel + size_t(k) * 64 + 4 * r), x.f[k], acc);
  if (t.type == Type::f32) return acc;
  for (int g = 0; g < x.cols / kGroup; g++) {
    int32_t sum = 0;
    for (int k = g * kGroup; k < (g + 1) * kGroup; k++) sum += integer_weight(t, panel, r, k) * x.q[k];
    acc = fma(float(sum), group_scale(t, panel, r, g) * x.scale[g], acc);
  }
  return acc * row_scale(t, panel, r);
}
inline void matmul_scalar(const PanelProduct& m) {
  for (int p = m.first; p < m.first + m.count; p++) {
    const uint8_t* panel = m.w.data + size_t(p) * panel_bytes(m.w.type, m.w.cols);
    for (int t = 0; t < m.n; t++)
      for (int r = 0; r < kPanelRows; r++)
        m.y[t * m.ldy + size_t(p) * kPanelRows + r] = dot_scalar(m.w, panel, r, m.x.token(t));
  }
}
inline constexpr int kFewTokens = 8;    // Kernels::few_tokens of sets that multiply tiles
inline constexpr int kBlockCols = 512;  // columns unpacked at a time: two panels of them fit in the L1 cache
// The packed layout: 64 columns of all tokens, (n, 64) bytes, and their scales, (2, n) floats; then the next 64
// columns. n is padded to 16; the rows after the last token are unspecified.
inline size_t packed_bytes(int n, int cols) { return size_t(cols) / 64 * (64 + 2 * sizeof(float)) * round_up(n, 16); }
// Copies `count` quantized groups of token t, from group `first` on, to their place in `packed`, which is for n tokens.
inline void pack_groups(const int8_t* q, const float* scale, int t, int first, int count, int n, uint8_t* packed) {
  const size_t rows = size_t(round_up(n, 16));
  for (int g = first; g < first + count; g++, q += kGroup, scale++) {
    uint8_t* block = packed + packed_bytes(n, g / 2 * 64);
    std::memcpy(block + size_t(t) * 64 + g % 2 * kGroup, q, kGroup);
    std::memcpy(block + rows * 64 + (g % 2 * rows + t) * sizeof(float), scale, sizeof(float));
  }
}
inline bool packs(const Kernels& k, int n) { return k.matmul_packed && n > k.few_tokens; }
template <class Take> void Activations::place(int width, bool floats, Take& take) {
  cols = padded(width);
  f = nullptr;
  const size_t count = size_t(kChunk) * cols;
  if (floats) take(f, count);
  take(q, count);
  take(scale, count / kGroup);
  take(sum, count / kGroup);
  take(packed, packed_bytes(kChunk, cols));
}
inline void Activations::quantize(const Kernels& k, const float* x, int token, int tokens, int first, int n) const {
  const size_t at = size_t(token) * cols + first, group = at / kGroup;
  if (!packs(k, tokens)) return k.quantize(x, n, q + at, scale + group, sum + group);
  int8_t bytes[kBlockCols];
  float scales[kBlockCols / kGroup];
  int32_t sums[kBlockCols / kGroup];
  for (int i = 0; i < n; i += kBlockCols) {
    const int count = std::min(kBlockCols, n - i);
    k.quantize(x + i, count, bytes, scales, sums);
    pack_groups(bytes, scales, token, (first + i) / kGroup, count / kGroup, tokens, packed);
  }
}
// ---- Matmul: the loops around the kernels ----
#if !defined(POCKET_SEPARATE_KERNELS)
// Integer matmul of many tokens: two panels and a block of columns at a time, which is unpacked once for all tokens.
void matmul_blocked(const Kernels& k, const PanelProduct& m) {
  alignas(64) uint8_t unpacked[2][kBlockCols * kPanelRows];
  alignas(64) float unpacked_scales[2][kBlockCols / kGroup * kPanelRows];
  alignas(64) float acc[2][kChunk * kPanelRows];
  const Type type = m.w.type;
  const size_t stride = panel_bytes(type, m.w.cols), scales_at = code_bytes(type, m.w.cols);
  for (int p = m.first; p < m.first + m.count; p += 2) {
    const int pair = std::min(2, m.first + m.count - p);  // an odd last panel is computed twice and stored once
    for (auto& sums : acc) std::fill_n(sums, m.n * kPanelRows, 0.f);
    for (int k0 = 0; k0 < m.x.cols; k0 += kBlockCols) {
      const int cols = std::min(kBlockCols, m.x.cols - k0);
      BlockProduct block = {type, {}, {}, cols, m.x.from(size_t(k0)), m.n, {acc[0], acc[1]}};
      for (int i = 0; i < 2; i++) {
        const uint8_t* panel = m.w.data + (size_t(p) + std::min(i, pair - 1)) * stride;
        block.codes[i] = panel + code_bytes(type, k0);
        block.scales[i] = panel + scales_at + (type == Type::q8 ? k0 : k0 / 4);
        if (type != Type::q4) continue;
        k.unpack_q4(block.codes[i], panel + scales_at + k0 / 4, m.w.codebook, cols, unpacked[i], unpacked_scales[i]);
        block.codes[i] = unpacked[i];
        block.scales[i] = unpacked_scales[i];
      }
      k.dot(block);
    }
    for (int i = 0; i < pair; i++) {
      float scale[kPanelRows];
      std::fill(scale, scale + kPanelRows, 1.f);
      if (type == Type::q4) std::memcpy(scale, m.w.data + (size_t(p) + i + 1) * stride - sizeof scale, sizeof scale);
      float* __restrict y = m.y + (size_t(p) + i) * kPanelRows;
      for (int t = 0, n = m.n; t < n; t++, y += m.ldy)
        for (int r = 0; r < kPanelRows; r++) y[r] = acc[i][t * kPanelRows + r] * scale[r];
    }
  }
}
// By the fastest kernel of the set.
void matmul_panels(const Kernels& k, const PanelProduct& m) {
  if (m.w.type == Type::f32) return k.matmul_f32(m);
  if (!k.dot) return matmul_scalar(m);
  if ((m.w.type == Type::q4 || k.gemv_q8) && m.n <= k.few_tokens) return k.gemv(m);
  if (m.x.use_packed) return k.matmul_packed(m);
  matmul_blocked(k, m);
}
#endif
// y = w x for each product. Matrices that share their input are processed in one pass, as if stacked vertically.
inline void matmul(const Kernels& k, Pool& pool, std::initializer_list<Product> products, Activations x, int n,
                   const std::vector<LowRankProduct>& added) {
  int total = 0;
  size_t bytes = 0;
  x.use_packed = packs(k, n);
  for (const Product& p : products) {
    total += panels_of(p.w.rows);
    bytes += p.w.bytes;
  }
  pool.parallel_ranges(total, panel_unit(n), matmul_work(bytes, n), [&](int first, int end) {
    for (const Product& p : products) {
      const int panels = panels_of(p.w.rows), from = std::max(first, 0), to = std::min(end, panels);
      if (from < to) matmul_rows(k, p.w, from, to - from, x, n, p.y + from * kPanelRows, padded(p.w.rows), added);
      first -= panels;  // relative to the first panel of the next product
      end -= panels;
    }
  });
}

// ==== 7. Model file: map and check ===================================================================================
// A file is checked once, when it is opened, in 64-bit arithmetic that cannot overflow. All other code relies on it.
struct Section {
  uint64_t offset, bytes;
};
// The first 256 bytes of a model file.
struct Header {
  char magic[8];          // kMagic
  uint32_t version;       // kFormatVersion
  uint32_t architecture;  // kLlama; models/megabyte/ has files of kMegabyte
  uint32_t dim, hidden_dim, n_layers, n_heads, n_kv_heads, head_dim, vocab_size, max_seq_len;
  uint32_t tied;  // 0 or 1
  float norm_eps;
  float rope_theta;
  uint32_t rope_scaling;
  float rope_factor, rope_low_freq, rope_high_freq;
  uint32_t rope_original_len;
  uint64_t file_bytes;
  Section tokenizer, chat, provenance, self_test, tensor_table, tensors;
  uint64_t tensors_checksum;  // XXH64 of the tensors section
  uint64_t checksum;          // XXH64 of this header with this field 0, then of the sections before the tensors
  uint32_t parts;        // what layers have besides a Llama's parts. 1: qkv_bias, 2: o_bias, 4: mlp_bias, 8: qk_norm
  uint8_t no_rope[32];   // bit l % 8 of byte l / 8: layer l has no rope
  uint8_t reserved[20];  // 0; from `parts` on, files of kMegabyte have fields of their own
};
static_assert(sizeof(Header) == 256);
inline constexpr char kMagic[8] = {'P', 'K', 'T', 'L', 'L', 'A', 'M', 'A'};
// Version 1: the last 56 bytes of a Llama's header are 0.
inline constexpr uint32_t kFormatVersion = 2, kOldestVersion = 1, kLlama = 1, kMegabyte = 2;
inline constexpr uint64_t kPage = 4096;  // alignment of the tensors section
struct TensorEntry {
  uint32_t type, rows, cols, reserved;
  uint64_t offset, bytes;  // offset from the start of the file
  int8_t codebook[16];     // q4, else 0
  uint8_t padding[16];     // 0
};
static_assert(sizeof(TensorEntry) == 64);
struct TensorSpec {
  std::string name;
  Layout layout;
  int rows, cols;
};
// A tensor of a layer, by its name in Layer.
struct LayerTensor : TensorSpec {
  Tensor Layer::*tensor;
};
// The tensors that every layer has, in the order of the file.
inline std::vector<LayerTensor> layer_tensors(const Config& c) {
  std::vector<LayerTensor> all;
  const auto add = [&](bool exists, const char* name, Tensor Layer::*tensor, int rows, int cols = 0) {
    if (exists && cols == 0) all.push_back({{name, Layout::vector, 1, rows}, tensor});
    if (exists && cols > 0) all.push_back({{name, Layout::panels, rows, cols}, tensor});
  };
  add(true, "attention_norm", &Layer::attention_norm, c.dim);
  add(true, "wq", &Layer::wq, c.q_dim(), c.dim);
  add(true, "wk", &Layer::wk, c.kv_dim(), c.dim);
  add(true, "wv", &Layer::wv, c.kv_dim(), c.dim);
  add(c.qkv_bias, "bq", &Layer::bq, c.q_dim());
  add(c.qkv_bias, "bk", &Layer::bk, c.kv_dim());
  add(c.qkv_bias, "bv", &Layer::bv, c.kv_dim());
  add(c.qk_norm, "q_norm", &Layer::q_norm, c.head_dim);
  add(c.qk_norm, "k_norm", &Layer::k_norm, c.head_dim);
  add(true, "wo", &Layer::wo, c.dim, c.q_dim());
  add(c.o_bias, "bo", &Layer::bo, c.dim);
  add(true, "ffn_norm", &Layer::ffn_norm, c.dim);
  add(true, "w1", &Layer::w1, c.hidden_dim, c.dim);
  add(true, "w3", &Layer::w3, c.hidden_dim, c.dim);
  add(c.mlp_bias, "b1", &Layer::b1, c.hidden_dim);
  add(c.mlp_bias, "b3", &Layer::b3, c.hidden_dim);
  add(true, "w2", &Layer::w2, c.dim, c.hidden_dim);
  add(c.mlp_bias, "b2", &Layer::b2, c.dim);
  return all;
}
// Every tensor of a Llama, in the order of the file.
inline std::vector<TensorSpec> tensor_specs(const Config& c) {
  const std::vector<LayerTensor> of_layer = layer_tensors(c);
  std::vector<TensorSpec> specs = {{"token_embedding", Layout::rows, c.vocab_size, c.dim}};
  for (int l = 0; l < c.n_layers; l++)
    for (const LayerTensor& t : of_layer)
      specs.push_back({"layers." + std::to_string(l) + "." + t.name, t.layout, t.rows, t.cols});
  specs.push_back({"final_norm", Layout::vector, 1, c.dim});
  specs.push_back({"output", Layout::panels, c.vocab_size, c.dim});
  return specs;
}
inline uint64_t tensor_bytes(const TensorSpec& spec, Type type) {
  if (spec.layout == Layout::vector) return round_up<uint64_t>(uint64_t(spec.cols) * 4, kAlign);
  if (spec.layout == Layout::rows) return round_up<uint64_t>(embedding_row_bytes(type, spec.cols) * spec.rows, kAlign);
  return uint64_t(panels_of(spec.rows)) * panel_bytes(type, spec.cols);
}
inline const char* type_name(Type type) { return type == Type::f32 ? "f32" : type == Type::q8 ? "q8" : "q4"; }
// XXH64, seed 0 (github.com/Cyan4973/xxHash, doc/xxhash_spec.md), zero-padded to 32 bytes. A checksum, no cryptography.
class Hash64 {
 public:
  Hash64& update(const void* data, size_t n) {
    const uint8_t* p = static_cast<const uint8_t*>(data);
    total_ += round_up<size_t>(n, 32);
    for (; n >= 32; p += 32, n -= 32) stripe(p);
    uint8_t last[32] = {};
    if (n > 0) stripe(static_cast<uint8_t*>(std::memcpy(last, p, n)));
    return *this;
  }
  uint64_t digest() const {
    uint64_t h = rotate(lane_[0], 1) + rotate(lane_[1], 7) + rotate(lane_[2], 12) + rotate(lane_[3], 18);
    for (uint64_t lane : lane_) h = (h ^ round(0, lane)) * k1 + 0x85EBCA77C2B2AE63;
    h += total_;
    h = (h ^ h >> 33) * k2;
    h = (h ^ h >> 29) * 0x165667B19E3779F9;
    return h ^ h >> 32;
  }

 private:
  static constexpr uint64_t k1 = 0x9E3779B185EBCA87, k2 = 0xC2B2AE3D27D4EB4F;
  static uint64_t rotate(uint64_t x, int n) { return x << n | x >> (64 - n); }
  static uint64_t round(uint64_t acc, uint64_t input) { return rotate(acc + input * k2, 31) * k1; }
  void stripe(const uint8_t* p) {
    for (int i = 0; i < 4; i++) lane_[i] = round(lane_[i], load<uint64_t>(p + 8 * i));
  }
  uint64_t lane_[4] = {k1 + k2, k2, 0, 0 - k1}, total_ = 0;
};
inline uint64_t hash_bytes(const void* data, size_t n) { return Hash64().update(data, n).digest(); }
inline uint64_t hash_logits(const float* logits, int n) { return hash_bytes(logits, size_t(n) * sizeof(float)); }
// The limits of a shape, for model files and checkpoints alike. Within them no product of sizes overflows 64 bits, and
// a pair rotates by at most one radian per position, so that exact::sincos can reduce every angle. For a value outside
// its limits returns refuse(field, expected, found).
template <class Refuse> bool check_config(const Config& c, const Refuse& refuse) {
  const auto in_range = [&](const char* field, int value, int low, int high) {
    return (value >= low && value <= high) || refuse(field, concat(low, " to ", high), concat(value));
  };
  const auto at_least = [&](const char* field, float value, float low) {
    return (value > 0 && value >= low && value < 1e30f) ||
           refuse(field, low == 1 ? "1 or more" : "a positive number", concat(value));
  };
  const bool scaled = c.rope_scaling != RopeScaling::none, llama3 = c.rope_scaling == RopeScaling::llama3;
  if (!in_range("dim", c.dim, 1, 1 << 16) || !in_range("hidden_dim", c.hidden_dim, 1, 1 << 20) ||
      !in_range("n_layers", c.n_layers, 1, 1 << 10) || !in_range("n_heads", c.n_heads, 1, 1 << 10) ||
      !in_range("n_kv_heads", c.n_kv_heads, 1, c.n_heads) || !in_range("head_dim", c.head_dim, 2, kMaxHeadDim) ||
      !in_range("vocab_size", c.vocab_size, 1, 1 << 22) || !in_range("max_seq_len", c.max_seq_len, 1, kMaxContext) ||
      (llama3 && !in_range("rope_original_len", c.rope_original_len, 1, 1 << 24)))
    return false;
  if (c.n_heads % c.n_kv_heads)
    return refuse("n_kv_heads", concat("a divisor of ", c.n_heads, " heads"), concat(c.n_kv_heads));
  if (c.head_dim % 2) return refuse("head_dim", "an even number", concat(c.head_dim));
  if (!at_least("norm_eps", c.norm_eps, 0) || !at_least("rope_theta", c.rope_theta, 1)) return false;
  if (scaled && !at_least("rope_factor", c.rope_factor, 1)) return false;
  if (!llama3) return true;
  return at_least("rope_low_freq", c.rope_low_freq, 0) && at_least("rope_high_freq", c.rope_high_freq, 0) &&
         (c.rope_high_freq > c.rope_low_freq ||
          refuse("rope_high_freq", concat("more than rope_low_freq, ", c.rope_low_freq), concat(c.rope_high_freq)));
}
// All checks of a model file. A step returns false with `error` set.
struct ModelReader {
  ModelFile& m;
  Header h;
  template <class E, class F> bool refuse(const std::string& field, const E& expected, const F& found) {
    return set_error(m.error, concat(field, ": expected ", expected, ", found ", found));
  }
  bool equal(const std::string& field, uint64_t expected, uint64_t found) {
    return expected == found || refuse(field, expected, found);
  }
  bool header(uint32_t architecture) {
    if (m.size_ < 8 || std::memcmp(m.base_, kMagic, 8) != 0)
      return refuse("magic", "a pocketllama model", "another format; make one with export/convert");
    if (m.size_ < sizeof(Header)) return refuse("size", "at least 256 bytes of header", m.size_);
    std::memcpy(&h, m.base_, sizeof h);
    if (h.version < kOldestVersion || h.version > kFormatVersion)
      return refuse("version", concat(kOldestVersion, " or ", kFormatVersion), h.version);
    if (h.file_bytes != m.size_) return refuse("file_bytes", h.file_bytes, concat(m.size_, " (truncated?)"));
    const auto name = [](uint32_t a) {
      return concat(a, a == kLlama ? " (llama)" : a == kMegabyte ? " (megabyte)" : "");
    };
    if (h.architecture != architecture) return refuse("architecture", name(architecture), name(h.architecture));
    return sections() && checksum();
  }
  bool sections() {
    const std::tuple<const char*, Section, uint64_t> all[] = {
        {"tokenizer", h.tokenizer, kAlign},       {"chat", h.chat, kAlign},
        {"provenance", h.provenance, kAlign},     {"self_test", h.self_test, kAlign},
        {"tensor_table", h.tensor_table, kAlign}, {"tensors", h.tensors, kPage}};
    uint64_t at = sizeof(Header);
    for (const auto& [name, s, align] : all) {
      const std::string field = concat("section ", name);
      if (s.offset % align) return refuse(field + ".offset", concat("a multiple of ", align), s.offset);
      if (s.offset < at) return refuse(field + ".offset", concat("at least ", at), s.offset);
      if (s.offset > m.size_ || s.bytes > m.size_ - s.offset)
        return refuse(field + ".bytes", concat("an end within ", m.size_, " bytes"), s.bytes);
      at = s.offset + s.bytes;
    }
    return at == m.size_ || refuse("section tensors", "the end of the file", at);
  }
  bool checksum() {
    Header zeroed = h;
    zeroed.checksum = 0;
    Hash64 hash;
    hash.update(&zeroed, sizeof zeroed).update(m.base_ + sizeof(Header), h.tensors.offset - sizeof(Header));
    return hash.digest() == h.checksum || refuse("checksum", h.checksum, concat(hash.digest(), " (damaged)"));
  }
  template <class Shape> bool fits(const Shape& shape) {
    return check_config(shape, [this](const char* field, const std::string& expected, const std::string& found) {
      return refuse(field, expected, found);
    });
  }
  // The tensors, bound to their place. count: of the specs, so that a tiny file does not cause a list of thousands.
  template <class Specs> bool tensors(uint64_t count, const Specs& specs, std::vector<Tensor>& bound) {
    if (!equal("section tensor_table.bytes", count * sizeof(TensorEntry), h.tensor_table.bytes)) return false;
    uint64_t at = h.tensors.offset;
    m.all_f32 = true;
    for (const TensorSpec& spec : specs()) {
      const auto e = load<TensorEntry>(m.base_ + h.tensor_table.offset + bound.size() * sizeof(TensorEntry));
      const std::string field = "tensor " + spec.name;
      const Type last = spec.layout == Layout::vector ? Type::f32 : spec.layout == Layout::rows ? Type::q8 : Type::q4;
      if (e.type > uint32_t(last)) return refuse(field + ".type", "a type of its layout", e.type);
      if (!equal(field + ".rows", uint64_t(spec.rows), e.rows)) return false;
      if (!equal(field + ".cols", uint64_t(spec.cols), e.cols)) return false;
      if (!equal(field + ".offset", at, e.offset)) return false;
      const uint64_t bytes = tensor_bytes(spec, Type(e.type));
      if (!equal(field + ".bytes", bytes, e.bytes)) return false;
      if (bytes > m.size_ - at) return refuse(field, concat(bytes, " bytes"), concat(m.size_ - at, " left"));
      Tensor t = {Type(e.type), spec.rows, spec.cols, m.base_ + at, size_t(bytes), {}, spec.layout};
      std::memcpy(t.codebook, e.codebook, sizeof e.codebook);
      for (int8_t value : e.codebook)  // section 10 relies on 7 bits
        if (value < -64 || value > 63) return refuse(field + ".codebook", "-64 to 63", int(value));
      bound.push_back(t);
      m.all_f32 = m.all_f32 && (spec.layout != Layout::panels || t.type == Type::f32);
      at += bytes;
    }
    return equal("section tensors", at, m.size_);
  }
  std::string_view view(const Section& s) {
    return {reinterpret_cast<const char*>(m.base_) + s.offset, size_t(s.bytes)};
  }
  // The number of ids and the ids at the start of a section. Returns the rest, null if they are invalid.
  std::string_view ids(const char* name, const Section& s, int vocab_size, std::vector<int>& out) {
    std::string_view in = view(s);
    const uint64_t count = in.size() < 4 ? 0 : load<uint32_t>(in.data());
    bool good = in.size() >= 4 * (count + 1);
    out.clear();
    for (uint64_t i = 0; good && i < count; i++) {
      out.push_back(load<int32_t>(in.data() + 4 + 4 * i));
      good = out.back() >= 0 && out.back() < vocab_size;
    }
    if (good) return in.substr(4 + 4 * size_t(count));
    refuse(name, "ids within the vocabulary", "other values");
    return {};
  }
  // The sections after the tensor table is bound.
  bool finish(int vocab_size) {
    if (!ids("section chat", h.chat, vocab_size, m.stop_ids).data()) return false;
    const std::string_view hash = ids("section self_test", h.self_test, vocab_size, m.self_test_ids);
    if (!hash.data()) return false;
    if (hash.size() != 8) return refuse("section self_test", "ids and a hash", "other bytes");
    m.self_test_hash = load<uint64_t>(hash.data());
    m.tokenizer_ = view(h.tokenizer);
    m.chat_ = view(h.chat);
    m.provenance_ = view(h.provenance);
    m.file_bytes = m.size_;
    m.tensors_at_ = h.tensors.offset;
    m.tensors_hash_ = h.tensors_checksum;
    m.checksum_ = h.checksum;
    return true;
  }
};
// The shape of a Llama, from the header.
inline bool read_config(ModelReader& reader, Config& c) {
  const Header& h = reader.h;
  if (h.tied > 1) return reader.refuse("tied", "0 or 1", h.tied);
  if (h.rope_scaling > 2) return reader.refuse("rope_scaling", "0 to 2", h.rope_scaling);
  const size_t used = h.version == 1 ? offsetof(Header, parts) : offsetof(Header, reserved);
  for (size_t i = used; i < sizeof h; i++)
    if (const int byte = reinterpret_cast<const uint8_t*>(&h)[i]) return reader.refuse("reserved", 0, byte);
  if (h.parts > 15) return reader.refuse("parts", "0 to 15", h.parts);
  c.qkv_bias = h.parts & 1;
  c.o_bias = h.parts & 2;
  c.mlp_bias = h.parts & 4;
  c.qk_norm = h.parts & 8;
  for (size_t l = 0; l < c.no_rope.size(); l++) c.no_rope[l] = h.no_rope[l / 8] >> l % 8 & 1;
  std::tie(c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads, c.head_dim, c.vocab_size, c.max_seq_len,
           c.rope_original_len) = std::tie(h.dim, h.hidden_dim, h.n_layers, h.n_heads, h.n_kv_heads, h.head_dim,
                                           h.vocab_size, h.max_seq_len, h.rope_original_len);
  c.rope_scaling = RopeScaling(h.rope_scaling);
  c.rope_theta = h.rope_theta;
  c.rope_factor = h.rope_factor;
  c.rope_low_freq = h.rope_low_freq;
  c.rope_high_freq = h.rope_high_freq;
  c.norm_eps = h.norm_eps;
  c.tied = h.tied == 1;
  return reader.fits(c);
}
inline bool Model::read() {
  layers.clear();
  ModelReader reader{*this, {}};
  std::vector<Tensor> t;
  const auto specs = [&] { return tensor_specs(config); };
  if (!reader.header(kLlama) || !read_config(reader, config)) return false;
  const std::vector<LayerTensor> of_layer = layer_tensors(config);
  const size_t count = size_t(config.n_layers) * of_layer.size() + 3;
  if (!reader.tensors(count, specs, t) || !reader.finish(config.vocab_size)) return false;
  token_embedding = t[0];
  layers.resize(size_t(config.n_layers));
  for (size_t l = 0, i = 1; l < layers.size(); l++)
    for (const LayerTensor& part : of_layer) layers[l].*part.tensor = t[i++];
  final_norm = t[t.size() - 2];
  output = t[t.size() - 1];
  bytes_per_token = 0;
  for (size_t i = 1; i < t.size(); i++) bytes_per_token += t[i].bytes;
  return true;
}
// ---- The operating system: POSIX or Windows ----
// read_at: up to n bytes, at most 1 GiB; 0 at the end, -1 if it fails. map_pages: the start of a file, or for -1 zeroed
// memory, in place of that at `at`; sparse: of which most may stay unused, and then costs nothing. Null if it fails.
#if defined(_WIN32)
inline std::wstring wide_path(const std::string& path) {  // of UTF-8; with a prefix, which permits more than 259 units
  std::wstring name(path.size(), L'\0'), full(32768, L'\0');
  name.resize(size_t(MultiByteToWideChar(CP_UTF8, 0, path.data(), int(path.size()), &name[0], int(name.size()))));
  full.resize(GetFullPathNameW(name.c_str(), DWORD(full.size()), &full[0], nullptr));
  return full.compare(0, 2, L"\\\\") == 0 ? full : L"\\\\?\\" + full;  // a device or a network's folder has another
}
using FileStatus = struct _stat64;
inline int status_of(int file, FileStatus* status) { return _fstat64(file, status); }
inline HANDLE handle_of(int file) { return reinterpret_cast<HANDLE>(_get_osfhandle(file)); }
inline int open_to_read(const char* path) { return _wopen(wide_path(path).c_str(), O_RDONLY | O_BINARY | O_NOINHERIT); }
inline int64_t read_at(int file, void* out, size_t n, uint64_t at) {
  OVERLAPPED from = {0, 0, {{DWORD(at), DWORD(at >> 32)}}, nullptr};
  DWORD done = 0;
  const BOOL good = ReadFile(handle_of(file), out, DWORD(n), &done, &from);
  return good || GetLastError() == ERROR_HANDLE_EOF ? int64_t(done) : -1;
}
inline uint8_t* map_pages(int file, size_t n, bool, void* at) {
  if (at) VirtualFree(at, n, MEM_DECOMMIT);
  if (file < 0) return static_cast<uint8_t*>(VirtualAlloc(at, n, (at ? 0 : MEM_RESERVE) | MEM_COMMIT, PAGE_READWRITE));
  const HANDLE mapping = CreateFileMappingW(handle_of(file), nullptr, PAGE_READONLY, 0, 0, nullptr);
  void* const view = mapping ? MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, n) : nullptr;
  if (mapping) CloseHandle(mapping);  // the view keeps it
  return static_cast<uint8_t*>(view);
}
inline void unmap_pages(void* memory, size_t) {
  if (!UnmapViewOfFile(memory)) VirtualFree(memory, 0, MEM_RELEASE);
}
struct SignalsBlocked {};  // Ctrl-C has a thread of its own
#else
using FileStatus = struct stat;
inline int status_of(int file, FileStatus* status) { return fstat(file, status); }
inline int open_to_read(const char* path) { return ::open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); }
inline int64_t read_at(int file, void* out, size_t n, uint64_t at) {
  const int64_t done = pread(file, out, n, off_t(at));
  return done < 0 && errno == EINTR ? read_at(file, out, n, at) : done;
}
inline uint8_t* map_pages(int file, size_t n, bool sparse, void* at) {
  const int memory = MAP_PRIVATE | MAP_ANONYMOUS | (sparse ? MAP_NORESERVE : 0) | (at ? MAP_FIXED : 0);
  void* const p = mmap(at, n, file < 0 ? PROT_READ | PROT_WRITE : PROT_READ, file < 0 ? memory : MAP_SHARED, file, 0);
  if (p == MAP_FAILED) return nullptr;
#ifdef MADV_HUGEPAGE  // pages of 2 MiB read faster, but the first key of a block would occupy one
  madvise(p, n, sparse ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
#endif
  return static_cast<uint8_t*>(p);
}
inline void unmap_pages(void* memory, size_t n) { munmap(memory, n); }
struct SignalsBlocked {  // those of this thread, except signals that it causes itself
  sigset_t before, most;
  SignalsBlocked() {
    sigfillset(&most);
    for (int caused : {SIGBUS, SIGFPE, SIGILL, SIGSEGV}) sigdelset(&most, caused);
    pthread_sigmask(SIG_BLOCK, &most, &before);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before, nullptr); }
};
#endif
// Whether std::fma rounds once, as the same bits require. mingw-w64's rounds twice, in a wider type or in two parts.
inline bool check_fma(std::string& error) {
  const FloatMode mode;
  const volatile double a = 1 + 0x1p-52, b = -1 - 0x1p-51;         // a * a + b = 2^-104
  const volatile float c = 1 + 0x1p-23f, d = 0x1p-24f - 0x1p-47f;  // c * d + c is just below the middle of two floats
  return (std::fma(a, a, b) == 0x1p-104 && fma(c, d, c) == c && fma(c, d, 0x1.4p-48f) == 0x1.000002p-24f) ||
         set_error(error, "std::fma: expected one rounding, found two; on Windows compile with zig, or with -mfma");
}
// On any failure the model is closed, and `error` has the name (but for lack of memory).
template <class Map> bool ModelFile::open_with(const char* name, const Map& map) {
  unmap();
  error.clear();
  try {
    if (check_fma(error) && map() && read()) return true;
    error = concat(name, ": ", error);
  } catch (const std::bad_alloc&) {
    error = "out of memory";
  }
  unmap();
  return false;
}
inline bool ModelFile::open(const char* path, Load load) {
  return open_with(path ? path : "null", [&] { return map_file(path, load); });
}
inline bool ModelFile::open_memory(const void* data, size_t size) {
  return open_with("memory", [&] {
    if (reinterpret_cast<uintptr_t>(data) % kAlign)
      return set_error(error, "expected an address on a 64-byte boundary");
    base_ = static_cast<const uint8_t*>(data);
    size_ = data ? size : 0;
    return true;
  });
}
inline bool ModelFile::map_file(const char* path, Load load) {
  const auto fail = [&](const char* why) { return set_error(error, why); };
  file_ = path ? open_to_read(path) : -1;
  FileStatus st;
  if (!path || file_ < 0 || status_of(file_, &st) != 0)
    return fail(path ? std::strerror(errno) : "expected a file name");
  if (S_ISDIR(st.st_mode)) return fail("is a folder; convert a checkpoint in it: export/convert FOLDER -o model.bin");
  if (!S_ISREG(st.st_mode)) return fail("expected a regular file");
  if (st.st_size == 0) return fail("magic: expected a pocketllama model, found an empty file");
  size_ = size_t(st.st_size);
  base_ = map_pages(load == Load::copy ? -1 : file_, size_, false);
  if (!base_) return fail(std::strerror(ENOMEM));
  owned_ = true;
  if (load == Load::map) return true;
  for (size_t at = 0; at < size_;) {
    const int64_t n = read_at(file_, const_cast<uint8_t*>(base_) + at, std::min<size_t>(size_ - at, 1 << 30), at);
    if (n <= 0) return fail(n < 0 ? std::strerror(errno) : "the file was truncated while it was read");
    at += size_t(n);
  }
  ::close(std::exchange(file_, -1));
  return true;
}
inline void ModelFile::unmap() {
  if (owned_) unmap_pages(const_cast<uint8_t*>(base_), size_);
  if (file_ >= 0) ::close(file_);
  base_ = nullptr;
  file_ = -1;
  owned_ = false;
  tokenizer_ = chat_ = provenance_ = {};
  size_ = file_bytes = 0;
  tensors_at_ = tensors_hash_ = checksum_ = 0;
}
inline bool ModelFile::verify_tensors() {
  const uint64_t found = hash_bytes(base_ + tensors_at_, size_ - tensors_at_);
  return found == tensors_hash_ ||
         set_error(error, concat("tensors: expected checksum ", tensors_hash_, ", found ", found));
}
// Reads the row from the file instead of the mapping: a page fault would bring in 64 KiB around it, which would stay.
inline bool ModelFile::read_row(const Tensor& table, int index, float* x) const {
  const Type type = table.type;
  const size_t group = embedding_group_bytes(type), groups = size_t(padded(table.cols)) / kGroup;
  const uint8_t* row = table.data + size_t(index) * groups * group;
  uint8_t copy[4096];
  for (size_t g = 0, take; g < groups; g += take, row += take * group) {
    take = std::min(sizeof copy / group, groups - g);
    const uint8_t* from = row;
    if (file_ >= 0) {
      if (read_at(file_, copy, take * group, uint64_t(row - base_)) != int64_t(take * group)) return false;
      from = copy;
    }
    for (size_t i = 0; i < take; i++, from += group, x += kGroup) {
      if (type == Type::f32) {
        std::memcpy(x, from, group);
      } else {
        const float scale = from_bf16(load<uint16_t>(from));
        for (int k = 0; k < kGroup; k++) x[k] = float(int8_t(from[2 + k])) * scale;
      }
    }
  }
  return true;
}

// ==== 8. Threads =====================================================================================================
// An idle worker spins for some microseconds, since the next matmul usually follows soon, and then sleeps.
inline void spin_pause() {  // tells the CPU that a loop only waits
#if defined(__x86_64__)
  asm volatile("pause");
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}
inline Pool::Pool(int threads) {
  starts_.reserve(16 * size_t(std::max(threads, 1)) + 16);  // more than parallel_ranges makes of any model's panels
  [[maybe_unused]] const SignalsBlocked blocked{};          // workers leave them to the threads of the program
  try {
    for (int i = 1; i < threads; i++) workers_->threads.emplace_back([this, i] { work(i); });
  } catch (const std::exception&) {  // the system's limit, or no memory: continue with those that started
  }
}
inline Pool::~Pool() {
  forget_lost_workers();
  if (!workers_) return;
  {
    std::lock_guard<std::mutex> lock(workers_->mutex);
    stop_.store(true);
  }
  workers_->wake.notify_all();
  for (auto& worker : workers_->threads) worker.join();
}
template <class F> void Pool::parallel_for(int n, double work, const F& f) {
  if (threads() == 1 || n <= 1 || work < kWorthSharing) {
    for (int i = 0; i < n; i++) f(i, 0);
    return;
  }
  call_ = [](const void* context, int task, int thread) { (*static_cast<const F*>(context))(task, thread); };
  context_ = &f;
  done_.store(0, std::memory_order_relaxed);
  const uint64_t job = (ticket_.load(std::memory_order_relaxed) >> 48) + 1;
  ticket_.store(job << 48 | uint64_t(n) << 24);
  if (sleepers_.load() > 0) {
    { std::lock_guard<std::mutex> lock(workers_->mutex); }
    workers_->wake.notify_all();
  }
  take_tasks(0);
  for (int i = 0; done_.load(std::memory_order_acquire) != n; i++) {
    if (i < 1000)
      spin_pause();
    else
      std::this_thread::yield();
  }
  if (failed_.load(std::memory_order_relaxed) && failed_.exchange(false)) throw std::bad_alloc();
}
// First 7/8 of all in one long range per thread, since memory is read fastest in long streams, then 7/8 of the rest,
// and so on, until ranges are so short that no thread waits long for another (factoring; Hummel et al. 1992).
template <class F> void Pool::parallel_ranges(int n, int unit, double work, const F& f) {
  starts_.assign(1, 0);
  while (starts_.back() < n) {
    const int size = std::max(1, (n - starts_.back()) * 7 / 8 / threads() / unit) * unit;
    for (int i = 0; i < threads() && starts_.back() < n; i++) starts_.push_back(std::min(n, starts_.back() + size));
  }
  parallel_for(int(starts_.size()) - 1, work, [&](int task, int) { f(starts_[task], starts_[task + 1]); });
}
// ticket_: job number (16 bits), its number of tasks (24), next task (24). One fetch_add both claims a task and tells
// which job it belongs to, so that a late worker cannot take part in the wrong job.
inline void Pool::take_tasks(int thread) {
  for (;;) {
    const uint64_t ticket = ticket_.fetch_add(1, std::memory_order_acq_rel);
    const int task = int(ticket & 0xffffff), n = int(ticket >> 24 & 0xffffff);
    if (task >= n) return;
    try {
      call_(context_, task, thread);
    } catch (const std::bad_alloc&) {
      failed_.store(true, std::memory_order_relaxed);
    }
    done_.fetch_add(1, std::memory_order_release);
  }
}
inline void Pool::work(int thread) {
  const FloatMode mode;
  uint64_t seen = 0;
  for (;;) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 1; ticket_.load(std::memory_order_acquire) >> 48 == seen && !stop_.load(); i++) {
      spin_pause();
      if (i % 64 == 0 && std::chrono::steady_clock::now() - start > std::chrono::microseconds(50)) sleep(seen);
    }
    if (stop_.load()) return;
    seen = ticket_.load(std::memory_order_acquire) >> 48;
    take_tasks(thread);
  }
}
inline void Pool::sleep(uint64_t seen) {
  std::unique_lock<std::mutex> lock(workers_->mutex);
  sleepers_.fetch_add(1);
  workers_->wake.wait(lock, [&] { return ticket_.load() >> 48 != seen || stop_.load(); });
  sleepers_.fetch_sub(1);
}

// ==== 9. Float blocks: rmsnorm, rope, swiglu, attention ==============================================================
// Plain C++, written once: the compiler vectorizes each body for every instruction set (POCKET_FLOAT_BLOCKS). The bits
// are the same, since the order of every sum is fixed: a norm and a softmax have 16 partial sums, element i in sum i mod
// 16, added up 8, 4, 2, 1; a dot product is added in order. A product to be added is an fma, whatever -ffp-contract.

#define POCKET_BODY inline __attribute__((always_inline))
#define POCKET_FOR(I, N) _Pragma("GCC unroll 16") for (int I = 0; I < N; I++)  // fully unrolled
// Where sums must stay in registers the loops use W floats, which become one register (or two of SSE).
template <int W> struct Vector {
  typedef float Floats __attribute__((vector_size(4 * W)));
  typedef int32_t Ints __attribute__((vector_size(4 * W)));
};
template <int W> struct Lanes {
  typedef typename Vector<W>::Floats Floats;
  typedef typename Vector<W>::Ints Ints;
  Floats v;
  Lanes() = default;
  POCKET_BODY explicit Lanes(const float* p) { load(p); }
  POCKET_BODY void load(const float* p) { std::memcpy(&v, p, sizeof v); }
  POCKET_BODY void load(const int8_t* p) {
    int32_t wide[W];
    for (int i = 0; i < W; i++) wide[i] = p[i];
    Ints ints;
    std::memcpy(&ints, wide, sizeof ints);
    v = __builtin_convertvector(ints, Floats);  // lane by lane
  }
  POCKET_BODY void store(float* p) const { std::memcpy(p, &v, sizeof v); }
  POCKET_BODY void add(const Lanes& b) { v += b.v; }
  POCKET_BODY void keep_larger(const Lanes& b) { v = b.v > v ? b.v : v; }
  // += a * b, rounded once per lane.
  POCKET_BODY void add_product(float a, const Lanes& b) {
    float x[W], sum[W];
    std::memcpy(x, &b.v, sizeof x);
    std::memcpy(sum, &v, sizeof sum);
    for (int i = 0; i < W; i++) sum[i] = fma(a, x[i], sum[i]);
    std::memcpy(&v, sum, sizeof sum);
  }
};
POCKET_BODY float sum16(float* s) {
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; i++) s[i] += s[i + width];
  return s[0];
}
POCKET_BODY uint32_t float_bits(float f) { return load<uint32_t>(&f); }
POCKET_BODY float bits_float(uint32_t bits) { return load<float>(&bits); }
// Adding and subtracting 1.5 * 2^23 rounds a float to an integer, half to even, for |x| < 2^22.
inline constexpr float kRound = 12582912.f;
// e^x within 2 units in the last place; below -87 it is e^-87, above 88 it is e^88. x = n ln 2 + r with |r| <= ln 2 /
// 2; ln 2 is split in two so that r is exact, e^r is a polynomial (Cephes, expf), and 2^n goes into the exponent.
POCKET_BODY float exp_body(float x) {
  x = x < -87.f ? -87.f : x > 88.f ? 88.f : x;
  const float shifted = fma(x, 1.44269504f, kRound), n = shifted - kRound;
  const float r = fma(n, 2.12194440e-4f, fma(n, -0.693359375f, x));
  float p = fma(1.9875691500e-4f, r, 1.3981999507e-3f);
  p = fma(p, r, 8.3334519073e-3f);
  p = fma(p, r, 4.1665795894e-2f);
  p = fma(p, r, 1.6666665459e-1f);
  p = fma(p, r, 5.0000001201e-1f);
  p = fma(p * r, r, r) + 1.f;
  return p * bits_float((float_bits(shifted) - float_bits(kRound) + 127u) << 23);
}
POCKET_BODY void exp_vector_body(float* x, int n) {
  for (int i = 0; i < n; i++) x[i] = exp_body(x[i]);
}
// y = x / sqrt(mean of x^2 + eps) * weight. n elements, followed by zeros up to a multiple of 16.
POCKET_BODY void rmsnorm_body(const float* x, const float* weight, float* y, int n, float eps) {
  float s[16] = {};
  for (int i = 0; i < n; i += 16)
    for (int j = 0; j < 16; j++) s[j] = fma(x[i + j], x[i + j], s[j]);
  const float scale = 1.f / std::sqrt(sum16(s) / float(n) + eps);
  for (int i = 0; i < round_up(n, 16); i++) y[i] = x[i] * scale * weight[i];
}
// The largest |x|; NaN if there is one. For |x| the order of the bits is the order of the floats, with NaN on top.
POCKET_BODY float largest_of(const float* x, int n) {
  uint32_t top = 0;
  for (int i = 0; i < n; i++) top = std::max(top, float_bits(x[i]) & 0x7fffffff);
  return bits_float(top);
}
// Groups of 32 to int8: scale = max|x| / 127, q = x (127 / max|x|) rounded half to even, and the sum of each group's q.
POCKET_BODY void quantize_body(const float* x, int n, int8_t* q, float* scale, int32_t* sum) {
  for (int g = 0; g < n / kGroup; g++, x += kGroup, q += kGroup) {
    const float largest = largest_of(x, kGroup);
    const float inverse = largest < 1e-30f ? 0.f : 127.f / largest;  // 1 / scale might be infinite: zeros
    int32_t total = 0;
    for (int i = 0; i < kGroup; i++) {
      q[i] = int8_t(float_bits(fma(x[i], inverse, kRound)) - float_bits(kRound));
      total += q[i];
    }
    scale[g] = largest < 1e-30f ? 0.f : largest / 127.f;  // not finite if an element is not: so are the results
    sum[g] = total;
  }
}
// Rotates every pair (x[i], x[i + head_dim / 2]) of a head by its angle.
POCKET_BODY void rope_body(float* x, int heads, int head_dim, const float* cos, const float* sin) {
  const int half = head_dim / 2;
  for (int h = 0; h < heads; h++, x += head_dim)
    for (int i = 0; i < half; i++) {
      const float a = x[i], b = x[i + half];
      x[i] = fma(a, cos[i], -(b * sin[i]));
      x[i + half] = fma(b, cos[i], a * sin[i]);
    }
}
// gate = silu(gate) * up, silu(x) = x / (1 + e^-x).
POCKET_BODY void swiglu_body(float* gate, const float* up, int n) {
  for (int i = 0; i < n; i++) gate[i] = gate[i] / (1.f + exp_body(-gate[i])) * up[i];
}
// ---- Attention, in blocks of 128 keys that start at fixed positions ----
// Each block has its own softmax; the results are merged in order (online softmax: FlashAttention, Dao et al. 2022).
inline constexpr int kQueries = 8;  // queries that go through a block together
// Bytes of a KvBlock, in the order k_scale, v_scale, k, v.
inline size_t kv_block_bytes(int head_dim, bool f32, int keys) {
  const size_t scales = 2 * size_t(keys) * sizeof(float), number = f32 ? sizeof(float) : 1;
  return scales + size_t(keys) * (size_t(head_dim) + round_up(head_dim, 16)) * number;
}
// The block of so many keys at address `at`.
inline KvBlock kv_block_at(uint8_t* at, int head_dim, bool f32, int keys) {
  float* scales = reinterpret_cast<float*>(at);
  uint8_t* k = at + 2 * size_t(keys) * sizeof(float);
  uint8_t* v = k + size_t(keys) * head_dim * (f32 ? sizeof(float) : 1);
  return {k, v, scales, scales + keys, head_dim, round_up(head_dim, 16)};
}
// Stores a vector of n elements, element i at out[i * stride]; returns its scale.
template <class T> float store_vector(const float* x, int n, T* out, int stride) {
  if constexpr (sizeof(T) == 4) {
    for (int i = 0; i < n; i++) out[i * stride] = x[i];
    return 1;
  } else {
    const float largest = largest_of(x, n), inverse = largest < 1e-30f ? 0.f : 127.f / largest;
    for (int i = 0; i < n; i++) out[i * stride] = T(float_bits(fma(x[i], inverse, kRound)) - float_bits(kRound));
    return largest < 1e-30f ? 0.f : largest / 127.f;
  }
}
// Stores a key and a value of one head (head_dim) in a block.
inline void store_key(const KvBlock& kv, bool f32, int key, const float* k, const float* v) {
  const float root = 1.f / std::sqrt(float(kv.head_dim));
  const auto store = [&](auto* keys, auto* values) {
    kv.k_scale[key] = root * store_vector(k, kv.head_dim, keys + kv.key_at(key), 16);
    kv.v_scale[key] = store_vector(v, kv.head_dim, values + key * kv.width, 1);
  };
  f32 ? store(static_cast<float*>(kv.k), static_cast<float*>(kv.v))
      : store(static_cast<int8_t*>(kv.k), static_cast<int8_t*>(kv.v));
}
// Blocks of 16 lanes to sum up: block b, row i begins at data[b * between + i * step].
template <class T> struct LaneBlocks {
  const T* data;
  int rows;
  ptrdiff_t step, between;
  ptrdiff_t ahead;  // bytes from a row to the one to prefetch with it, into the L2 cache
};
// For B blocks from `first` on: out[n] (16 per block), the sum of rows times coefficient[n][row]. Rows are loaded once.
template <int W, class T, int N, int B>
POCKET_BODY void combine_blocks(const LaneBlocks<T>& a, int first, const float* const* coefficient, float* const* out) {
  constexpr int kParts = 16 / W;
  Lanes<W> acc[B][N][kParts] = {};
  for (int i = 0; i < a.rows; i++)
    POCKET_FOR (b, B) {
      Lanes<W> row[kParts];
      const T* lanes = a.data + (first + b) * a.between + i * a.step;
      __builtin_prefetch(reinterpret_cast<const uint8_t*>(lanes) + a.ahead, 0, 2);
      POCKET_FOR (p, kParts) row[p].load(lanes + p * W);
      POCKET_FOR (n, N)
        POCKET_FOR (p, kParts) acc[b][n][p].add_product(coefficient[n][i], row[p]);
    }
  POCKET_FOR (b, B)
    POCKET_FOR (n, N)
      POCKET_FOR (p, kParts) acc[b][n][p].store(out[n] + 16 * (first + b) + p * W);
}
// The same for `blocks` blocks. For few outputs several blocks go together: an fma waits four cycles for the previous
// one, so that it takes eight sums or more to keep the CPU's two units busy.
template <int W, class T, int N>
POCKET_BODY void combine(const LaneBlocks<T>& a, int blocks, const float* const* coefficient, float* const* out) {
  constexpr int kTogether = N == 1 || (W == 16 && N < 8) ? 4 : 1;
  int b = 0;
  for (; b + kTogether <= blocks; b += kTogether) combine_blocks<W, T, N, kTogether>(a, b, coefficient, out);
  for (; b < blocks; b++) combine_blocks<W, T, N, 1>(a, b, coefficient, out);
}
// Turns the scores of `keys` keys into the weights of their values, and sets the state's max and sum.
template <int W> POCKET_BODY void softmax_scores(float* s, int keys, const KvBlock& kv, AttentionState& state) {
  constexpr int kParts = 16 / W;
  const int end = round_up(keys, 16);
  for (int j = 0; j < end; j++) s[j] *= kv.k_scale[j];
  for (int j = std::max(keys, 0); j < end; j++) s[j] = -std::numeric_limits<float>::infinity();
  Lanes<W> tops[kParts], sums[kParts] = {};
  POCKET_FOR (p, kParts) tops[p].load(s + p * W);
  for (int j = 16; j < end; j += 16)
    POCKET_FOR (p, kParts) tops[p].keep_larger(Lanes<W>(s + j + p * W));
  float largest[16], total[16];
  POCKET_FOR (p, kParts) tops[p].store(largest + p * W);
  float top = largest[0];
  for (int l = 1; l < 16; l++) top = largest[l] > top ? largest[l] : top;
  for (int j = 0; j < end; j++) s[j] = exp_body(s[j] - top);
  for (int j = std::max(keys, 0); j < end; j++) s[j] = 0;
  for (int j = 0; j < end; j += 16)
    POCKET_FOR (p, kParts) sums[p].add(Lanes<W>(s + j + p * W));
  POCKET_FOR (p, kParts) sums[p].store(total + p * W);
  state.max = top;
  state.sum = sum16(total);
  for (int j = 0; kv.v && j < end; j++) s[j] *= kv.v_scale[j];
}
// N queries (head_dim) against the first keys[n] keys of a block.
template <int W, class T, int N>
POCKET_BODY void attend_block(const KvBlock& kv, const float* const* q, const int* keys, AttentionState* const* out) {
  alignas(64) float score[N][kBlockKeys] = {};
  int shortest = keys[0], longest = keys[0];
  for (int n = 1; n < N; n++) shortest = std::min(shortest, keys[n]);
  for (int n = 1; n < N; n++) longest = std::max(longest, keys[n]);
  float* scores[N];
  for (int n = 0; n < N; n++) scores[n] = score[n];
  const LaneBlocks<T> k = {static_cast<const T*>(kv.k), kv.head_dim, 16, 16 * kv.head_dim, kv.ahead};
  combine<W, T, N>(k, (longest + 15) / 16, q, scores);
  const float* weights[N];
  float* values[N];
  for (int n = 0; n < N; n++) {
    softmax_scores<W>(score[n], keys[n], kv, *out[n]);
    weights[n] = score[n];
    values[n] = out[n]->values;
    if (!kv.v) std::copy_n(score[n], kBlockKeys, values[n]);
  }
  if (!kv.v) return;
  const LaneBlocks<T> v = {static_cast<const T*>(kv.v), shortest, kv.width, 16, kv.ahead};
  combine<W, T, N>(v, kv.width / 16, weights, values);
  for (int n = 0; n < N; n++)  // queries of later tokens see some more keys
    for (int j = shortest; j < keys[n]; j++)
      for (int i = 0; i < kv.width; i++)
        values[n][i] = fma(score[n][j], float(v.data[size_t(j) * kv.width + i]), values[n][i]);
}
template <int W, class T>
POCKET_BODY void attend_body(const KvBlock& kv, int n, const float* const* q, const int* keys,
                             AttentionState* const* out) {
  int i = 0;
  if constexpr (W == 16)  // has registers for the sums of eight
    for (; i + 8 <= n; i += 8) attend_block<W, T, 8>(kv, q + i, keys + i, out + i);
  for (; i + 4 <= n; i += 4) attend_block<W, T, 4>(kv, q + i, keys + i, out + i);
  for (; i + 3 <= n; i += 3) attend_block<W, T, 3>(kv, q + i, keys + i, out + i);
  for (; i < n; i++) attend_block<W, T, 1>(kv, q + i, keys + i, out + i);
}
// Merges the result of the next block into the state of the blocks before it. width: of the values.
POCKET_BODY void merge_body(AttentionState& state, const AttentionState& part, int width) {
  const bool higher = part.max > state.max;
  const float less = exp_body(higher ? state.max - part.max : part.max - state.max);  // for the one with the lower max
  const float a = higher ? less : 1.f, b = higher ? 1.f : less;
  if (higher) state.max = part.max;
  state.sum = fma(state.sum, a, part.sum * b);
  float* values = state.values;
  const float* more = part.values;
  for (int i = 0; i < width; i++) values[i] = fma(values[i], a, more[i] * b);
}
// n queries, query(i) each, against one block of keys. Their states get the result of the first block, and later ones
// are merged. Only queries that may see a key of the block take part.
template <class GetQuery>
void attend_queries(const Kernels& k, const KvBlock& kv, bool f32, int n, bool first_block, const GetQuery& query) {
  alignas(64) float values[kQueries][kMaxHeadDim];
  AttentionState part[kQueries], *state[kQueries], *out[kQueries];
  const float* q[kQueries];
  int keys[kQueries], ready = 0;
  for (int i = 0; i < n; i++) {
    const Query next = query(i);
    if (next.keys <= 0) continue;  // those that see nothing of the block come first
    q[ready] = next.q;
    keys[ready] = next.keys;
    state[ready] = next.state;
    part[ready].values = values[ready];
    out[ready] = first_block ? next.state : &part[ready];
    if (++ready < kQueries && i + 1 < n) continue;
    (f32 ? k.attend_f32 : k.attend_q8)(kv, ready, q, keys, out);
    for (int j = 0; j < ready && !first_block; j++) k.merge(*state[j], part[j], kv.width);
    ready = 0;
  }
}
// Panels of an f32 matrix times n tokens: a panel is (cols, 16 rows), its product a combination of its columns.
template <int W> POCKET_BODY void matmul_f32_body(const PanelProduct& m) {
  const size_t bytes = size_t(m.x.cols) * sizeof(float[kPanelRows]);
  for (int p = m.first; p < m.first + m.count; p++) {
    const float* data = reinterpret_cast<const float*>(m.w.data + size_t(p) * bytes);
    const LaneBlocks<float> panel = {data, m.x.cols, kPanelRows, 0, ptrdiff_t(bytes)};
    for (int t = 0; t < m.n;) {
      const int together = m.n - t >= 4 ? 4 : 1;
      const float* in[4];
      float *out[4], *y = m.y + t * m.ldy + size_t(p) * kPanelRows, sum[4][kPanelRows];
      for (int i = 0; i < together; i++) {
        in[i] = m.x.f + size_t(t + i) * m.x.cols;
        out[i] = m.add ? sum[i] : y + i * m.ldy;
      }
      together == 4 ? combine_blocks<W, float, 4, 1>(panel, 0, in, out)
                    : combine_blocks<W, float, 1, 1>(panel, 0, in, out);
      for (int i = 0; m.add && i < together; i++)
        for (int r = 0; r < kPanelRows; r++) y[i * m.ldy + r] += sum[i][r];
      t += together;
    }
  }
}
// ---- Rotary angles, in our own double precision ----
// Built on + - * / and fma, which are exact to the last bit everywhere; sin, cos, exp and log of C libraries are not.
namespace exact {
inline double log(double x) {  // ln x = e ln 2 + 2 artanh((m - 1) / (m + 1)), m in [0.7, 1.4]
  int e;
  double m = std::frexp(x, &e);
  const bool low = m < 0.70710678118654752;
  if (low) m *= 2;
  const double z = (m - 1) / (m + 1), z2 = z * z;
  double sum = 0;
  for (int k = 23; k >= 1; k -= 2) sum = std::fma(sum, z2, 1.0 / k);
  return std::fma(double(e - low), 0.69314718055994531, 2 * z * sum);
}
inline double exp(double x) {  // 2^n times the Taylor series of e^r, |r| <= 0.35
  const double n = std::floor(std::fma(x, 1.4426950408889634, 0.5));
  const double r = std::fma(n, -2.3190468138462996e-17, std::fma(n, -0.69314718055994531, x));
  double sum = 1;
  for (int k = 16; k >= 1; k--) sum = std::fma(sum, r / k, 1.0);
  return std::ldexp(sum, int(n));
}
// Sine and cosine by their Taylor series after a reduction to |r| <= pi / 4.
inline void sincos(double x, double& s, double& c) {
  const double n = std::floor(std::fma(x, 0.63661977236758134, 0.5));
  const double r = std::fma(n, -6.1232339957367660e-17, std::fma(n, -1.5707963267948966, x)), r2 = r * r;
  double sin = 1, cos = 1;
  for (int k = 9; k >= 1; k--) {
    sin = std::fma(sin, -r2 / (2 * k * (2 * k + 1)), 1.0);
    cos = std::fma(cos, -r2 / ((2 * k - 1) * (2 * k)), 1.0);
  }
  sin *= r;
  const int quadrant = int(int64_t(n) & 3);
  s = quadrant == 0 ? sin : quadrant == 1 ? cos : quadrant == 2 ? -sin : -cos;
  c = quadrant == 0 ? cos : quadrant == 1 ? -sin : quadrant == 2 ? -cos : sin;
}
}  // namespace exact
// Scaling: "linear" divides all positions by the factor; "llama3" does so for the pairs that rotate slowly over the
// original context and leaves the fast ones unchanged, with a smooth transition between them.
inline double rope_frequency(const Config& c, int i) {
  const double f = exact::exp(-2.0 * i / c.head_dim * exact::log(c.rope_theta));
  if (c.rope_scaling == RopeScaling::none) return f;
  if (c.rope_scaling == RopeScaling::linear) return f / c.rope_factor;
  const double turns = c.rope_original_len * f / 6.2831853071795865;  // over the original context
  const double low = c.rope_low_freq, high = c.rope_high_freq;
  if (turns < low) return f / c.rope_factor;
  if (turns > high) return f;
  const double smooth = (turns - low) / (high - low);
  return f * std::fma(smooth, 1.0 - 1.0 / c.rope_factor, 1.0 / c.rope_factor);
}

// ==== 10. SIMD: one group per instruction set, and the table that picks one ==========================================
// The float blocks of section 9 for one instruction set, which adds nothing but a target attribute.
#define POCKET_FLOAT_BLOCKS(NAME, TARGET)                                                  \
  struct NAME {                                                                            \
    template <auto Body, class... A> TARGET static void call(A... args) { Body(args...); } \
  };
POCKET_FLOAT_BLOCKS(FloatScalar, )
#if defined(__x86_64__)
#define POCKET_AVX2 __attribute__((target("avx2,fma")))
#define POCKET_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma")))
POCKET_FLOAT_BLOCKS(FloatAvx2, POCKET_AVX2)
POCKET_FLOAT_BLOCKS(FloatAvx512, POCKET_AVX512)
// The features that the CPU has and the OS supports (it must save the registers on a task switch). By cpuid, since
// __builtin_cpu_supports is always false in programs that zig compiles.
struct X86Features {
  bool intel = false, avx2 = false, avx512vnni = false, avxvnni = false, amx = false;
  X86Features() {
    unsigned a = 0, b = 0, c = 0, d = 0, saved = 0, high = 0;
    intel = __get_cpuid(0, &a, &b, &c, &d) && b == signature_INTEL_ebx;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & c >> 12 & 1)) return;  // xgetbv, fma
    asm("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    avx2 = (saved & 6) == 6 && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b >> 5 & 1);
    avx512vnni = avx2 && (saved & 0xe6) == 0xe6 && (b >> 16 & b >> 17 & b >> 30 & b >> 31 & c >> 11 & 1);
#if defined(__linux__)
    // Linux requires a process to request AMX's tiles, since they make the saved state of a thread 8 KB larger.
    constexpr int kArchPrctl = 158, kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(2)
    amx = avx512vnni && (d >> 24 & d >> 25 & 1) && syscall(kArchPrctl, kRequestPermission, kTileData) == 0;
#endif
    avxvnni = avx2 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
  }
};
#endif  // __x86_64__
// Prefetches for a kernel that reads long streams. One stream: the line six pages ahead to the L2 cache, since the
// hardware prefetcher stops at page boundaries, and the line 1 KB ahead to the L1 cache. Several: the line 2 KB ahead.
template <int streams = 1> POCKET_BODY void prefetch_line(const uint8_t* p) {
  if (streams == 1) __builtin_prefetch(p + 6 * 4096, 0, 2);
  __builtin_prefetch(p + (streams == 1 ? 1024 : 2048), 0, 3);
}
// A kernel set: the float blocks of section 9, W floats a register, and the integer kernels, if it has some.
template <class Blocks, int W>
Kernels kernel_set(const char* name, bool (*supported)(), decltype(Kernels::unpack_q4) unpack = nullptr,
                   decltype(Kernels::gemv) gemv = nullptr, decltype(Kernels::dot) dot = nullptr,
                   int few_tokens = kFewTokens, bool gemv_q8 = false) {
  Kernels k = {};
  k.name = name;
  k.supported = supported;
  k.unpack_q4 = unpack;
  k.gemv = gemv;
  k.dot = dot;
  k.few_tokens = few_tokens;
  k.gemv_q8 = gemv_q8;
  k.rmsnorm = Blocks::template call<rmsnorm_body>;
  k.quantize = Blocks::template call<quantize_body>;
  k.rope = Blocks::template call<rope_body>;
  k.swiglu = Blocks::template call<swiglu_body>;
  k.exp = Blocks::template call<exp_vector_body>;
  k.attend_q8 = Blocks::template call<attend_body<W, int8_t>>;
  k.attend_f32 = Blocks::template call<attend_body<W, float>>;
  k.merge = Blocks::template call<merge_body>;
  k.matmul_f32 = Blocks::template call<matmul_f32_body<W>>;
  return k;
}
#if defined(__x86_64__)
// Whether the product of one token reads four streams of panels at a time, each through a quarter of them. Measured on
// an Intel CPU: 95% of the speed of plain reading, one stream 78%. On an AMD CPU one stream is faster.
__attribute__((noinline)) inline bool reads_four_streams() {  // its cpuid would slow down the callers
  static const bool intel = X86Features().intel;
  return intel;
}
// ---- AVX2: 8 rows per register, two registers per panel. vpmaddubsw multiplies unsigned by signed bytes and adds
// pairs into 16 bits, where 127 * 127 * 2 still fits: codebook values are shifted to 0 ... 127, and each sum starts at
// -64 times the group's sum of xq to compensate. q8 weights use all 8 bits: their sign moves to the activation instead.
namespace avx2 {
// Rows 8 half ... 8 half + 7: the scales of one group, from their 4 bits. scales: byte r holds row r's two groups.
POCKET_AVX2 inline __m256 scales_q4(const uint8_t* scales, int half, int odd) {
  __m256i s = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(scales + 8 * half)));
  if (odd) s = _mm256_srli_epi32(s, 4);
  const __m256 size = _mm256_permutevar8x32_ps(_mm256_setr_ps(5, 6, 7, 8, 9, 10, 11, 12), s);  // looks at 3 bits
  return _mm256_xor_ps(size, _mm256_and_ps(_mm256_castsi256_ps(_mm256_slli_epi32(s, 28)), _mm256_set1_ps(-0.f)));
}
// sum + dot products of four unsigned and four signed bytes: the step in which AVX2 and AVX-VNNI differ.
struct Maddubs {
  POCKET_AVX2 static __m256i add(__m256i sum, __m256i unsigned_bytes, __m256i signed_bytes) {
    const __m256i pairs = _mm256_maddubs_epi16(unsigned_bytes, signed_bytes);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
};
// P panels, `step` apart, times T tokens, a group of one panel at a time: 16 registers hold its sums and all results.
template <class Dot, int P, int T>
POCKET_AVX2 POCKET_BODY void gemv_q4_panels(const Tensor& w, int first, int step, const Activations& x, float* y,
                                            size_t ldy) {
  const __m256i table = _mm256_broadcastsi128_si256(_mm_add_epi8(load<__m128i>(w.codebook), _mm_set1_epi8(64)));
  const __m256i low = _mm256_set1_epi8(15);
  const size_t panel = panel_bytes(Type::q4, w.cols), stride = panel * step, scales_at = code_bytes(Type::q4, w.cols);
  const uint8_t* panels = w.data + first * panel;
  Activations tokens[T];
  POCKET_FOR (t, T) tokens[t] = x.token(t);
  __m256 acc[P][T][2] = {};
  for (int g = 0; g < x.cols / kGroup; g++)
    POCKET_FOR (p, P) {
      __m256i sum[T][2];
      POCKET_FOR (t, T) sum[t][0] = sum[t][1] = _mm256_set1_epi32(-64 * tokens[t].sum[g]);
      POCKET_FOR (i, 4) {
        const int v = 4 * g + i;
        const uint8_t* codes = panels + p * stride + size_t(v) * 64;
        prefetch_line<P>(codes);
        POCKET_FOR (half, 2) {
          const __m256i pair = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 32 * half));
          const __m256i w0 = _mm256_shuffle_epi8(table, _mm256_and_si256(pair, low)),
                        w1 = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(pair, 4), low));
          POCKET_FOR (t, T) {
            const int8_t* q = tokens[t].q + 8 * v;
            __m256i& s = sum[t][half];
            s = Dot::add(s, w0, _mm256_set1_epi32(load<int32_t>(q)));
            s = Dot::add(s, w1, _mm256_set1_epi32(load<int32_t>(q + 4)));
          }
        }
      }
      const uint8_t* scales = panels + p * stride + scales_at + g / 2 * 16;
      if (P == 1) prefetch_line(scales + 48);  // and the row scales after them
      POCKET_FOR (half, 2) {
        const __m256 m = scales_q4(scales, half, g & 1);
        POCKET_FOR (t, T) {
          const __m256 scale = _mm256_mul_ps(m, _mm256_set1_ps(tokens[t].scale[g]));
          acc[p][t][half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[t][half]), scale, acc[p][t][half]);
        }
      }
    }
  POCKET_FOR (p, P) {
    const float* rs = reinterpret_cast<const float*>(panels + p * stride + panel) - kPanelRows;
    float* out = y + (first + p * step) * kPanelRows;
    POCKET_FOR (half, 2) {
      const __m256 row_scales = _mm256_loadu_ps(rs + 8 * half);
      POCKET_FOR (t, T) _mm256_storeu_ps(out + t * ldy + 8 * half, _mm256_mul_ps(acc[p][t][half], row_scales));
    }
  }
}
template <class Dot> POCKET_AVX2 POCKET_BODY void gemv_q4_any(const PanelProduct& m) {
  const int quarter = m.n == 1 && reads_four_streams() ? m.count / 4 : 0;
  for (int p = m.first; p < m.first + quarter; p++) gemv_q4_panels<Dot, 4, 1>(m.w, p, quarter, m.x, m.y, m.ldy);
  for (int p = m.first + 4 * quarter; p < m.first + m.count; p++) {
    int t = 0;
    for (; t + 4 <= m.n; t += 4) gemv_q4_panels<Dot, 1, 4>(m.w, p, 1, m.x.token(t), m.y + t * m.ldy, m.ldy);
    if (m.n - t == 3) gemv_q4_panels<Dot, 1, 3>(m.w, p, 1, m.x.token(t), m.y + t * m.ldy, m.ldy);
    if (m.n - t == 2) gemv_q4_panels<Dot, 1, 2>(m.w, p, 1, m.x.token(t), m.y + t * m.ldy, m.ldy);
    if (m.n - t == 1) gemv_q4_panels<Dot, 1, 1>(m.w, p, 1, m.x.token(t), m.y + t * m.ldy, m.ldy);
  }
}
// One q8 panel's codes against T tokens: adds the groups to acc (T, 16).
template <class Dot, int T>
POCKET_AVX2 POCKET_BODY void dot_tile(const uint8_t* codes, const uint16_t* scales, int cols, const Activations& x,
                                      float* acc) {
  POCKET_FOR (half, 2)
    for (int g = 0; g < cols / kGroup; g++) {
      __m256i sum[T] = {};
      for (int v = 8 * g; v < 8 * g + 8; v++) {
        const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + size_t(v) * 64 + 32 * half));
        POCKET_FOR (t, T) {
          const __m256i xq = _mm256_set1_epi32(load<int32_t>(x.token(t).q + 4 * v));
          sum[t] = Dot::add(sum[t], _mm256_abs_epi8(w), _mm256_sign_epi8(xq, w));
        }
      }
      const __m128i bf16 = load<__m128i>(scales + 16 * g + 8 * half);
      const __m256 m = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bf16), 16));
      POCKET_FOR (t, T) {
        float* a = acc + 16 * t + 8 * half;
        const __m256 scale = _mm256_mul_ps(m, _mm256_set1_ps(x.token(t).scale[g]));
        _mm256_storeu_ps(a, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[t]), scale, _mm256_loadu_ps(a)));
      }
    }
}
template <class Dot> POCKET_AVX2 POCKET_BODY void dot_any(const BlockProduct& p) {
  POCKET_FOR (i, 2) {
    const uint16_t* scales = static_cast<const uint16_t*>(p.scales[i]);
    int t = 0;
    for (; t + 4 <= p.n; t += 4) dot_tile<Dot, 4>(p.codes[i], scales, p.cols, p.x.token(t), p.acc[i] + 16 * t);
    for (; t < p.n; t++) dot_tile<Dot, 1>(p.codes[i], scales, p.cols, p.x.token(t), p.acc[i] + 16 * t);
  }
}
POCKET_AVX2 inline void gemv_q4(const PanelProduct& m) { gemv_q4_any<Maddubs>(m); }
POCKET_AVX2 inline void dot(const BlockProduct& p) { dot_any<Maddubs>(p); }
inline Kernels kernels() {
  return kernel_set<FloatAvx2, 8>(
      "avx2", [] { return X86Features().avx2; }, nullptr, gemv_q4, dot, kChunk);
}
}  // namespace avx2
// ---- AVX-VNNI (recent CPUs without AVX-512): the AVX2 kernels with one instruction, vpdpbusd, in place of three.
#define POCKET_AVXVNNI __attribute__((target("avxvnni,avx2,fma")))
namespace avxvnni {
struct Dpbusd {
  POCKET_AVXVNNI static __m256i add(__m256i sum, __m256i unsigned_bytes, __m256i signed_bytes) {
    return _mm256_dpbusd_avx_epi32(sum, unsigned_bytes, signed_bytes);
  }
};
POCKET_AVXVNNI inline void gemv_q4(const PanelProduct& m) { avx2::gemv_q4_any<Dpbusd>(m); }
POCKET_AVXVNNI inline void dot(const BlockProduct& p) { avx2::dot_any<Dpbusd>(p); }
inline Kernels kernels() {
  return kernel_set<FloatAvx2, 8>(
      "avxvnni", [] { return X86Features().avxvnni; }, nullptr, gemv_q4, dot, kChunk);
}
}  // namespace avxvnni
// ---- AVX-512 with VNNI: 16 rows per register. vpdpbusd multiplies unsigned by signed bytes and adds four products to
// 32 bits, exactly. Weights are shifted to unsigned (+64 for q4's codebook, +128 for q8), and each sum starts at -64 or
// -128 times the group's sum of xq to compensate.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // a false warning about the intrinsics (GCC bug 105593)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
namespace avx512 {
POCKET_AVX512 inline __m512 scales_q4(const uint8_t* scales, int odd) {
  alignas(64) static constexpr float kTable[16] = {5, 6, 7, 8, 9, 10, 11, 12, -5, -6, -7, -8, -9, -10, -11, -12};
  const __m512i s = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)));
  return _mm512_permutexvar_ps(odd ? _mm512_srli_epi32(s, 4) : s, _mm512_load_ps(kTable));  // looks at 4 bits
}
// The codebook's values plus `bias`.
template <int bias>
POCKET_AVX512 inline void unpack_q4(const uint8_t* codes, const uint8_t* scales, const int8_t values[16], int cols,
                                    uint8_t* out, float* out_scales) {
  const __m128i biased = _mm_add_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)), _mm_set1_epi8(bias));
  const __m512i table = _mm512_broadcast_i32x4(biased), low = _mm512_set1_epi8(15);
  for (int v = 0; v < cols / 8; v++, codes += 64, out += 128) {
    prefetch_line(codes);
    const __m512i pair = _mm512_loadu_si512(codes);
    _mm512_storeu_si512(out, _mm512_shuffle_epi8(table, _mm512_and_si512(pair, low)));
    _mm512_storeu_si512(out + 64, _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(pair, 4), low)));
  }
  for (int g = 0; g < cols / kGroup; g++) _mm512_storeu_ps(out_scales + 16 * g, scales_q4(scales + g / 2 * 16, g & 1));
}
// The scales of 16 rows and one group: floats from unpack_q4, or the bfloat16 of q8.
template <Type type> POCKET_AVX512 inline __m512 scales_of(const void* scales, int g) {
  if (type == Type::q4) return _mm512_loadu_ps(static_cast<const float*>(scales) + 16 * g);
  const __m256i raw = _mm256_loadu_si256(static_cast<const __m256i*>(scales) + g);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}
struct Dpbusd {
  POCKET_AVX512 static __m256i add(__m256i sum, __m256i unsigned_bytes, __m256i signed_bytes) {
    return _mm256_dpbusd_epi32(sum, unsigned_bytes, signed_bytes);
  }
};
// P panels, `step` panels from one to the next, times T tokens.
template <Type type, int P, int T> POCKET_AVX512 inline void gemv_panels(const PanelProduct& m, int first, int step) {
  constexpr int kVectors = type == Type::q4 ? 4 : 8, kBias = type == Type::q4 ? 64 : 128;  // vectors of a group
  const size_t panel = panel_bytes(type, m.w.cols), stride = panel * step, scales_at = code_bytes(type, m.w.cols);
  const uint8_t* panels = m.w.data + first * panel;
  const __m512i table = _mm512_broadcast_i32x4(_mm_add_epi8(load<__m128i>(m.w.codebook), _mm_set1_epi8(64)));
  const __m512i low = _mm512_set1_epi8(15), sign = _mm512_set1_epi8(-128);
  __m512 acc[P][T] = {};
  for (int g = 0; g < m.x.cols / kGroup; g++) {
    __m512i sum[P][T];
    POCKET_FOR (i, P * T) sum[i / T][i % T] = _mm512_set1_epi32(-kBias * m.x.token(i % T).sum[g]);
    for (int v = kVectors * g; v < kVectors * (g + 1); v++)
      POCKET_FOR (p, P) {
        const uint8_t* codes = panels + p * stride + size_t(v) * 64;
        prefetch_line<P>(codes);
        const __m512i raw = _mm512_loadu_si512(codes);
        const auto add = [&](__m512i w, int k) POCKET_AVX512 {  // columns k ... k + 3
          POCKET_FOR (t, T)
            sum[p][t] = _mm512_dpbusd_epi32(sum[p][t], w, _mm512_set1_epi32(load<int32_t>(m.x.token(t).q + k)));
        };
        if (type == Type::q4) {
          add(_mm512_shuffle_epi8(table, _mm512_and_si512(raw, low)), 8 * v);
          add(_mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(raw, 4), low)), 8 * v + 4);
        } else {
          add(_mm512_xor_si512(raw, sign), 4 * v);
        }
      }
    POCKET_FOR (p, P) {
      const uint8_t* scales = panels + p * stride + scales_at;
      const __m512 rows = type == Type::q4 ? scales_q4(scales + g / 2 * 16, g & 1) : scales_of<type>(scales, g);
      POCKET_FOR (t, T)
        acc[p][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[p][t]),
                                    _mm512_mul_ps(rows, _mm512_set1_ps(m.x.token(t).scale[g])), acc[p][t]);
    }
  }
  POCKET_FOR (p, P) {
    const uint8_t* end = panels + p * stride + panel;
    const __m512 row_scales = type == Type::q4 ? _mm512_loadu_ps(end - kPanelRows * sizeof(float)) : _mm512_set1_ps(1);
    float* y = m.y + (first + p * step) * kPanelRows;
    POCKET_FOR (t, T) _mm512_storeu_ps(y + t * m.ldy, _mm512_mul_ps(acc[p][t], row_scales));
  }
}
// The first T tokens, or all if there are fewer.
template <Type type, int T> POCKET_AVX512 inline void gemv_tokens(const PanelProduct& m) {
  if (T > 1 && m.n < T) return gemv_tokens<type, std::max(T - 1, 1)>(m);
  const int quarter = T == 1 && reads_four_streams() ? m.count / 4 : 0, rest = m.first + 4 * quarter;
  for (int p = m.first; p < m.first + quarter; p++) gemv_panels<type, 4, 1>(m, p, quarter);
  // For a single stream of q4, half a register at a time was measured faster than whole ones.
  if (T == 1 && type == Type::q4)
    return avx2::gemv_q4_any<Dpbusd>({m.w, rest, m.count - 4 * quarter, m.x, m.n, m.y, m.ldy});
  for (int p = rest; p < m.first + m.count; p++) gemv_panels<type, 1, T>(m, p, 1);
}
POCKET_AVX512 inline void gemv(const PanelProduct& m) {
  constexpr int T = 8;
  if (m.n <= T) return m.w.type == Type::q4 ? gemv_tokens<Type::q4, T>(m) : gemv_tokens<Type::q8, T>(m);
  for (int p = m.first; p < m.first + m.count; p++)  // a panel stays in the cache for the next T tokens
    for (int t = 0; t < m.n; t += T) gemv({m.w, p, 1, m.x.token(t), std::min(T, m.n - t), m.y + t * m.ldy, m.ldy});
}
// Two panels' codes against T tokens: 2 T sums in registers, each weight loaded once for T tokens.
template <Type type, int T>
POCKET_AVX512 inline void dot_tile(const BlockProduct& block, const Activations& x, float* acc0, float* acc1) {
  constexpr int kBias = type == Type::q4 ? 64 : 128;
  const uint8_t* const codes[2] = {block.codes[0], block.codes[1]};
  const void* const scales[2] = {block.scales[0], block.scales[1]};
  __m512 a[2][T];
  POCKET_FOR (t, T) a[0][t] = _mm512_loadu_ps(acc0 + 16 * t);
  POCKET_FOR (t, T) a[1][t] = _mm512_loadu_ps(acc1 + 16 * t);
  for (int g = 0; g < block.cols / kGroup; g++) {
    __m512i sum[2][T];
    POCKET_FOR (t, T) sum[0][t] = sum[1][t] = _mm512_set1_epi32(-kBias * x.token(t).sum[g]);
    POCKET_FOR (j, 8) {
      const int v = 8 * g + j;
      __m512i w[2];
      POCKET_FOR (i, 2) {
        w[i] = _mm512_loadu_si512(codes[i] + size_t(v) * 64);
        if (type == Type::q8) w[i] = _mm512_xor_si512(w[i], _mm512_set1_epi8(-128));
      }
      POCKET_FOR (t, T) {
        const __m512i xq = _mm512_set1_epi32(load<int32_t>(x.token(t).q + 4 * v));
        POCKET_FOR (i, 2) sum[i][t] = _mm512_dpbusd_epi32(sum[i][t], w[i], xq);
      }
    }
    POCKET_FOR (i, 2) {
      const __m512 m = scales_of<type>(scales[i], g);
      POCKET_FOR (t, T) {
        const __m512 scale = _mm512_mul_ps(m, _mm512_set1_ps(x.token(t).scale[g]));
        a[i][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[i][t]), scale, a[i][t]);
      }
    }
  }
  POCKET_FOR (t, T) _mm512_storeu_ps(acc0 + 16 * t, a[0][t]);
  POCKET_FOR (t, T) _mm512_storeu_ps(acc1 + 16 * t, a[1][t]);
}
template <Type type> POCKET_AVX512 inline void dot_tokens(const BlockProduct& p) {
  int t = 0;
  for (; t + 6 <= p.n; t += 6) dot_tile<type, 6>(p, p.x.token(t), p.acc[0] + 16 * t, p.acc[1] + 16 * t);
  for (; t + 2 <= p.n; t += 2) dot_tile<type, 2>(p, p.x.token(t), p.acc[0] + 16 * t, p.acc[1] + 16 * t);
  for (; t < p.n; t++) dot_tile<type, 1>(p, p.x.token(t), p.acc[0] + 16 * t, p.acc[1] + 16 * t);
}
POCKET_AVX512 inline void dot(const BlockProduct& p) {
  p.type == Type::q4 ? dot_tokens<Type::q4>(p) : dot_tokens<Type::q8>(p);
}
inline Kernels kernels() {
  const auto supported = [] { return X86Features().avx512vnni; };
  return kernel_set<FloatAvx512, 16>("avx512vnni", supported, unpack_q4<64>, gemv, dot, 24, true);
}
}  // namespace avx512
// ---- AMX (Sapphire Rapids and later), for prompts. A tile is a small matrix in a register, and one instruction
// multiplies two of them: (16 tokens, 32 columns) by (32 columns, 16 rows), signed bytes, summed exactly. A group of a
// panel in memory is such a second tile. A single token cannot fill a tile: generating uses the kernels above.
namespace amx {
// The bits of kRound, 16 rows of 16: plus an integer below 2^22, such as a group's sum, they are the float kRound + it.
static_assert(kGroup * 128 * 127 < 1 << 22);
alignas(64) inline constexpr auto kStart = [] {
  std::array<uint32_t, 16 * kPanelRows> bits = {};
  for (uint32_t& b : bits) b = 0x4b400000;
  return bits;
}();
struct Tiles {
  // Tiles 0 to 3 hold sums (16 tokens, 16 int32), 4 and 5 activations (16 tokens, 32 bytes), 6 and 7 weights (8, 64
  // bytes), of two groups each. There are two sets of sums, so that two products can be in flight.
  static void configure() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 32, 32, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, kGroup / 4, kGroup / 4};
    } config;
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  // Loads the weights of 64 columns of 16 rows.
  static void weights(const uint8_t* w) {
    asm volatile("tileloadd (%0,%1,1), %%tmm6\n tileloadd 512(%0,%1,1), %%tmm7" ::"r"(w), "r"(size_t(64)) : "memory");
  }
  // Starts the products with x (16 tokens, 64 columns): the sums of the first group at 0, of the second at kRound.
  template <int odd> static void multiply(const uint8_t* x) {
    asm volatile(
        "tilezero %%tmm%c3\n tileloadd (%0,%1,1), %%tmm4\n tdpbssd %%tmm6, %%tmm4, %%tmm%c3\n"
        "tileloadd (%2,%1,1), %%tmm%c4\n tileloadd 32(%0,%1,1), %%tmm5\n tdpbssd %%tmm7, %%tmm5, %%tmm%c4" ::"r"(x),
        "r"(size_t(64)), "r"(kStart.data()), "i"(2 * odd), "i"(2 * odd + 1)
        : "memory");
  }
  // Their sums: (2 groups, 16 tokens, 16 rows).
  template <int odd> static void store(int32_t* sums) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)\n tilestored %%tmm%c3, 1024(%0,%1,1)" ::"r"(sums), "r"(size_t(64)),
                 "i"(2 * odd), "i"(2 * odd + 1)
                 : "memory");
  }
  static void release() { asm volatile("tilerelease"); }
};
// Adds two groups, in order, to acc (16 tokens, 16 rows). m: scales of the rows; scale0, scale1: of the tokens. While
// AMX is active, one of the two units for 512-bit floats can only add. To keep it busy, the sums of one group are
// converted to floats, and those of the other become floats by a subtraction.
POCKET_AVX512 POCKET_BODY void add_groups(const int32_t* sums, const __m512 m[2], const float* scale0,
                                          const float* scale1, float* acc) {
  POCKET_FOR (t, 16) {
    __m512 a = _mm512_load_ps(acc + 16 * t);
    const __m512 first = _mm512_cvtepi32_ps(_mm512_load_si512(sums + 16 * t));
    a = _mm512_fmadd_ps(first, _mm512_mul_ps(m[0], _mm512_set1_ps(scale0[t])), a);
    const __m512 raised = _mm512_castsi512_ps(_mm512_load_si512(sums + 256 + 16 * t));
    const __m512 second = _mm512_sub_ps(raised, _mm512_set1_ps(kRound));
    _mm512_store_ps(acc + 16 * t, _mm512_fmadd_ps(second, _mm512_mul_ps(m[1], _mm512_set1_ps(scale1[t])), a));
  }
}
// The weights of 64 columns of a panel as tiles, with their scales; q8 weights are used in place.
template <Type type> struct Block {
  alignas(64) uint8_t unpacked[type == Type::q4 ? 64 * kPanelRows : 64];
  alignas(64) float scales[2 * kPanelRows];
  const uint8_t* codes;
  POCKET_AVX512 void read(const Tensor& w, const uint8_t* panel, int b) {
    codes = panel + b * code_bytes(type, 64);
    const uint8_t* packed_scales = panel + code_bytes(type, w.cols) + b * (type == Type::q4 ? 16 : 64);
    if (type == Type::q4) {
      avx512::unpack_q4<0>(codes, packed_scales, w.codebook, 64, unpacked, scales);
      codes = unpacked;
    } else {
      POCKET_FOR (i, 16) prefetch_line(codes + 64 * i);
      POCKET_FOR (g, 2) _mm512_store_ps(scales + 16 * g, avx512::scales_of<type>(packed_scales, g));
    }
  }
};
// One panel times n tokens, added to acc (n padded to 16, 16). While a product is in flight, the previous one is added
// and weights are unpacked two blocks before a tile loads them, when their stores are complete.
template <class T, Type type>
POCKET_AVX512 inline void multiply_panel(const Tensor& w, const uint8_t* panel, const Activations& x, int n,
                                         float* acc) {
  const int tiles = round_up(n, 16) / 16, blocks = x.cols / 64;
  const size_t block_bytes = packed_bytes(n, 64);
  Block<type> block[3];
  alignas(64) int32_t sums[2][2 * 16 * kPanelRows];
  int odd = 0;
  block[0].read(w, panel, 0);
  T::weights(block[0].codes);
  T::template multiply<0>(x.packed);
  for (int b = 1; b < std::min(3, blocks); b++) block[b].read(w, panel, b);
  for (int b = 0; b < blocks; b++) {
    const uint8_t* q = x.packed + b * block_bytes;
    const float* scale0 = reinterpret_cast<const float*>(q + size_t(tiles) * 16 * 64);
    const float* scale1 = scale0 + 16 * tiles;
    const __m512 m[2] = {_mm512_load_ps(block[b % 3].scales), _mm512_load_ps(block[b % 3].scales + kPanelRows)};
    float* a = acc;
    for (int t = 0; t < tiles; t++, odd ^= 1, scale0 += 16, scale1 += 16, a += 16 * kPanelRows) {
      const uint8_t* next = t + 1 < tiles ? q + (t + 1) * 16 * 64 : q + block_bytes;
      if (t + 1 == tiles && b + 1 < blocks) T::weights(block[(b + 1) % 3].codes);
      if (t + 1 < tiles || b + 1 < blocks) odd ? T::template multiply<0>(next) : T::template multiply<1>(next);
      int32_t* s = sums[odd];
      odd ? T::template store<1>(s) : T::template store<0>(s);
      asm("" : "+r"(s), "+r"(scale0), "+r"(scale1), "+r"(a));  // one register each: addresses that are sums cost more
      add_groups(s, m, scale0, scale1, a);
    }
    if (b + 3 < blocks) block[b % 3].read(w, panel, b + 3);
  }
}
template <class T> POCKET_AVX512 inline void matmul_packed(const PanelProduct& m) {
  alignas(64) float acc[kChunk * kPanelRows];
  const size_t bytes = panel_bytes(m.w.type, m.w.cols);
  T::configure();
  for (int p = m.first; p < m.first + m.count; p++) {
    const uint8_t* panel = m.w.data + p * bytes;
    const bool q4 = m.w.type == Type::q4;
    for (int t = 0; t < round_up(m.n, 16); t++) _mm512_store_ps(acc + kPanelRows * t, _mm512_setzero_ps());
    q4 ? multiply_panel<T, Type::q4>(m.w, panel, m.x, m.n, acc)
       : multiply_panel<T, Type::q8>(m.w, panel, m.x, m.n, acc);
    const __m512 row_scales = q4 ? _mm512_loadu_ps(panel + bytes - kPanelRows * sizeof(float)) : _mm512_set1_ps(1);
    for (int t = 0; t < m.n; t++) {
      const __m512 sum = _mm512_load_ps(acc + kPanelRows * t);
      _mm512_storeu_ps(m.y + t * m.ldy + size_t(p) * kPanelRows, _mm512_mul_ps(sum, row_scales));
    }
  }
  T::release();
}
inline Kernels kernels() {
  Kernels k = avx512::kernels();
  k.name = "amx";
  k.supported = [] { return X86Features().amx; };
  k.few_tokens = kFewTokens;
  k.matmul_packed = matmul_packed<Tiles>;
  return k;
}
}  // namespace amx
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif  // __x86_64__
// ---- Registers of 16 bytes: 4 rows each, four for a panel. The loops are in vector extensions of g++ and clang; a Set
// has the operations that differ: here NEON, in export/kernels.cpp NEON with i8mm, in apps/page WebAssembly.
namespace simd128 {
typedef int8_t Bytes __attribute__((vector_size(16)));
typedef uint8_t Codes __attribute__((vector_size(16)));
typedef Vector<4>::Ints Ints;
typedef Vector<4>::Floats Floats;
template <class V> POCKET_BODY void store(void* p, const V& v) { std::memcpy(p, &v, sizeof v); }
// Four rows' weights of columns 8v ... 8v+3 and 8v+4 ... 8v+7.
template <class Set> POCKET_BODY void lookup_pairs(Bytes table, const uint8_t* codes, Bytes w[2]) {
  const Codes pair = load<Codes>(codes);
  w[0] = Set::lookup(table, pair & 15);
  w[1] = Set::lookup(table, pair >> 4);
}
// The scales of one group from their 4 bits. scales: byte r holds row r's two groups.
template <class Set> POCKET_BODY void scales_q4(const uint8_t* scales, int odd, Floats m[4]) {
  static constexpr int8_t kTable[16] = {5, 6, 7, 8, 9, 10, 11, 12, -5, -6, -7, -8, -9, -10, -11, -12};
  Set::to_floats(Set::lookup(load<Bytes>(kTable), load<Codes>(scales) >> (odd ? 4 : 0) & 15), m);
}
template <class Set> POCKET_BODY Floats add_group(Floats acc, Ints sum, Floats m, float xs) {
  return Set::fma(__builtin_convertvector(sum, Floats), m * xs, acc);
}
// One panel times T tokens: four rows and 16 columns at a time.
template <class Set, int T>
POCKET_BODY void gemv_q4_panel(const uint8_t* panel, const Tensor& w, const Activations& x, float* y, size_t ldy) {
  const Bytes table = load<Bytes>(w.codebook);
  const uint8_t* scales = panel + code_bytes(Type::q4, w.cols);
  Floats acc[4][T] = {}, m[4];
  for (int g = 0; g < x.cols / kGroup; g++, panel += 256) {
    POCKET_FOR (i, 4) prefetch_line(panel + 64 * i);
    prefetch_line(scales + g / 2 * 16 + 48);  // and the row scales after them
    scales_q4<Set>(scales + g / 2 * 16, g & 1, m);
    POCKET_FOR (j, 4) {
      Ints sum[T] = {};
      POCKET_FOR (half, 2) {
        Bytes rows[4], xq[T];
        POCKET_FOR (i, 2) lookup_pairs<Set>(table, panel + 128 * half + 64 * i + 16 * j, rows + 2 * i);
        POCKET_FOR (t, T) xq[t] = load<Bytes>(x.token(t).q + g * kGroup + 16 * half);
        Set::template add_columns<T>(sum, rows, xq);
      }
      POCKET_FOR (t, T) acc[j][t] = add_group<Set>(acc[j][t], sum[t], m[j], x.token(t).scale[g]);
    }
  }
  scales += round_up(x.cols / kGroup * 8, 64);
  POCKET_FOR (j, 4)
    POCKET_FOR (t, T) store(y + t * ldy + 4 * j, acc[j][t] * load<Floats>(scales + 16 * j));
}
template <class Set> POCKET_BODY void gemv_q4(const PanelProduct& m) {
  for (int p = m.first; p < m.first + m.count; p++) {
    const uint8_t* panel = m.w.data + p * panel_bytes(Type::q4, m.w.cols);
    float* y = m.y + p * kPanelRows;
    int t = 0;
    for (; t + 4 <= m.n; t += 4) gemv_q4_panel<Set, 4>(panel, m.w, m.x.token(t), y + t * m.ldy, m.ldy);
    for (; t < m.n; t++) gemv_q4_panel<Set, 1>(panel, m.w, m.x.token(t), y + t * m.ldy, m.ldy);
  }
}
// Multiplies a group of one q8 panel with T tokens; sum[j][t] is that of rows 4j ... 4j + 3.
template <class Set> struct ByColumns : Set {
  template <Type, int T>
  POCKET_BODY static void multiply(const int8_t* codes, const Activations& x, int k, Ints (*sum)[T]) {
    for (int end = k + kGroup; k < end; k += 16, codes += 256) {
      Bytes xq[T];
      POCKET_FOR (t, T) xq[t] = load<Bytes>(x.token(t).q + k);
      POCKET_FOR (j, 4) {
        Bytes w[4];
        POCKET_FOR (i, 4) w[i] = load<Bytes>(codes + 64 * i + 16 * j);
        Set::template add_columns<T>(sum[j], w, xq);
      }
    }
  }
};
// One panel's codes against T tokens: adds the groups to acc (T, 16).
template <class Set, Type type, int T>
POCKET_BODY void dot_tile(const int8_t* codes, const void* scales, int cols, const Activations& x, float* acc) {
  for (int g = 0; g < cols / kGroup; g++) {
    Ints sum[4][T] = {};
    Set::template multiply<type, T>(codes + 512 * g, x, g * kGroup, sum);
    POCKET_FOR (j, 4) {
      const int at = 16 * g + 4 * j;
      const Floats m = type == Type::q4 ? load<Floats>(static_cast<const float*>(scales) + at)
                                        : Set::bf16_floats(static_cast<const uint16_t*>(scales) + at);
      POCKET_FOR (t, T) {
        float* a = acc + 16 * t + 4 * j;
        store(a, add_group<Set>(load<Floats>(a), sum[j][t], m, x.token(t).scale[g]));
      }
    }
  }
}
// One panel at a time: 32 registers hold four sums and four weights for each of four tokens.
template <class Set, Type type> POCKET_BODY void dot_tokens(const BlockProduct& p) {
  for (int i = 0; i < 2; i++) {
    const int8_t* w = reinterpret_cast<const int8_t*>(p.codes[i]);
    int t = 0;
    for (; t + 4 <= p.n; t += 4) dot_tile<Set, type, 4>(w, p.scales[i], p.cols, p.x.token(t), p.acc[i] + 16 * t);
    for (; t + 2 <= p.n; t += 2) dot_tile<Set, type, 2>(w, p.scales[i], p.cols, p.x.token(t), p.acc[i] + 16 * t);
    for (; t < p.n; t++) dot_tile<Set, type, 1>(w, p.scales[i], p.cols, p.x.token(t), p.acc[i] + 16 * t);
  }
}
}  // namespace simd128
#if defined(__aarch64__)
// ---- NEON. The baseline of aarch64 has all that the float blocks need: they have no target attribute; two operations
// are intrinsics because compilers do not vectorize them.
template <> POCKET_BODY void Lanes<4>::load(const int8_t* p) {
  const int8x8_t bytes = vreinterpret_s8_s32(vdup_n_s32(pocket::load<int32_t>(p)));
  v = Floats(vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes)))));
}
template <> POCKET_BODY void Lanes<4>::add_product(float a, const Lanes& b) { v = Floats(vfmaq_n_f32(v, b.v, a)); }
namespace neon {
#if defined(__APPLE__)
inline bool has_dotprod() { return true; }
#else
inline bool has_dotprod() { return getauxval(AT_HWCAP) >> 20 & 1; }
#endif
// The dot-product instruction is optional. It is in assembler: clang before 16 has an intrinsic only if a whole file
// is compiled for it; volatile, because g++ otherwise reorders it and runs out of registers.
#if defined(__clang__)
#define POCKET_DOTPROD __attribute__((target("dotprod")))
#else
#define POCKET_DOTPROD __attribute__((target("arch=armv8.2-a+dotprod")))
#endif
struct Dotprod {
  // The bytes of a table at these places.
  POCKET_BODY static simd128::Bytes lookup(int8x16_t table, uint8x16_t at) { return vqtbl1q_s8(table, at); }
  // a * b + c, rounded once.
  POCKET_BODY static simd128::Floats fma(float32x4_t a, float32x4_t b, float32x4_t c) { return vfmaq_f32(c, a, b); }
  POCKET_BODY static void to_floats(int8x16_t bytes, simd128::Floats out[4]) {
    const int16x8_t half[2] = {vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes)};
    POCKET_FOR (i, 2) {
      out[2 * i] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(half[i])));
      out[2 * i + 1] = vcvtq_f32_s32(vmovl_high_s16(half[i]));
    }
  }
  POCKET_BODY static simd128::Floats bf16_floats(const uint16_t* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
  }
  // Four rows' sums + dot products of four signed bytes of each with the four in one lane of x.
  template <int lane> POCKET_BODY static void sdot(simd128::Ints& sum, simd128::Bytes w, simd128::Bytes x) {
    asm volatile("sdot %0.4s, %1.16b, %2.4b[%3]" : "+w"(sum) : "w"(w), "w"(x), "i"(lane));
  }
  // Four rows' sums for T tokens + 16 columns, of which w[i] holds four. x: 16 columns of each token.
  template <int T>
  POCKET_BODY static void add_columns(simd128::Ints sum[T], const simd128::Bytes w[4], const simd128::Bytes x[T]) {
    POCKET_FOR (t, T) sdot<0>(sum[t], w[0], x[t]);
    POCKET_FOR (t, T) sdot<1>(sum[t], w[1], x[t]);
    POCKET_FOR (t, T) sdot<2>(sum[t], w[2], x[t]);
    POCKET_FOR (t, T) sdot<3>(sum[t], w[3], x[t]);
  }
};
POCKET_DOTPROD inline void gemv_q4(const PanelProduct& m) { simd128::gemv_q4<Dotprod>(m); }
POCKET_DOTPROD inline void dot(const BlockProduct& p) { simd128::dot_tokens<simd128::ByColumns<Dotprod>, Type::q8>(p); }
inline Kernels kernels() {
  return kernel_set<FloatScalar, 4>("neon-dotprod", has_dotprod, nullptr, gemv_q4, dot, kChunk);
}
}  // namespace neon
#endif  // __aarch64__
// The kernel sets, best first, then one without a name.
POCKET_SHARED const Kernels* kernel_table();
#if defined(POCKET_MORE_KERNELS)  // by the program that includes this file: the best set
Kernels more_kernels();
#endif
#if !defined(POCKET_SEPARATE_KERNELS)
const Kernels* kernel_table() {
  static const Kernels table[] = {
#if defined(POCKET_MORE_KERNELS)
    more_kernels(),
#endif
#if defined(__x86_64__)
    amx::kernels(),
    avx512::kernels(),
    avxvnni::kernels(),
    avx2::kernels(),
#elif defined(__aarch64__)
      neon::kernels(),
#endif
    kernel_set<FloatScalar, 8>("scalar", [] { return true; }),
    {}
  };
  return table;
}
#endif
inline const Kernels* find_kernels(const char* name) {
  for (const Kernels* k = kernel_table(); k->name; k++)
    if ((!name || std::strcmp(name, k->name) == 0) && k->supported()) return k;
  return nullptr;
}
inline std::vector<std::string> kernel_names() try {
  std::vector<std::string> names;
  for (const Kernels* k = kernel_table(); k->name; k++)
    if (k->supported()) names.push_back(k->name);
  return names;
} catch (const std::bad_alloc&) {
  return {};
}
inline const Kernels* choose_kernels(const char* name, std::string& error) {
  if (const Kernels* kernels = find_kernels(name)) return kernels;
  std::string names;
  for (const std::string& known : kernel_names()) names += (names.empty() ? "" : ", ") + known;
  error = concat("kernel '", name, "' is not supported by this CPU; available: ", names);
  return nullptr;
}
inline void exp_in_place(float* x, int n) {
  static const Kernels& best = *find_kernels(nullptr);
  best.exp(x, n);
}
}  // namespace POCKET_ISA
}  // namespace pocket
#if defined(__clang__) && defined(__x86_64__)
#pragma float_control(pop)
#endif
#endif  // POCKET_RUN_CPP

// ==== 11. A small program ============================================================================================
// Continues a text. `make` builds the full command line, apps/cli: what the options here do, they do there.
#ifndef POCKET_NO_MAIN
#include "tokenizer.hpp"
namespace {
using namespace pocket;
constexpr const char* kHelp = R"(run: a language model on a CPU

  run model.bin -i "Once upon a time"

  -i TEXT  the beginning of the text
  -n N     generate at most N tokens; 0: until the context is full [256]
  -t T     0: always the most likely token; 1: as trained [0.8]
  -p P     sample from tokens with total probability P; 1: all [0.9]
  -s N     random seed: the same one gives the same text [the time]
)";
[[noreturn]] void fail(int status, const std::string& why) {  // status: 1 failed, 2 wrong usage
  std::fprintf(stderr, "run: %s\n", one_line(why).c_str());
  std::exit(status);
}
double number(const std::string& option, const std::string& text, double low, double high, bool whole = true) {
  char *end = nullptr, range[80];
  const double value = std::strtod(text.c_str(), &end);
  const bool plain = text.find_first_not_of("+-.0123456789eE") == std::string::npos;
  if (!text.empty() && !*end && plain && value >= low && value <= high && (!whole || value == std::floor(value)))
    return value;
  std::snprintf(range, sizeof range, "%s from %.16g to %.16g", whole ? "a whole number" : "a number", low, high);
  fail(2, concat(option, ": expected ", range, ", found '", text, "'"));
}
// A terminal gets no control characters from the model.
void print(const std::string& text) {
  const std::string out = isatty(1) ? without_controls(text) : text;
  if (std::fwrite(out.data(), 1, out.size(), stdout) != out.size() || std::fflush(stdout) != 0)
    fail(1, std::string("standard output: ") + std::strerror(errno));
}
}  // namespace
int main(int argc, char** argv) try {
  std::string path, prompt;
  SamplerOptions sampling;
  sampling.seed = uint64_t(std::chrono::system_clock::now().time_since_epoch().count()) % 1000000;
  int limit = 256;
  for (int i = 1; i < argc; i++) {
    const std::string word = argv[i], value = i + 1 < argc ? argv[i + 1] : "";
    const bool option = word.size() > 1 && word[0] == '-', known = option && std::strchr("intps", word[1]) && !word[2];
    if (word == "-h" || word == "--help") return print(kHelp), 0;
    if (option && !known) fail(2, word + ": no such option; see --help");
    if (known && ++i == argc) fail(2, word + " requires a value; see --help");
    if (!option && !path.empty())
      fail(2, concat("'", word, "': one model only, found '", path, "' before; quote the text after -i"));
    if (!option) path = word;
    if (word == "-i") prompt = value;
    if (word == "-n") limit = int(number(word, value, 0, 1e9));
    if (word == "-t") sampling.temperature = float(number(word, value, 0, 100, false));
    if (word == "-p") sampling.top_p = float(number(word, value, 0, 1, false));
    if (word == "-s") sampling.seed = uint64_t(number(word, value, 0, 9007199254740992.0));
  }
  if (path.empty()) fail(2, "no model given; try: run model.bin -i \"Once upon a time\"");
  Model model;
  Tokenizer tokenizer;
  if (!model.open(path.c_str(), Load::copy)) fail(1, model.error);  // the file may change meanwhile
  if (!tokenizer.load(model.tokenizer_bytes())) fail(1, path + ": " + tokenizer.error);
  std::vector<int> ids = ids_of(tokenizer, prompt);
  if (ids.empty() && tokenizer.bos() >= 0) ids.push_back(tokenizer.bos());
  if (ids.empty()) fail(2, "the prompt is empty, and this model has no BOS token; give a prompt with -i");
  Session session(model);
  if (!session.error.empty()) fail(1, session.error);
  Sampler pick(sampling);
  Tokenizer::Stream stream(tokenizer);
  size_t printed = 0;  // tokens
  const auto print_token = [&](int id) {
    print(printed_text(tokenizer, stream, id));
    return ++printed > 0;
  };
  for (int id : ids) print_token(id);
  if (!generate(session, pick, ids, limit > 0 ? limit : 1 << 30, model.stop_ids, print_token)) fail(1, session.error);
  print(printed_rest(stream) + (isatty(1) ? "\n" : ""));
  std::fprintf(stderr, "prompt %zu tokens; new %zu tokens; %s, %d threads; seed %s\n", ids.size(), printed - ids.size(),
               session.kernel(), session.threads(), std::to_string(sampling.seed).c_str());
} catch (const std::bad_alloc&) {
  fail(1, "out of memory");
}
#endif  // POCKET_NO_MAIN
