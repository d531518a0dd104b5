// megabyte.hpp: MEGABYTE models (Yu et al. 2023, arxiv.org/abs/2305.07185): bytes in, bytes out, without a tokenizer.
//
// A text is split into patches of P bytes. A large transformer, the global stage, makes one step per patch. A small
// one, the local stage, makes one step per byte within a patch; the output of the global stage is its only view of
// the earlier patches:
//
//     "Once upon a", P = 4
//
//     position                 0             1              2
//     global input           start       e("Once")      e(" upo")          e: P embeddings, joined to one vector
//                              |             |              |
//     attention over         h 0 <-------- h 1 <--------- h 2
//                              |             |              |
//     output                  G 0           G 1            G 2             P vectors, for the bytes of patch 0, 1, 2
//                                            |
//     local, patch 1       start   ' ' + G 1[0]   'u' + G 1[1]   'p' + G 1[2]   'o' + G 1[3]
//     predicts               -          'u'            'p'            'o'            'n', the first byte of patch 2
//
// Position 0 of the local stage is the same for every patch and every text; its prediction is the first byte of a text.
//
// So a byte costs one step of the small stage and 1/P of a step of the large one, whose KV cache is P times shorter
// than that of a transformer over bytes.
//
// Both stages use the kernels and float blocks of run.cpp; the token shift, LayerNorm and GELU are new here. The bits
// are the same on every CPU, too.
//
//     #define POCKET_NO_MAIN
//     #include "run.cpp"
//     #include "megabyte.hpp"
//     pocket::MegabyteModel model;
//     if (!model.open("model.bin")) { puts(model.error.c_str()); return 1; }
//     pocket::MegabyteSession session(model, {/* context, threads, ... */});
//     pocket::Sampler pick({/* temperature, top_p, seed, ... */});
//     int byte = pick(session.start(), session.vocab_size());       // the first byte of a text, or:
//     const float* logits = session.forward(&byte, 1);              // (256,): of the byte after it
#ifndef POCKET_MEGABYTE_HPP
#define POCKET_MEGABYTE_HPP

#include "../../export/memory.hpp"

namespace pocket {

// ====================================================================================================================
// The model
// ====================================================================================================================

inline constexpr int kByteValues = 256;  // the vocabulary

struct MegabyteStage {
  int dim = 0;         // width of the residual stream
  int hidden_dim = 0;  // width inside the feed-forward block
  int n_layers = 0;
};

struct MegabyteConfig {
  MegabyteStage global, local;
  int n_heads = 0, head_dim = 0;  // of both stages; n_heads * head_dim need not be dim
  int patches = 0;                // N: positions of the global stage
  int patch_size = 0;             // P: bytes of a patch
  bool rotary = false;            // queries and keys are rotated to their positions
  bool positions = false;         // position embeddings are added to those of patches and bytes

  int q_dim() const { return n_heads * head_dim; }
  int patch_dim() const { return patch_size * local.dim; }
  int max_seq_len() const { return patches * patch_size; }  // bytes
};

// Every tensor of a model, in the order of the file.
inline std::vector<TensorSpec> tensor_specs(const MegabyteConfig& c) {
  std::vector<TensorSpec> specs;
  const auto vector = [&](const std::string& name, int n) { specs.push_back({name, Layout::vector, 1, n}); };
  const auto rows = [&](const std::string& name, int n, int cols) { specs.push_back({name, Layout::rows, n, cols}); };
  const auto matrix = [&](const std::string& name, int n, int cols) {
    specs.push_back({name, Layout::panels, n, cols});
  };
  const auto stage = [&](const std::string& name, const MegabyteStage& s) {
    for (int l = 0; l < s.n_layers; l++) {
      const std::string p = name + ".layers." + std::to_string(l) + ".";
      vector(p + "attention_norm", s.dim);
      matrix(p + "wq", c.q_dim(), s.dim);
      matrix(p + "wk", c.q_dim(), s.dim);
      matrix(p + "wv", c.q_dim(), s.dim);
      matrix(p + "wo", s.dim, c.q_dim());
      vector(p + "ffn_norm", s.dim);
      matrix(p + "w1", s.hidden_dim, s.dim);
      vector(p + "w1.bias", s.hidden_dim);
      matrix(p + "w2", s.dim, s.hidden_dim);
      vector(p + "w2.bias", s.dim);
    }
    vector(name + ".final_norm", s.dim);
  };
  rows("global.embedding", kByteValues, c.local.dim);  // of the bytes of a patch
  rows("local.embedding", kByteValues, c.local.dim);
  if (c.positions) rows("global.positions", c.patches, c.global.dim);
  if (c.positions) rows("local.positions", c.patch_size, c.local.dim);
  vector("global.start", c.global.dim);
  vector("local.start", c.local.dim);
  vector("patch_norm", c.patch_dim());
  vector("patch_norm.bias", c.patch_dim());
  matrix("patch", c.global.dim, c.patch_dim());
  vector("patch.bias", c.global.dim);
  vector("embedded_norm", c.global.dim);
  vector("embedded_norm.bias", c.global.dim);
  stage("global", c.global);
  matrix("next", c.patch_dim(), c.global.dim);  // from a position of the global stage to the bytes of its patch
  vector("next.bias", c.patch_dim());
  stage("local", c.local);
  matrix("output", kByteValues, c.local.dim);
  vector("output.bias", kByteValues);
  return specs;
}

// Checks the limits of a shape, like check_config of a Llama. Within them no product of sizes overflows its type.
template <class Refuse> bool check_config(const MegabyteConfig& c, const Refuse& refuse) {
  const struct {
    const char* field;
    int value, low, high;
  } all[] = {{"dim", c.global.dim, 1, 1 << 16},
             {"local dim", c.local.dim, 1, 1 << 16},
             {"hidden_dim", c.global.hidden_dim, 1, 1 << 20},
             {"local hidden_dim", c.local.hidden_dim, 1, 1 << 20},
             {"n_layers", c.global.n_layers, 1, 1 << 10},
             {"local n_layers", c.local.n_layers, 1, 1 << 10},
             {"n_heads", c.n_heads, 1, 1 << 10},
             {"head_dim", c.head_dim, 1, kMaxHeadDim},
             {"patch_size", c.patch_size, 1, 1 << 12},
             {"patches", c.patches, 1, (1 << 22) / std::max(1, c.patch_size)}};
  for (const auto& f : all)
    if (f.value < f.low || f.value > f.high)
      return refuse(f.field, std::to_string(f.low) + " to " + std::to_string(f.high), std::to_string(f.value));
  if (c.patch_dim() > 1 << 22)
    return refuse("patch_size", "at most 2^22 with the local dim", std::to_string(c.patch_dim()));
  return !c.rotary || c.head_dim % 2 == 0 || refuse("head_dim", "an even number", std::to_string(c.head_dim));
}

// The fields that a MEGABYTE file has in place of the header's last, from `parts` on; the others describe the global
// stage.
struct MegabyteHeader {
  uint32_t local_dim, local_hidden_dim, local_layers, patch_size;
  uint32_t rotary, positions;  // 0 or 1
  uint32_t reserved[8];        // 0
};
inline constexpr size_t kMegabyteHeaderAt = offsetof(Header, parts);
static_assert(kMegabyteHeaderAt + sizeof(MegabyteHeader) == sizeof(Header));

inline void set_header(const MegabyteConfig& c, Header& h) {
  h.architecture = kMegabyte;
  h.dim = uint32_t(c.global.dim);
  h.hidden_dim = uint32_t(c.global.hidden_dim);
  h.n_layers = uint32_t(c.global.n_layers);
  h.n_heads = h.n_kv_heads = uint32_t(c.n_heads);
  h.head_dim = uint32_t(c.head_dim);
  h.vocab_size = kByteValues;
  h.max_seq_len = uint32_t(c.max_seq_len());
  const MegabyteHeader own = {uint32_t(c.local.dim),
                              uint32_t(c.local.hidden_dim),
                              uint32_t(c.local.n_layers),
                              uint32_t(c.patch_size),
                              c.rotary,
                              c.positions,
                              {}};
  std::memcpy(reinterpret_cast<uint8_t*>(&h) + kMegabyteHeaderAt, &own, sizeof own);
}

class MegabyteModel : public ModelFile {
 public:
  struct Layer {
    Tensor attention_norm;  // (dim)
    Tensor wq, wk, wv;      // (q_dim, dim)
    Tensor wo;              // (dim, q_dim)
    Tensor ffn_norm;        // (dim)
    Tensor w1, w1_bias;     // (hidden_dim, dim), (hidden_dim)
    Tensor w2, w2_bias;     // (dim, hidden_dim), (dim)
  };
  struct Stage {
    Tensor embedding;  // (256, local dim), row-major
    Tensor positions;  // (positions, dim), row-major; no data if the model has none
    Tensor start;      // (dim): the input of position 0
    std::vector<Layer> layers;
    Tensor final_norm;  // (dim)
  };

  MegabyteConfig config;
  Stage global, local;
  Tensor patch_norm, patch_norm_bias;        // (patch_dim): LayerNorm
  Tensor patch, patch_bias;                  // (dim, patch_dim), (dim)
  Tensor embedded_norm, embedded_norm_bias;  // (dim): LayerNorm
  Tensor next, next_bias;                    // (patch_dim, dim), (patch_dim)
  Tensor output, output_bias;                // (256, local dim), (256)

  int vocab_size() const { return kByteValues; }

 private:
  bool read() override;
  void bind(const std::vector<Tensor>& tensors);
};

// The shape, from the header.
inline bool read_config(ModelReader& reader, MegabyteConfig& c) {
  const Header& h = reader.h;
  const auto own = load<MegabyteHeader>(reinterpret_cast<const uint8_t*>(&h) + kMegabyteHeaderAt);
  c.global = {int(h.dim), int(h.hidden_dim), int(h.n_layers)};
  c.local = {int(own.local_dim), int(own.local_hidden_dim), int(own.local_layers)};
  c.n_heads = int(h.n_heads);
  c.head_dim = int(h.head_dim);
  c.patch_size = int(own.patch_size);
  c.patches = int(h.max_seq_len);
  if (!reader.equal("vocab_size", kByteValues, h.vocab_size)) return false;
  if (!reader.equal("n_kv_heads", h.n_heads, h.n_kv_heads)) return false;
  for (const auto& [field, value] : {std::pair("rotary", own.rotary), std::pair("positions", own.positions)})
    if (value > 1) return reader.refuse(field, "0 or 1", value);
  for (const auto& [field, value] :
       {std::pair("tied", float(h.tied)), std::pair("norm_eps", h.norm_eps), std::pair("rope_theta", h.rope_theta),
        std::pair("rope_factor", h.rope_factor), std::pair("rope_scaling", float(h.rope_scaling)),
        std::pair("rope_low_freq", h.rope_low_freq), std::pair("rope_high_freq", h.rope_high_freq),
        std::pair("rope_original_len", float(h.rope_original_len))})
    if (!(value == 0)) return reader.refuse(field, "0", value);  // a field of Llamas
  for (uint32_t word : own.reserved)
    if (word) return reader.refuse("reserved", "0", word);
  c.rotary = own.rotary;
  c.positions = own.positions;
  if (c.patch_size < 1 || c.patches % c.patch_size)
    return reader.refuse("max_seq_len", "a multiple of patch_size, " + std::to_string(c.patch_size), c.patches);
  c.patches /= c.patch_size;
  return reader.fits(c);
}

inline bool MegabyteModel::read() {
  global = local = {};
  ModelReader reader{*this, {}};
  std::vector<Tensor> tensors;
  if (!reader.header(kMegabyte) || !read_config(reader, config) ||
      !reader.tensors(
          10 * uint64_t(config.global.n_layers + config.local.n_layers) + 16 + 2 * config.positions,
          [&] { return tensor_specs(config); }, tensors) ||
      !reader.finish(kByteValues))
    return false;
  bind(tensors);
  return true;
}

inline void MegabyteModel::bind(const std::vector<Tensor>& tensors) {
  bytes_per_token = 0;
  const Tensor* at = tensors.data();
  const auto stage = [&](Stage& s, int n_layers) {
    for (int l = 0; l < n_layers; l++, at += 10)
      s.layers.push_back({at[0], at[1], at[2], at[3], at[4], at[5], at[6], at[7], at[8], at[9]});
    s.final_norm = *at++;
  };
  global.embedding = *at++;
  local.embedding = *at++;
  if (config.positions) {
    global.positions = *at++;
    local.positions = *at++;
  }
  global.start = *at++;
  local.start = *at++;
  const Tensor* const first = at;
  for (Tensor* t : {&patch_norm, &patch_norm_bias, &patch, &patch_bias, &embedded_norm, &embedded_norm_bias})
    *t = *at++;
  stage(global, config.global.n_layers);
  next = *at++;
  next_bias = *at++;
  const Tensor* const second = at;
  stage(local, config.local.n_layers);
  output = *at++;
  output_bias = *at++;
  for (const Tensor* t = first; t < second; t++) bytes_per_token += t->bytes;
  bytes_per_token /= size_t(config.patch_size);  // the global stage makes one step per patch
  for (const Tensor* t = second; t < at; t++) bytes_per_token += t->bytes;
}

// ====================================================================================================================
// The blocks that a Llama does not have
// ====================================================================================================================
// Like the float blocks of run.cpp: plain C++, compiled for every instruction set; 16 partial sums; explicit fma.

// RMSNorm after the token shift (Peng et al. 2021): y = t / max(root mean square of t, 1e-8) * weight, where t is the
// first half of the n channels of x and the second half of the previous position. before: (n / 2).
POCKET_BODY void shift_norm_body(const float* x, const float* before, const float* weight, float* y, int n) {
  const int first = n - n / 2;
  for (int i = 0; i < first; i++) y[i] = x[i];
  for (int i = first; i < n; i++) y[i] = before[i - first];
  for (int i = n; i < round_up(n, 16); i++) y[i] = 0;
  float s[16] = {};
  for (int i = 0; i < n; i += 16)
    for (int j = 0; j < 16; j++) s[j] = std::fma(y[i + j], y[i + j], s[j]);
  const float root = std::sqrt(sum16(s) / float(n)), scale = 1.f / (root < 1e-8f ? 1e-8f : root);
  for (int i = 0; i < round_up(n, 16); i++) y[i] = y[i] * scale * weight[i];
}

// LayerNorm (Ba et al. 2016) of x + offset: y = (x - mean) / sqrt(variance + 1e-5) * weight + bias.
POCKET_BODY void layer_norm_body(const float* x, const float* offset, const float* weight, const float* bias, float* y,
                                 int n) {
  const int whole = n / 16 * 16;
  float s[16] = {}, squares[16] = {};
  for (int i = 0; i < n; i++) y[i] = offset ? x[i] + offset[i] : x[i];
  for (int i = 0; i < whole; i += 16)
    for (int j = 0; j < 16; j++) s[j] += y[i + j];
  for (int i = whole; i < n; i++) s[i - whole] += y[i];
  const float mean = sum16(s) / float(n);
  for (int i = 0; i < n; i++) y[i] -= mean;
  for (int i = 0; i < whole; i += 16)
    for (int j = 0; j < 16; j++) squares[j] = std::fma(y[i + j], y[i + j], squares[j]);
  for (int i = whole; i < n; i++) squares[i - whole] = std::fma(y[i], y[i], squares[i - whole]);
  const float scale = 1.f / std::sqrt(sum16(squares) / float(n) + 1e-5f);
  for (int i = 0; i < n; i++) y[i] = std::fma(y[i] * scale, weight[i], bias[i]);
}

// The cumulative normal distribution, (1 + erf(x / sqrt 2)) / 2. At -a it is e^(-a^2 / 2 + p(a)). p is nearly linear:
// a polynomial fitted to it, weighted for the absolute error of GELU, has an error below 5e-9.
POCKET_BODY float normal_share_body(float x) {
  const float a = std::fabs(x), b = a < 5.75f ? a : 5.75f;
  float p = std::fma(-2.80592403e-8f, b, 7.66199321e-7f);
  p = std::fma(p, b, -9.06637251e-6f);
  p = std::fma(p, b, 5.95315323e-5f);
  p = std::fma(p, b, -2.10126484e-4f);
  p = std::fma(p, b, 2.24484156e-5f);
  p = std::fma(p, b, 4.79948428e-3f);
  p = std::fma(p, b, -3.63453776e-2f);
  p = std::fma(p, b, 1.81692734e-1f);
  p = std::fma(p, b, -7.97884822e-1f);
  p = std::fma(p, b, -6.93147182e-1f);
  const float below = exp_body(std::fma(-0.5f * a, a, p));
  return x < 0 ? below : 1.f - below;
}

// GELU (Hendrycks and Gimpel 2016).
POCKET_BODY float gelu_body(float x) { return x * normal_share_body(x); }

POCKET_BODY void gelu_vector_body(float* x, const float* bias, int n) {
  for (int i = 0; i < n; i++) x[i] = gelu_body(x[i] + bias[i]);
}

// The kernels that MEGABYTE adds to a kernel set of run.cpp.
struct MegabyteKernels {
  void (*shift_norm)(const float* x, const float* before, const float* weight, float* y, int n);
  void (*layer_norm)(const float* x, const float* offset, const float* weight, const float* bias, float* y, int n);
  void (*gelu)(float* x, const float* bias, int n);
};

inline MegabyteKernels megabyte_kernels(const Kernels& k) {
#define POCKET_MEGABYTE_ROW(NAME) \
  { NAME::call<shift_norm_body>, NAME::call<layer_norm_body>, NAME::call<gelu_vector_body> }
#if defined(__x86_64__)
  const std::string_view name = k.name;
  if (name == "amx" || name == "avx512vnni") return POCKET_MEGABYTE_ROW(FloatAvx512);
  if (name == "avxvnni" || name == "avx2") return POCKET_MEGABYTE_ROW(FloatAvx2);
#endif
  (void)k;
  return POCKET_MEGABYTE_ROW(FloatScalar);
#undef POCKET_MEGABYTE_ROW
}

// ====================================================================================================================
// The session
// ====================================================================================================================

// One text, like Session: a position, the state of both stages after the bytes before it, and scratch memory.
class MegabyteSession {
 public:
  explicit MegabyteSession(const MegabyteModel& model, SessionOptions options = {});
  ~MegabyteSession();
  MegabyteSession(const MegabyteSession&) = delete;
  MegabyteSession& operator=(const MegabyteSession&) = delete;

  // Logits (256,) of the first byte of a text, at any position; null after a failed construction.
  const float* start() const;
  // Runs the model over n more bytes. Returns the logits (256,) of the byte after the last one, valid until the next
  // call; for n = 0 at position 0, start(). On failure null, with `error` set and the position unchanged.
  const float* forward(const int* bytes, size_t n);
  // The same with the logits after every byte: each(i, logits) in order. If it returns false, byte i was the last.
  using EachLogits = Session::EachLogits;
  bool forward(const int* bytes, size_t n, const EachLogits& each);

  int position() const { return position_; }
  int context() const;
  int vocab_size() const { return kByteValues; }
  const MegabyteModel& model() const { return model_; }
  bool kv_f32() const;
  int threads() const { return pool_ ? pool_->threads() : 0; }
  const char* kernel() const { return kernels_ ? kernels_->name : ""; }
  void rewind(int position) { position_ = std::max(0, std::min(position, position_)); }  // forgets the later bytes
  // Stops a running (or the next) forward within one layer; false withdraws a cancel that has not taken effect.
  void cancel(bool stop = true) { cancelled_.store(stop, std::memory_order_relaxed); }

  std::string error;  // "": no error
  // Sets `error`; returns false.
  bool fail(std::string why) {
    error = std::move(why);
    return false;
  }

 private:
  // A row of a chunk: a position of a sequence. The global stage has one sequence, the local stage one per patch.
  struct Row {
    int slot, position;
  };
  struct Stage;
  struct Buffers;
  bool prepare(const SessionOptions& options);
  bool check(const int* bytes, size_t n);
  template <class Run> bool guarded(const Run& run);
  bool process(const int* bytes, size_t n, const EachLogits* each);
  bool begin_patches();
  bool embed_patch(int patch, float* out);
  bool global_chunk(int first, int n);
  bool local_chunk(int first, int n);
  bool layers(Stage& s);
  void shift_norm(Stage& s, int l, int half, const Tensor& weight);
  void final_norm(Stage& s, int first, int n);
  void store_kv(Stage& s, int l);
  KvBlock kv_block(const Stage& s, int l, int head, int slot, int block) const;
  void attention(Stage& s, int l);
  void attend(Stage& s, int l, int head, int first, int n, size_t states);
  void add_residual(Stage& s, const Tensor* bias);
  void quantize(const Activations& in, int t, int n);
  void matmul(std::initializer_list<Product> products, const Activations& in, int n);
  bool compute_logits(int first, int n);
  bool read_row(const Tensor& table, int row, float* x);
  friend std::vector<MemoryItem> memory_of(const MegabyteModel& model, const SessionOptions& options, int bytes);

  const MegabyteModel& model_;
  const Kernels* kernels_ = nullptr;
  MegabyteKernels own_ = {};
  std::unique_ptr<Pool> pool_;
  std::unique_ptr<Reservation> memory_;
  std::unique_ptr<Buffers> buf_;
  std::vector<uint8_t> bytes_;       // (context): the text
  std::vector<Row> rows_;            // of the chunk
  std::vector<double> frequencies_;  // (head_dim / 2): radians per position; empty without rotary
  std::vector<float> start_;         // (256): logits
  int position_ = 0;
  int globals_ = 0;                       // positions of the global stage that are computed
  int open_patch_ = -1, open_bytes_ = 0;  // the last patch of the local stage, and its bytes so far
  std::atomic<bool> cancelled_{false};
};

// The memory of a session once `bytes` positions are filled; the weights come first.
inline std::vector<MemoryItem> memory_of(const MegabyteModel& model, const SessionOptions& options, int bytes);

// A stage of a session: the state of its sequences, and the vectors of a chunk. n: rows, at most kChunk; widths are
// zero-padded to 64.
struct MegabyteSession::Stage {
  MegabyteStage shape;
  const MegabyteModel::Stage* w;
  int positions, slots;  // positions of a sequence; sequences that are kept
  int keys, blocks;      // positions of a KvBlock; KvBlocks of a sequence
  size_t kv_block;       // bytes
  uint8_t* kv;           // (slots, blocks, layers, heads, kv_block)
  float* shifted;        // (slots, positions, layers, 2, dim / 2): second halves, before attention and before the FFN
  float* nothing;        // (dim / 2): zeros, the second half before position 0
  float* x;              // (n, dim): the residual stream
  Activations xn;        // (n, dim): its norm; then .f holds what is added to x
  Activations q;         // (n, q_dim): queries; then the output of attention
  float *k, *v;          // (n, q_dim)
  Activations hidden;    // (n, hidden_dim)
  float *cos, *sin;      // (n, head_dim / 2)
  size_t position_bytes = 0;  // of the state of a position

  float* halves(const Row& row, int l, int half) const {
    const size_t layer = ((size_t(row.slot) * positions + row.position) * shape.n_layers + l) * 2 + half;
    return shifted + layer * (size_t(shape.dim) / 2);
  }
};

// Like Buffers of run.cpp.
struct MegabyteSession::Buffers {
  int context, threads;
  bool kv_f32;
  Stage global, local;
  Activations patch;       // (n, patch_dim): patches to embed
  float* next;             // (patches, patch_dim): G, the input of the local stage
  AttentionStates states;  // (threads, kTileTokens)
  float* logits;           // (kLogitRows, 256)
  uint64_t bytes;

  Buffers(const MegabyteModel& model, const SessionOptions& o, uint8_t* base) {
    const MegabyteConfig& c = model.config;
    context = o.context > 0 ? o.context : c.max_seq_len();
    threads = thread_count(o);
    kv_f32 = keeps_f32(o, model);
    Placement take{reinterpret_cast<uintptr_t>(base)};
    const auto take_stage = [&](Stage& s, const MegabyteStage& shape, const MegabyteModel::Stage& w) {
      s.shape = shape;
      s.w = &w;
      s.keys = std::min(kBlockKeys, round_up(s.positions, 16));
      s.blocks = (s.positions + kBlockKeys - 1) / kBlockKeys;
      s.kv_block = kv_block_bytes(c.head_dim, kv_f32, s.keys);
      const size_t of_position = size_t(shape.n_layers) * 2 * (size_t(shape.dim) / 2) * sizeof(float);
      s.position_bytes = of_position + s.kv_block * shape.n_layers * c.n_heads / s.keys;
      take(s.kv, size_t(s.slots) * s.blocks * shape.n_layers * c.n_heads * s.kv_block);
      take(s.shifted, size_t(s.slots) * s.positions * of_position / sizeof(float));
      take(s.nothing, size_t(shape.dim) / 2);
      take(s.x, size_t(kChunk) * padded(shape.dim));
      s.xn.place(shape.dim, true, take);
      s.q.place(c.q_dim(), true, take);
      for (float** buffer : {&s.k, &s.v}) take(*buffer, size_t(kChunk) * padded(c.q_dim()));
      s.hidden.place(shape.hidden_dim, true, take);
      for (float** buffer : {&s.cos, &s.sin}) take(*buffer, size_t(kChunk) * (c.head_dim / 2));
    };
    global.positions = (context + c.patch_size - 1) / c.patch_size;
    global.slots = 1;
    local.positions = c.patch_size + 1;
    local.slots = kChunk / c.patch_size + 2;  // one more than the patches of a chunk
    take_stage(global, c.global, model.global);
    take_stage(local, c.local, model.local);
    patch.place(c.patch_dim(), true, take);
    take(next, size_t(global.positions) * padded(c.patch_dim()));
    states.place(take, size_t(threads) * kTileTokens, c.head_dim);
    take(logits, size_t(kLogitRows) * kByteValues);
    bytes = take.at - reinterpret_cast<uintptr_t>(base);
  }
};

inline std::vector<MemoryItem> memory_of(const MegabyteModel& model, const SessionOptions& options, int bytes) {
  const MegabyteSession::Buffers b(model, options, nullptr);
  const size_t patches = std::min<size_t>(size_t(b.global.positions), size_t(bytes / model.config.patch_size) + 1);
  const size_t of_patch = b.global.position_bytes + size_t(padded(model.config.patch_dim())) * sizeof(float);
  const size_t of_local = size_t(b.local.slots) * b.local.positions * b.local.position_bytes;
  const uint64_t all = uint64_t(b.global.positions) * of_patch + of_local;
  return {{"weights", model.file_bytes},
          {"cached state", patches * of_patch + of_local},
          {"activations", b.bytes - std::min(b.bytes, all)}};
}

inline MegabyteSession::MegabyteSession(const MegabyteModel& model, SessionOptions options) : model_(model) {
  const FloatMode mode;
  options.threads = thread_count(options);  // once: it may change
  try {
    if (prepare(options)) return;
  } catch (const std::bad_alloc&) {
    error = "out of memory";
  }
  pool_.reset();
}

inline MegabyteSession::~MegabyteSession() = default;

inline int MegabyteSession::context() const { return pool_ ? buf_->context : 0; }
inline bool MegabyteSession::kv_f32() const { return pool_ && buf_->kv_f32; }
inline const float* MegabyteSession::start() const { return pool_ ? start_.data() : nullptr; }

inline bool MegabyteSession::prepare(const SessionOptions& options) {
  if (model_.file_bytes == 0) return fail("session: the model is not open");
  const int longest = model_.config.max_seq_len();
  if (options.context < 0 || options.context > longest)
    return fail(
        concat("session: context: expected 0 to ", longest, ", the size of the model, found ", options.context));
  if (!(kernels_ = choose_kernels(options.kernel, error))) return false;
  own_ = megabyte_kernels(*kernels_);
  memory_ = std::make_unique<Reservation>(Buffers(model_, options, nullptr).bytes, error);
  if (!memory_->data) return false;
  buf_ = std::make_unique<Buffers>(model_, options, memory_->data);
  bytes_.resize(size_t(buf_->context));
  rows_.reserve(kChunk);
  Config rope;  // with the default theta
  rope.head_dim = model_.config.head_dim;
  for (int i = 0; model_.config.rotary && i < rope.head_dim / 2; i++) frequencies_.push_back(rope_frequency(rope, i));
  pool_ = std::make_unique<Pool>(buf_->threads);
  return begin_patches();
}

// Position 0 of the local stage is the same for every patch: it is computed once for every slot.
inline bool MegabyteSession::begin_patches() {
  Stage& s = buf_->local;
  for (int slot = 0; slot < s.slots;) {
    rows_.clear();
    for (; slot < s.slots && rows_.size() < size_t(kChunk); slot++) {
      std::memcpy(s.x + rows_.size() * padded(s.shape.dim), s.w->start.data, size_t(s.shape.dim) * sizeof(float));
      rows_.push_back({slot, 0});
    }
    if (!layers(s)) return false;
  }
  if (!compute_logits(0, 1)) return false;
  start_.assign(buf_->logits, buf_->logits + kByteValues);
  return true;
}

inline bool MegabyteSession::check(const int* bytes, size_t n) {
  error.clear();
  const size_t room = size_t(buf_->context - position_);
  if (n > room) error = concat("context: room for ", room, " more bytes, not for ", n);
  if ((n > 0 && !bytes) || (n == 0 && position_ > 0)) error = "forward: no bytes";
  for (size_t i = 0; i < n && error.empty(); i++)
    if (bytes[i] < 0 || bytes[i] >= kByteValues) error = concat("byte ", i, ": expected 0 to 255, found ", bytes[i]);
  return error.empty();
}

inline const float* MegabyteSession::forward(const int* bytes, size_t n) {
  const auto run = [&] { return process(bytes, n, nullptr) && (n == 0 || compute_logits(int(rows_.size()) - 1, 1)); };
  if (!guarded(run)) return nullptr;
  return n == 0 ? start() : buf_->logits;
}

inline bool MegabyteSession::forward(const int* bytes, size_t n, const EachLogits& each) {
  return guarded([&] { return process(bytes, n, &each); });
}

// If a pass fails, the position stays where it was.
template <class Run> bool MegabyteSession::guarded(const Run& run) {
  const int before = position_;
  return pool_ && guarded_forward(*pool_, run, [&](const char* why) {
           position_ = before;
           if (why) error = why;
         });
}

// Up to kChunk patches at a time: first the global stage for all of them, then the local stage, kChunk bytes at a time,
// across patches.
inline bool MegabyteSession::process(const int* bytes, size_t n, const EachLogits* each) {
  if (!check(bytes, n)) return false;
  const int start = position_, size = model_.config.patch_size;
  for (size_t i = 0; i < n; i++) bytes_[size_t(start) + i] = uint8_t(bytes[i]);
  globals_ = std::min(globals_, start / size + 1);
  while (position_ < start + int(n)) {
    const int end = std::min(start + int(n), position_ + kChunk * size), patches = (end - 1) / size + 1;
    for (int count; globals_ < patches; globals_ += count) {
      count = std::min(kChunk, patches - globals_);
      if (!global_chunk(globals_, count)) return false;
    }
    // After a rewind the local stage may not have the beginning of the patch.
    const bool known = open_patch_ == position_ / size && open_bytes_ >= position_ % size;
    int first = known ? position_ : position_ / size * size;
    for (int rows; first < end; first += rows) {
      rows = std::min(kChunk, end - first);
      if (!local_chunk(first, rows)) return false;
      for (int t = std::max(0, position_ - first); each && t < rows; t += kLogitRows) {
        const int count = std::min(kLogitRows, rows - t);
        if (!compute_logits(t, count)) return false;
        for (int r = 0; r < count; r++)
          if (!(*each)(size_t(first + t + r - start), buf_->logits + size_t(r) * kByteValues)) {
            position_ = first + t + r + 1;
            return true;
          }
      }
    }
    position_ = end;
  }
  return true;
}

inline bool MegabyteSession::read_row(const Tensor& table, int row, float* x) {
  return model_.read_row(table, row, x) || fail(concat("embedding: row ", row, " cannot be read; the file was changed"));
}

// The embeddings of the bytes of a patch, concatenated.
inline bool MegabyteSession::embed_patch(int patch, float* out) {
  const MegabyteConfig& c = model_.config;
  float* row = buf_->local.x;  // not in use
  for (int i = 0; i < c.patch_size; i++, out += c.local.dim) {
    if (!read_row(model_.global.embedding, bytes_[size_t(patch) * c.patch_size + i], row)) return false;
    std::memcpy(out, row, size_t(c.local.dim) * sizeof(float));
  }
  return true;
}

// Positions first ... first + n - 1 of the global stage; their outputs go to buf_->next. The input of position 0 is the
// start vector, of position k patch k - 1.
inline bool MegabyteSession::global_chunk(int first, int n) {
  const MegabyteConfig& c = model_.config;
  Stage& s = buf_->global;
  const Activations& patch = buf_->patch;
  const size_t width = size_t(padded(c.global.dim)), wide = size_t(patch.cols);
  rows_.clear();
  for (int t = 0; t < n; t++) {
    rows_.push_back({0, first + t});
    if (first + t > 0 && !embed_patch(first + t - 1, patch.f + t * wide)) return false;
  }
  each_token(*pool_, n, vector_work(c.patch_dim(), n), [&](int t) {
    float* x = patch.f + t * wide;
    own_.layer_norm(x, nullptr, floats(model_.patch_norm), floats(model_.patch_norm_bias), x, c.patch_dim());
    quantize(patch, t, n);
  });
  matmul({{model_.patch, s.xn.f}}, patch, n);
  for (int t = 0; t < n; t++) {
    float* x = s.x + t * width;
    const int k = first + t;
    if (k == 0) {
      std::memcpy(x, s.w->start.data, size_t(c.global.dim) * sizeof(float));
      continue;
    }
    own_.layer_norm(s.xn.f + t * width, floats(model_.patch_bias), floats(model_.embedded_norm),
                    floats(model_.embedded_norm_bias), x, c.global.dim);
    if (!c.positions) continue;
    if (!read_row(s.w->positions, k - 1, s.xn.f)) return false;
    for (int i = 0; i < c.global.dim; i++) x[i] += s.xn.f[i];
  }
  if (!layers(s)) return false;
  final_norm(s, 0, n);
  float* next = buf_->next + size_t(first) * wide;
  matmul({{model_.next, next}}, s.xn, n);
  for (int t = 0; t < n; t++)
    for (int i = 0; i < c.patch_dim(); i++) next[t * wide + i] += floats(model_.next_bias)[i];
  return true;
}

// Bytes first ... first + n - 1 through the local stage, each at its position in its patch.
inline bool MegabyteSession::local_chunk(int first, int n) {
  const MegabyteConfig& c = model_.config;
  Stage& s = buf_->local;
  const size_t width = size_t(padded(c.local.dim)), wide = size_t(padded(c.patch_dim()));
  open_patch_ = -1;
  rows_.clear();
  for (int t = 0; t < n; t++) {
    const int patch = (first + t) / c.patch_size, i = (first + t) % c.patch_size;
    float* x = s.x + t * width;
    rows_.push_back({patch % s.slots, i + 1});
    if (!read_row(s.w->embedding, bytes_[size_t(first) + t], x)) return false;
    if (c.positions) {
      if (!read_row(s.w->positions, i, s.xn.f)) return false;
      for (int j = 0; j < c.local.dim; j++) x[j] += s.xn.f[j];
    }
    const float* next = buf_->next + patch * wide + size_t(i) * c.local.dim;
    for (int j = 0; j < c.local.dim; j++) x[j] += next[j];
  }
  if (!layers(s)) return false;
  open_patch_ = (first + n - 1) / c.patch_size;
  open_bytes_ = (first + n - 1) % c.patch_size + 1;
  return true;
}

// All layers of a stage, over the rows of the chunk: x += wo attention(norm(shift x)); x += w2 gelu(w1 norm(shift x)).
inline bool MegabyteSession::layers(Stage& s) {
  const int n = int(rows_.size()), half = int(frequencies_.size());
  for (int t = 0; t < n; t++)
    for (int i = 0; i < half; i++) {
      double sin, cos;
      exact::sincos(rows_[size_t(t)].position * frequencies_[size_t(i)], sin, cos);
      s.sin[t * half + i] = float(sin);
      s.cos[t * half + i] = float(cos);
    }
  for (int l = 0; l < s.shape.n_layers; l++) {
    if (cancelled_.exchange(false, std::memory_order_relaxed)) return fail("cancelled");
    const MegabyteModel::Layer& w = s.w->layers[size_t(l)];
    shift_norm(s, l, 0, w.attention_norm);
    matmul({{w.wq, s.q.f}, {w.wk, s.k}, {w.wv, s.v}}, s.xn, n);
    store_kv(s, l);
    attention(s, l);
    matmul({{w.wo, s.xn.f}}, s.q, n);
    add_residual(s, nullptr);

    shift_norm(s, l, 1, w.ffn_norm);
    matmul({{w.w1, s.hidden.f}}, s.xn, n);
    each_token(*pool_, n, 4 * vector_work(s.shape.hidden_dim, n), [&](int t) {
      const size_t at = size_t(t) * s.hidden.cols;
      own_.gelu(s.hidden.f + at, floats(w.w1_bias), round_up(s.shape.hidden_dim, 16));
      quantize(s.hidden, t, n);
    });
    matmul({{w.w2, s.xn.f}}, s.hidden, n);
    add_residual(s, &w.w2_bias);
  }
  return true;
}

inline void MegabyteSession::quantize(const Activations& in, int t, int n) {
  if (!model_.all_f32) in.quantize_token(*kernels_, t, n);
}

inline void MegabyteSession::matmul(std::initializer_list<Product> products, const Activations& in, int n) {
  pocket::matmul(*kernels_, *pool_, products, in, n);
}

// xn = norm(shift(x)). The second half of a row is kept for the next position, in this chunk or another.
inline void MegabyteSession::shift_norm(Stage& s, int l, int half, const Tensor& weight) {
  const int n = int(rows_.size()), dim = s.shape.dim;
  const size_t width = size_t(padded(dim));
  for (int t = 0; t < n; t++)
    std::memcpy(s.halves(rows_[size_t(t)], l, half), s.x + t * width + (dim - dim / 2),
                size_t(dim / 2) * sizeof(float));
  each_token(*pool_, n, vector_work(dim, n), [&](int t) {
    const Row& row = rows_[size_t(t)];
    const float* before = row.position == 0 ? s.nothing : s.halves({row.slot, row.position - 1}, l, half);
    own_.shift_norm(s.x + t * width, before, floats(weight), s.xn.f + t * width, dim);
    quantize(s.xn, t, n);
  });
}

// xn = norm(x) of n rows from `first` on; row 0 of xn is the first of them.
inline void MegabyteSession::final_norm(Stage& s, int first, int n) {
  const int dim = s.shape.dim;
  const size_t width = size_t(padded(dim));
  each_token(*pool_, n, vector_work(dim, n), [&](int t) {
    const float* x = s.x + (size_t(first) + t) * width;
    own_.shift_norm(x, x + (dim - dim / 2), floats(s.w->final_norm), s.xn.f + t * width, dim);
    quantize(s.xn, t, n);
  });
}

inline void MegabyteSession::add_residual(Stage& s, const Tensor* bias) {
  const int n = int(rows_.size()), dim = s.shape.dim;
  const size_t width = size_t(padded(dim));
  each_token(*pool_, n, vector_work(dim, n), [&](int t) {
    float *x = s.x + t * width, *y = s.xn.f + t * width;
    for (int i = 0; bias && i < dim; i++) y[i] += floats(*bias)[i];
    for (int i = 0; i < dim; i++) x[i] += y[i];
  });
}

// Rotates queries and keys to their positions, and writes keys and values to the cache.
inline void MegabyteSession::store_kv(Stage& s, int l) {
  const MegabyteConfig& c = model_.config;
  const int n = int(rows_.size()), half = int(frequencies_.size());
  each_token(*pool_, n, vector_work(3 * c.q_dim(), n), [&](int t) {
    const Row& row = rows_[size_t(t)];
    float *k = s.k + size_t(t) * s.q.cols, *v = s.v + size_t(t) * s.q.cols;
    for (float* x : {s.q.f + size_t(t) * s.q.cols, k})
      if (half > 0) kernels_->rope(x, c.n_heads, c.head_dim, s.cos + t * half, s.sin + t * half);
    const int key = row.position % kBlockKeys;
    for (int head = 0; head < c.n_heads; head++, k += c.head_dim, v += c.head_dim) {
      store_key(kv_block(s, l, head, row.slot, row.position / kBlockKeys), buf_->kv_f32, key, k, v);
    }
  });
}

inline KvBlock MegabyteSession::kv_block(const Stage& s, int l, int head, int slot, int block) const {
  const MegabyteConfig& c = model_.config;
  const size_t layer = (size_t(slot) * s.blocks + block) * s.shape.n_layers + l;
  uint8_t* at = s.kv + (layer * c.n_heads + head) * s.kv_block;
  return kv_block_at(at, c.head_dim, buf_->kv_f32, s.keys);
}

// q = softmax(q k / sqrt(head_dim)) v, and its quantized form. A task takes some rows and one head.
inline void MegabyteSession::attention(Stage& s, int l) {
  const MegabyteConfig& c = model_.config;
  const int n = int(rows_.size()), tiles = (n + kTileTokens - 1) / kTileTokens;
  const int longest = std::max(16, rows_.back().position + 1);
  pool_->parallel_for(tiles * c.n_heads, attention_work(c.q_dim(), longest) * n, [&](int task, int thread) {
    const int first = task / c.n_heads * kTileTokens;
    attend(s, l, task % c.n_heads, first, std::min(kTileTokens, n - first), size_t(thread) * kTileTokens);
  });
  each_token(*pool_, n, vector_work(s.q.cols, n), [&](int t) { quantize(s.q, t, n); });
}

// One head of n rows from `first` on: those of a sequence together, block of keys by block of keys.
inline void MegabyteSession::attend(Stage& s, int l, int head, int first, int n, size_t states) {
  const int head_dim = model_.config.head_dim;
  const auto query = [&](int t) { return s.q.f + size_t(t) * s.q.cols + size_t(head) * head_dim; };
  for (int t = first, end; t < first + n; t = end) {
    const int slot = rows_[size_t(t)].slot;
    for (end = t + 1; end < first + n && rows_[size_t(end)].slot == slot;) end++;
    for (int block = 0; block <= rows_[size_t(end) - 1].position / kBlockKeys; block++)
      attend_queries(*kernels_, kv_block(s, l, head, slot, block), buf_->kv_f32, end - t, block == 0, [&](int i) {
        const int visible = std::min(kBlockKeys, rows_[size_t(t + i)].position + 1 - block * kBlockKeys);
        return Query{query(t + i), visible, buf_->states.at(states + size_t(t + i - first))};
      });
  }
  for (int t = first; t < first + n; t++) {
    const AttentionState& found = *buf_->states.at(states + size_t(t - first));
    const float scale = 1.f / found.sum;
    for (int i = 0; i < head_dim; i++) query(t)[i] = found.values[i] * scale;
  }
}

// buf_->logits (n, 256) of n rows of the local stage's chunk, from `first` on.
inline bool MegabyteSession::compute_logits(int first, int n) {
  final_norm(buf_->local, first, n);
  matmul({{model_.output, buf_->logits}}, buf_->local.xn, n);
  for (int i = 0; i < n * kByteValues; i++) buf_->logits[i] += floats(model_.output_bias)[i % kByteValues];
  return check_finite(buf_->logits, n, kByteValues, kByteValues, error);
}

// A vocabulary of single bytes, for code that requires a tokenizer.
inline Tokenizer::Vocabulary byte_vocabulary() {
  Tokenizer::Vocabulary v;
  v.kind = Tokenizer::Kind::byte_level;
  for (int b = 0; b < kByteValues; b++) v.pieces.push_back({std::string(1, char(b)), 0, Tokenizer::PieceType::normal});
  return v;
}

// Whether a file begins like a MEGABYTE model, so that MegabyteModel can open it.
inline bool is_megabyte(const char* path) {
  const int file = open_to_read(path);
  char head[16] = {};
  const bool read = file >= 0 && read_at(file, head, sizeof head, 0) == int64_t(sizeof head);
  if (file >= 0) ::close(file);
  return read && std::memcmp(head, kMagic, sizeof kMagic) == 0 && load<uint32_t>(head + 12) == kMegabyte;
}

}  // namespace pocket
#endif  // POCKET_MEGABYTE_HPP
