// run.cpp: a language model in one file.
//
// Runs models of the Llama architecture (Llama, TinyLlama, SmolLM2, the TinyStories models, ...) on a CPU, from one
// model.bin that export/convert writes. The same model and the same tokens give the same bits on every CPU, with any
// number of threads, and however the prompt is cut into batches.
//
// Build    g++ -std=c++17 -O3 -ffp-contract=off -pthread run.cpp -o run          (or: make)
// Run      ./run model.bin -i "Once upon a time"                                  (./run --help tells the rest)
//
// Use it as a library: copy this file (and tokenizer.hpp, if you want text) into your project.
//
//     #define POCKET_NO_MAIN
//     #include "run.cpp"
//     pocket::Model model;                                          // immutable once open; share it among threads
//     if (!model.open("model.bin")) { puts(model.error.c_str()); return 1; }
//     pocket::Session session(model, {/* context, threads, ... */});  // KV cache and scratch; one thread at a time
//     pocket::Sampler pick({/* temperature, top_p, seed, ... */});
//     const int prompt[] = {1, 9038, 2501, 263, 931};
//     const float* logits = session.forward(prompt, 5);             // (vocab_size,), or null and session.error
//     int next = pick(logits, model.config.vocab_size);             // feed it back: session.forward(&next, 1)
//
// Nothing in it throws, exits, prints or keeps a global that changes. Many sessions may share one model; a session
// belongs to one caller at a time. session.cancel() alone may be called from anywhere, a signal handler included.
//
// Contents, in the order of a lesson; who reads up to section 7 knows how a Llama works
//   1. Public API                            5. The blocks: rmsnorm, rope, swiglu, attention
//   2. Number formats, scalar kernels        6. forward
//   3. Thread pool                           7. Sampler, generate, chat
//   4. Model file                            8. SIMD, one group per instruction set
//                                            9. Command line (cli.hpp)
//
// model.bin, little-endian, every section on a multiple of 64 bytes:
//
//     0      +--------------------------------------------------------------+
//            | Header, 256 bytes: sizes, rope, offsets, two checksums       |
//     256    +--------------------------------------------------------------+
//            | tokenizer   (tokenizer.hpp knows its inside)                 |
//            | chat        (stop ids; the strings around each turn)         |
//            | provenance  (text: source, licence, how it was quantized)    |
//            | self-test   (some ids and the hash of the logits they give)  |
//            | tensor table (TensorEntry each, in the order of tensor_specs)|
//     4096 n +--------------------------------------------------------------+
//            | tensors: the embedding first, then what forward() multiplies |
//            +--------------------------------------------------------------+
//
// A matrix that is multiplied is stored in panels of 16 rows, so that a SIMD lane is a row and no sum ever crosses
// lanes. Four consecutive columns of a row share one 32-bit lane, the shape that every int8 dot instruction wants:
//
//     q8 panel, vector v (64 bytes):   byte 4r+b = row r, column 4v+b          then bfloat16 scales (group, row)
//     q4 panel, vector v (64 bytes):   byte 4r+b = row r, columns 8v+b (low nibble) and 8v+4+b (high nibble)
//                                      then 4-bit group scales, then one float32 scale a row
//     f32 panel, vector k (64 bytes):  float r = row r, column k
//
// MIT licence. Copyright (c) 2026 the pocketllama authors.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#if defined(__linux__)
#include <sys/syscall.h>
#endif
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#if defined(__APPLE__)
#include <sys/sysctl.h>
#else
#include <sys/auxv.h>
#endif
#endif

#ifdef __FAST_MATH__
#error "run.cpp promises the same bits everywhere, which -ffast-math and -Ofast break: build it with -O3"
#endif
#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "run.cpp maps little-endian files as they are and needs a little-endian machine"
#endif

#ifndef POCKET_RUN_CPP  // this file may be included twice
#define POCKET_RUN_CPP

namespace pocket {

// ====================================================================================================================
// 1. Public API
// ====================================================================================================================

inline constexpr const char* kVersion = "0.1.0";

enum class Type : uint32_t { f32 = 0, q8 = 1, q4 = 2 };  // how a tensor's numbers are stored; section 2 defines each
enum class RopeScaling : uint32_t { none = 0, linear = 1, llama3 = 2 };

// The shape of a model, by the names of the Llama papers.
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
  float rope_low_freq = 1, rope_high_freq = 4;   // llama3
  int rope_original_len = 0;                     // llama3
  bool tied = false;                             // the output matrix is the embedding table

  int q_dim() const { return n_heads * head_dim; }
  int kv_dim() const { return n_kv_heads * head_dim; }
};

// A matrix (rows, cols) somewhere in a model file. A norm's weights are a vector: one row.
struct Tensor {
  Type type = Type::f32;
  int rows = 0, cols = 0;
  const uint8_t* data = nullptr;
  size_t bytes = 0;
  int8_t codebook[16] = {};  // q4: the 16 values that a code stands for
};

struct Layer {
  Tensor attention_norm;  // (dim)
  Tensor wq, wk, wv;      // (q_dim, dim), (kv_dim, dim), (kv_dim, dim)
  Tensor wo;              // (dim, q_dim)
  Tensor ffn_norm;        // (dim)
  Tensor w1, w3;          // (hidden_dim, dim): gate and up
  Tensor w2;              // (dim, hidden_dim): down
};

// The strings around the turns of a conversation. Data, not a program: a part is a control token or plain text.
struct ChatTemplate {
  struct Part {
    int id = -1;  // a control token; -1: text
    std::string text;
  };
  using Parts = std::vector<Part>;
  enum Slot { kSystemPrefix, kSystemSuffix, kFirstUserPrefix, kUserPrefix, kUserSuffix, kReplyPrefix, kReplySuffix };
  static constexpr int kSlots = 7;
  enum Trim : unsigned { kTrimSystem = 1, kTrimUser = 2, kTrimReply = 4 };

  Parts slot[kSlots];          // kFirstUserPrefix stands in for kUserPrefix right after a system turn
  std::string default_system;  // the system prompt where the user gives none; "": no system turn
  std::vector<int> stop_ids;   // tokens that end a reply, or a text
  unsigned trim = 0;           // bits of Trim: turns whose white space at both ends is left out

  bool known() const {
    return std::any_of(std::begin(slot), std::end(slot), [](const Parts& parts) { return !parts.empty(); });
  }
};

// What every model file carries besides its tensors, mapped and checked. Immutable once open, so that any number of
// sessions and threads may share it.
class ModelFile {
 public:
  ModelFile() = default;
  ~ModelFile() { unmap(); }
  ModelFile(const ModelFile&) = delete;
  ModelFile& operator=(const ModelFile&) = delete;

  // Reads all the tensors and compares their checksum with the header's.
  bool verify_tensors();

  std::string error;
  ChatTemplate chat;
  std::vector<int> self_test_ids;  // a prompt ...
  uint64_t self_test_hash = 0;     // ... and the hash of the logits of its last token (hash_logits)
  size_t file_bytes = 0;
  size_t bytes_per_token = 0;  // weights that forward() reads for one token
  bool all_f32 = false;        // a reference model: no quantized matrix in it

  std::string_view tokenizer_bytes() const { return tokenizer_; }
  std::string_view provenance() const { return provenance_; }
  uint64_t checksum() const { return checksum_; }  // the header's: no two models share it
  // Copies a row of a table that is gathered to x (cols, padded to 64). False if the file can no longer be read.
  bool read_row(const Tensor& table, int row, float* x) const;

 protected:
  bool map_file(const char* path);                     // on failure returns false with `error` set
  bool map_memory(const void* data, size_t size);      // the same
  bool refuse(const char* name);                       // puts the name before `error` and closes; returns false
  void unmap();

 private:
  friend struct ModelReader;
  const uint8_t* base_ = nullptr;
  size_t size_ = 0;
  int file_ = -1;  // -1: memory of the caller
  std::string_view tokenizer_, provenance_;
  uint64_t tensors_at_ = 0, tensors_hash_ = 0, checksum_ = 0;
};

// A model file with a Llama in it: its shape and its tensors.
class Model : public ModelFile {
 public:
  Config config;
  Tensor token_embedding;  // (vocab_size, dim), row-major: gathered, never multiplied
  std::vector<Layer> layers;
  Tensor final_norm;  // (dim)
  Tensor output;      // (vocab_size, dim)

  // Maps the file and checks everything but the tensors' values, once. On failure returns false and sets `error`,
  // which names the file, the field, what was expected and what was found.
  bool open(const char* path);
  // The same on bytes that the caller keeps alive and in place, on a 64-byte boundary.
  bool open_memory(const void* data, size_t size);

  int vocab_size() const { return config.vocab_size; }
  // Copies row `id` of the embedding table to x (dim, padded to 64). False if the file can no longer be read.
  bool embed(int id, float* x) const { return read_row(token_embedding, id, x); }

 private:
  bool read(const char* name);
  void bind(const std::vector<Tensor>& tensors);
};

enum class KvType { automatic, q8, f32 };  // how keys and values are kept; automatic: f32 for f32 models, else q8

struct SessionOptions {
  int context = 0;  // positions to keep; 0: the model's max_seq_len
  int threads = 0;  // 0: one per CPU
  KvType kv = KvType::automatic;
  const char* kernel = nullptr;  // a name of kernel_names(); null: the fastest this CPU can run
};

// What an observer is shown: after a layer its output, and for each head the weights its token gave to all before it.
struct Observation {
  enum Kind { attention, layer_output } kind;
  int layer, head;    // head: -1 for a layer's output
  int position;       // of the token
  const float* data;  // attention: (position + 1), they sum to 1; layer_output: (dim)
  int size;
};

struct Kernels;
class Pool;
struct MemoryItem {
  const char* name;
  size_t bytes;
};

// One conversation: a position, the keys and values of all tokens before it, and scratch memory.
class Session {
 public:
  explicit Session(const Model& model, SessionOptions options = {});
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Runs the model over n more tokens. Returns the logits (vocab_size,) of the last, valid until the next call; on
  // failure (no memory, an id outside the vocabulary, context full, cancelled) null, with `error` set and the position
  // where it was.
  const float* forward(const int* ids, size_t n);
  // The same with the logits of every token: each(i, logits) in order. Where it returns false, token i was the last.
  using EachLogits = std::function<bool(size_t i, const float* logits)>;
  bool forward(const int* ids, size_t n, const EachLogits& each);

  int position() const { return position_; }
  int context() const;
  int vocab_size() const { return model_.config.vocab_size; }
  const Model& model() const { return model_; }
  bool kv_f32() const;  // keys and values are kept as float32, not int8
  int threads() const;
  const char* kernel() const;
  void rewind(int position) { position_ = std::max(0, std::min(position, position_)); }  // forgets what came later
  // A running (or the next) forward gives up; false takes that back where none is running.
  void cancel(bool stop = true) { cancelled_.store(stop, std::memory_order_relaxed); }
  void observe(std::function<void(const Observation&)> observer) { observer_ = std::move(observer); }

  // Keys and values of one position as position_bytes() bytes, the same for every kernel set and thread count; and
  // back: append_position() makes them the next position of a session of the same model and KV type, which then gives
  // the bits that it would give had it heard the token. saved_session.hpp makes a checked file of them.
  size_t position_bytes() const;
  void read_position(int position, uint8_t* bytes) const { copy_position(position, bytes, false); }
  void append_position(const uint8_t* bytes);

  std::string error;  // "": all is well

 private:
  struct Buffers;
  bool prepare(const SessionOptions& options);
  bool check(const int* ids, size_t n);
  bool process(const int* ids, size_t n, const EachLogits* each);
  bool chunk(const int* ids, int n);
  void layer(int l, int n);
  void norm_input(const Tensor& weight, int first, int n);
  void gate_and_up(const Layer& w, int n);
  void quantize(const struct Activations& in, int t, int n);
  void matmul(std::initializer_list<struct Product> products, const Activations& in, int n);
  void add_residual(int n);
  void store_kv(int l, int n);
  void attention(int l, int n);
  void attend_prompt(int l, int n);
  void attend_token(int l);
  void attend_group(int l, int kv_head, int block, int first, int n, float* state, bool fold);
  void finish_head(const float* state, int t, int head);
  void show_attention(int l, int n);
  struct KvBlock kv_block(int l, int kv_head, int block) const;
  void copy_position(int position, uint8_t* bytes, bool restore) const;
  const float* logits_of(int first, int n);
  friend std::vector<MemoryItem> memory_of(const Model& model, const SessionOptions& options, int tokens);

  const Model& model_;
  const Kernels* kernels_ = nullptr;
  std::unique_ptr<Pool> pool_;
  std::unique_ptr<Buffers> buf_;
  int position_ = 0;
  std::atomic<bool> cancelled_{false};
  std::function<void(const Observation&)> observer_;
  std::vector<double> frequencies_;  // (head_dim / 2) radians a position
};

// What a session occupies once `tokens` positions are filled; the weights are the model's own and come first.
inline std::vector<MemoryItem> memory_of(const Model& model, const SessionOptions& options, int tokens);

// The kernel sets that this CPU can run, best first. All of them return the same bits.
inline std::vector<std::string> kernel_names();

struct SamplerOptions {
  float temperature = 0.8f;  // 0: always the most likely token
  float top_p = 0.9f;        // the smallest set of tokens that holds this much probability; 1: all
  uint64_t seed = 0;
  int top_k = 0;             // the k most likely only; 0: all
  float min_p = 0;           // only tokens at least this likely, relative to the most likely one
  float repeat_penalty = 1;  // logits of tokens among the last 64 are divided by it (multiplied where negative)
};

inline constexpr size_t kRepeatWindow = 64;  // tokens back that the repetition penalty looks

// Picks the next token. The same seed and logits give the same choice on every machine.
class Sampler {
 public:
  explicit Sampler(SamplerOptions options = {});
  int operator()(const float* logits, int n);       // the choice is remembered for the repetition penalty
  void remember(int id);                            // tokens that were not chosen here: the prompt
  uint64_t random_state() const { return state_; }  // a Sampler with this as its seed draws what this one would draw
 private:
  struct Candidate {
    float p;
    int id;
    static bool likelier(const Candidate& a, const Candidate& b) { return a.p != b.p ? a.p > b.p : a.id < b.id; }
  };
  float random();
  static int likeliest(const float* logits, int n);
  void penalize(int n);
  int choose(float top, int best);
  double keep_top_p(double total);

  SamplerOptions options_;
  const Kernels* kernels_;
  uint64_t state_;
  int recent_[kRepeatWindow];  // a ring; -1: none yet
  size_t next_ = 0;
  std::vector<float> work_;
  std::vector<Candidate> candidates_;
};

// Guesses the tokens that come after the one that was handed out last. A good guess saves time; none changes the text.
using Propose = std::function<std::vector<int>()>;

// Feeds the prompt, then samples up to n tokens; ends early at a stop id (not handed out), when the context is full,
// or when on_token returns false. Returns false on failure, with session.error set. Pick: Sampler, or what has its two
// functions. Guesses are heard together with the token before them and count as far as pick chooses the same.
template <class AnySession, class Pick>
bool generate(AnySession& session, Pick& pick, const std::vector<int>& prompt, int n, const std::vector<int>& stop_ids,
              const std::function<bool(int id)>& on_token, const Propose& propose = nullptr);

// Token ids of the text before a reply: `message` as the next user turn, after the end of the last reply or, if it is
// the first turn, after the system prompt. encode turns plain text into ids (bos: with the tokenizer's BOS in front).
using Encode = std::function<std::vector<int>(std::string_view text, bool bos)>;
inline std::vector<int> chat_turn(const ChatTemplate& chat, const Encode& encode, const std::string& system,
                                  const std::string& message, bool first);

// The two halves of it, for who wants more than a turn at once: what is laid out, and the token ids of that.
inline ChatTemplate::Parts chat_parts(const ChatTemplate& chat, const std::string& system, const std::string& message,
                                      bool first);
inline std::vector<int> encode_parts(const ChatTemplate::Parts& parts, const Encode& encode, bool bos);
inline std::string trimmed(std::string_view text);  // without white space at both ends

// ====================================================================================================================
// 2. Number formats, and the scalar kernels that define what every faster one must return, bit for bit
// ====================================================================================================================

inline constexpr int kPanelRows = 16;  // rows of a panel, one per SIMD lane
inline constexpr int kGroup = 32;      // columns that share a scale, of weights and of activations alike
inline constexpr int kAlign = 64;      // columns are padded to a multiple of this with zeros; bytes of a cache line

inline constexpr int8_t kCodebook[16] = {-63, -50, -40, -31, -24, -17, -10, -4, 1, 7, 12, 18, 25, 32, 42, 56};

template <class T> constexpr T round_up(T n, T to) { return (n + to - 1) / to * to; }
constexpr int padded(int cols) { return round_up(cols, kAlign); }

// A bfloat16 is the upper half of a float32.
inline float from_bf16(uint16_t h) {
  uint32_t bits = uint32_t(h) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

template <class T> T load(const void* p) {  // unaligned
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

// Bytes of the codes of one panel (16 rows), and of the whole panel.
inline size_t code_bytes(Type type, int cols) {
  const size_t k = size_t(padded(cols));
  return type == Type::f32 ? k * 64 : type == Type::q8 ? k * 16 : k * 8;
}
inline size_t panel_bytes(Type type, int cols) {
  const size_t groups = size_t(padded(cols)) / kGroup, codes = code_bytes(type, cols);
  if (type == Type::q8) return codes + groups * 32;                            // a bfloat16 per group and row
  if (type == Type::q4) return codes + round_up<size_t>(groups * 8, 64) + 64;  // half a byte per group and row, and rs
  return codes;
}
// The embedding table, row-major, group after group: 32 floats, or a bfloat16 scale and 32 bytes.
inline size_t embedding_group_bytes(Type type) { return type == Type::q8 ? 2 + kGroup : kGroup * sizeof(float); }
inline size_t embedding_row_bytes(Type type, int cols) {
  return size_t(padded(cols)) / kGroup * embedding_group_bytes(type);
}

// What a matmul multiplies with: n tokens' vectors of `cols` (padded) elements, as floats and quantized to int8 with
// one scale per group of 32, max|x| / 127. A view: the memory is the session's, or the caller's.
struct Activations {
  int cols;                    // padded to 64
  float* f;                    // (n, cols); null where only the quantized form is kept
  int8_t* q;                   // (n, cols)
  float* scale;                // (n, cols / 32)
  int32_t* sum;                // (n, cols / 32): sums of q over a group, for kernels that multiply unsigned by signed bytes
  uint8_t* packed = nullptr;   // q and scale as pack_groups lays them out
  bool use_packed = false;     // the quantized form of this matmul is in `packed`, and only there

  // Token t alone.
  Activations token(int t) const {
    const size_t at = size_t(t) * cols;
    return {cols, f + at, q + at, scale + at / kGroup, sum + at / kGroup};
  }
  // The columns from k0 on (a multiple of 32).
  Activations columns(int k0) const { return {cols, f + k0, q + k0, scale + k0 / kGroup, sum + k0 / kGroup}; }
  // The same for a matmul of n tokens: the packed form is used where the kernel set has a use for it.
  Activations of(const struct Kernels& k, int n) const;
  // Its place for kChunk tokens: take(pointer, count) gives each array its own.
  template <class Take> void place(int width, bool floats, const Take& take);
  // x (n) as columns first ... first + n - 1, whole groups, of one of so many tokens, quantized for the matmul.
  void quantize(const Kernels& k, const float* x, int token, int tokens, int first, int n) const;
  // All of token t of n, from its place in f.
  void quantize_token(const Kernels& k, int t, int n) const;
};

// How a kernel that works on tiles of 16 tokens has its activations: 64 columns of all tokens, (n, 64) bytes, and their
// scales, (2, n) floats; then the next 64 columns. n is a multiple of 16 here; behind the last token lies anything.
inline size_t packed_bytes(int n, int cols) { return size_t(cols) / 64 * (64 + 2 * sizeof(float)) * round_up(n, 16); }

// `count` quantized groups into their place in `packed`, which is for n tokens: token t's groups from `first` on.
inline void pack_groups(const int8_t* q, const float* scale, int t, int first, int count, int n, uint8_t* packed) {
  const size_t rows = size_t(round_up(n, 16));
  for (int g = first; g < first + count; g++, q += kGroup, scale++) {
    uint8_t* block = packed + packed_bytes(n, g / 2 * 64);
    std::memcpy(block + size_t(t) * 64 + g % 2 * kGroup, q, kGroup);
    std::memcpy(block + rows * 64 + (g % 2 * rows + t) * sizeof(float), scale, sizeof(float));
  }
}

// The q4 scale of a group: 4 bits, +-(5 ... 12). The sign turns a lopsided codebook over.
inline float q4_scale(int s) { return float(s & 8 ? -5 - (s & 7) : 5 + (s & 7)); }

// Row r of a q4 panel times one token: rs * sum over groups of (m * xs) * sum over k of codebook[code] * xq.
inline float dot_q4(const uint8_t* panel, const int8_t codebook[16], int r, const Activations& x) {
  const uint8_t* scales = panel + code_bytes(Type::q4, x.cols);
  float acc = 0;
  for (int g = 0; g < x.cols / kGroup; g++) {
    int32_t sum = 0;
    for (int k = g * kGroup; k < (g + 1) * kGroup; k++) {
      const uint8_t pair = panel[size_t(k / 8) * 64 + 4 * r + k % 4];
      sum += codebook[k & 4 ? pair >> 4 : pair & 15] * x.q[k];
    }
    const uint8_t pair = scales[g / 2 * 16 + r];
    acc = std::fma(float(sum), q4_scale(g & 1 ? pair >> 4 : pair & 15) * x.scale[g], acc);
  }
  return acc * load<float>(panel + panel_bytes(Type::q4, x.cols) - 64 + 4 * r);
}

// Row r of a q8 panel times one token.
inline float dot_q8(const uint8_t* panel, int r, const Activations& x) {
  const uint8_t* scales = panel + code_bytes(Type::q8, x.cols);
  float acc = 0;
  for (int g = 0; g < x.cols / kGroup; g++) {
    int32_t sum = 0;
    for (int k = g * kGroup; k < (g + 1) * kGroup; k++)
      sum += int8_t(panel[size_t(k / 4) * 64 + 4 * r + k % 4]) * x.q[k];
    acc = std::fma(float(sum), from_bf16(load<uint16_t>(scales + g * 32 + 2 * r)) * x.scale[g], acc);
  }
  return acc;
}

// Row r of an f32 panel times one token.
inline float dot_f32(const uint8_t* panel, int r, const Activations& x) {
  float acc = 0;
  for (int k = 0; k < x.cols; k++) acc = std::fma(load<float>(panel + size_t(k) * 64 + 4 * r), x.f[k], acc);
  return acc;
}

// The definition of a matmul: y (n, ldy) = x (n, cols) times `count` panels of w from panel `first` on.
inline void matmul_scalar(const Tensor& w, int first, int count, const Activations& x, int n, float* y, size_t ldy) {
  for (int p = first; p < first + count; p++) {
    const uint8_t* panel = w.data + size_t(p) * panel_bytes(w.type, w.cols);
    for (int t = 0; t < n; t++)
      for (int r = 0; r < kPanelRows; r++)
        y[t * ldy + size_t(p) * kPanelRows + r] = w.type == Type::q4   ? dot_q4(panel, w.codebook, r, x.token(t))
                                                  : w.type == Type::q8 ? dot_q8(panel, r, x.token(t))
                                                                       : dot_f32(panel, r, x.token(t));
  }
}

// One instruction set's version of everything that takes time. Section 8 fills in a table of these. The float blocks
// are the same C++ (section 5), compiled for the instruction set; the integer functions are written by hand.
struct Kernels {
  const char* name;
  bool (*supported)();

  void (*rmsnorm)(const float* x, const float* weight, float* y, int n, float eps);
  void (*quantize)(const float* x, int n, int8_t* q, float* scale, int32_t* sum);
  void (*rope)(float* x, int heads, int head_dim, const float* cos, const float* sin);
  void (*swiglu)(float* gate, const float* up, int n);
  void (*exp)(float* x, int n);
  void (*attend_q8)(const struct KvBlock& kv, int n, const float* const* q, const int* keys, float* const* out);
  void (*attend_f32)(const struct KvBlock& kv, int n, const float* const* q, const int* keys, float* const* out);
  void (*fold)(float* state, const float* part, int width);
  void (*matmul_f32)(const Tensor& w, int first, int count, const Activations& x, int n, float* y, size_t ldy);

  // Null where the scalar definition serves. See matmul_panels and matmul_blocked for what they do.
  void (*unpack_q4)(const uint8_t* codes, const uint8_t* scales, const int8_t codebook[16], int cols,
                    uint8_t* out_codes, float* out_scales);
  void (*gemv_q4)(const Tensor& w, int first, int count, const Activations& x, int n, float* y, size_t ldy);
  void (*dot)(Type type, const uint8_t* const codes[2], const void* const scales[2], int cols, const Activations& x,
              int n, float* const acc[2]);
  // Null where matmul_blocked is the best there is. q4 or q8, and x.packed.
  void (*matmul_packed)(const Tensor& w, int first, int count, const Activations& x, int n, float* y, size_t ldy);
};

inline constexpr int kChunk = 128;      // tokens that go through the layers together
inline constexpr int kFewTokens = 8;    // up to so many take the weights straight from memory; more are worth unpacking
inline constexpr int kBlockCols = 512;  // columns unpacked at a time: two panels of them fit in the L1 cache

// Integer matmul of many tokens, the loops around a kernel set's `dot`: two panels at a time, a block of columns at a
// time, unpacked once for all tokens. `dot` adds the block's groups to acc (n, 16), in order.
inline void matmul_blocked(const Kernels& k, const Tensor& w, int first, int count, const Activations& x, int n,
                           float* y, size_t ldy) {
  alignas(64) uint8_t unpacked[2][kBlockCols * kPanelRows];
  alignas(64) float unpacked_scales[2][kBlockCols / kGroup * kPanelRows];
  alignas(64) float acc[2][kChunk * kPanelRows];
  const size_t stride = panel_bytes(w.type, w.cols), scales_at = code_bytes(w.type, w.cols);
  for (int p = first; p < first + count; p += 2) {
    const int pair = std::min(2, first + count - p);  // an odd last panel is taken twice, and used once
    std::memset(acc, 0, sizeof acc);
    for (int k0 = 0; k0 < x.cols; k0 += kBlockCols) {
      const int cols = std::min(kBlockCols, x.cols - k0);
      const uint8_t* codes[2];
      const void* scales[2];
      for (int i = 0; i < 2; i++) {
        const uint8_t* panel = w.data + (size_t(p) + std::min(i, pair - 1)) * stride;
        codes[i] = panel + code_bytes(w.type, k0);
        scales[i] = panel + scales_at + (w.type == Type::q8 ? k0 : k0 / 4);
        if (w.type != Type::q4) continue;
        k.unpack_q4(codes[i], panel + scales_at + k0 / 4, w.codebook, cols, unpacked[i], unpacked_scales[i]);
        codes[i] = unpacked[i];
        scales[i] = unpacked_scales[i];
      }
      const Activations block = x.columns(k0);
      float* const accs[2] = {acc[0], acc[1]};
      k.dot(w.type, codes, scales, cols, block, n, accs);
    }
    for (int i = 0; i < pair; i++) {
      float rs[kPanelRows];
      std::fill(rs, rs + kPanelRows, 1.f);
      if (w.type == Type::q4) std::memcpy(rs, w.data + (size_t(p) + i + 1) * stride - sizeof rs, sizeof rs);
      for (int t = 0; t < n; t++)
        for (int r = 0; r < kPanelRows; r++)
          y[t * ldy + (size_t(p) + i) * kPanelRows + r] = acc[i][t * kPanelRows + r] * rs[r];
    }
  }
}

// Panels first ... first + count - 1 of w times n tokens, by the fastest way that the kernel set has.
inline void matmul_panels(const Kernels& k, const Tensor& w, int first, int count, const Activations& x, int n,
                          float* y, size_t ldy) {
  if (w.type == Type::f32) return k.matmul_f32(w, first, count, x, n, y, ldy);
  if (!k.dot) return matmul_scalar(w, first, count, x, n, y, ldy);
  if (w.type == Type::q4 && n <= kFewTokens) return k.gemv_q4(w, first, count, x, n, y, ldy);
  x.use_packed ? k.matmul_packed(w, first, count, x, n, y, ldy) : matmul_blocked(k, w, first, count, x, n, y, ldy);
}

// ====================================================================================================================
// 3. Thread pool
// ====================================================================================================================

inline void spin_pause();  // section 8: tells the CPU that a loop only waits

// Runs tasks 0 ... n-1 on all its threads, the caller among them. Tasks are handed out one by one, so which thread
// does what varies; no result may depend on it. A worker without work spins for some microseconds, since the next
// matmul is usually that near, and then sleeps, since other programs want the CPU too.
//
// `work` is about how many nanoseconds one thread would need for the whole job. To tell the others of it and to wait
// for them takes some microseconds, so a job smaller than that is the caller's alone.
class Pool {
 public:
  // Starts threads - 1 workers; as many as the system gives.
  explicit Pool(int threads) {
    starts_.reserve(16 * size_t(std::max(threads, 1)) + 16);  // more than parallel_ranges makes of any model's panels
    try {
      for (int i = 1; i < threads; i++) workers_.emplace_back([this, i] { work(i); });
    } catch (const std::system_error&) {  // the system's limit: go on with those that there are
    } catch (const std::bad_alloc&) {
    }
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_.store(true);
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  int threads() const { return int(workers_.size()) + 1; }

  // f(task, thread) for every task below n; returns when all are done.
  template <class F> void parallel_for(int n, double work, const F& f) {
    if (workers_.empty() || n <= 1 || work < kWorthSharing) {
      for (int i = 0; i < n; i++) f(i, 0);
      return;
    }
    call_ = [](const void* context, int task, int thread) { (*static_cast<const F*>(context))(task, thread); };
    context_ = &f;
    done_.store(0, std::memory_order_relaxed);
    const uint64_t job = (ticket_.load(std::memory_order_relaxed) >> 48) + 1;
    ticket_.store(job << 48 | uint64_t(n) << 24);
    if (sleepers_.load() > 0) {
      { std::lock_guard<std::mutex> lock(mutex_); }
      wake_.notify_all();
    }
    take_tasks(0);
    for (int i = 0; done_.load(std::memory_order_acquire) != n; i++) {
      if (i < 1000)
        spin_pause();
      else
        std::this_thread::yield();
    }
  }

  // The same where the work is known to be worth it.
  template <class F> void parallel_for(int n, const F& f) { parallel_for(n, kWorthSharing, f); }

  // f(first, end) for runs of 0 ... n-1: 7/8 of all in one long run for each thread, since every run has to get its
  // memory going, then 7/8 of the rest likewise, and so on, until the pieces are so small that no thread waits long for
  // another (factoring; Hummel, Schonberg and Flynn 1992). All but the last are multiples of `unit`.
  template <class F> void parallel_ranges(int n, int unit, double work, const F& f) {
    starts_.assign(1, 0);
    while (starts_.back() < n) {
      const int size = std::max(1, (n - starts_.back()) * 7 / 8 / threads() / unit) * unit;
      for (int i = 0; i < threads() && starts_.back() < n; i++) starts_.push_back(std::min(n, starts_.back() + size));
    }
    parallel_for(int(starts_.size()) - 1, work, [&](int task, int) { f(starts_[task], starts_[task + 1]); });
  }

 private:
  static constexpr double kWorthSharing = 10000;  // ns

  // ticket_: job number (16 bits), its number of tasks (24), next task (24). One fetch_add both claims a task and
  // tells which job it belongs to, so that a worker that comes late cannot take part in the wrong one.
  void take_tasks(int thread) {
    for (;;) {
      const uint64_t ticket = ticket_.fetch_add(1, std::memory_order_acq_rel);
      const int task = int(ticket & 0xffffff), n = int(ticket >> 24 & 0xffffff);
      if (task >= n) return;
      call_(context_, task, thread);
      done_.fetch_add(1, std::memory_order_release);
    }
  }

  void work(int thread) {
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

  void sleep(uint64_t seen) {
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1);
    wake_.wait(lock, [&] { return ticket_.load() >> 48 != seen || stop_.load(); });
    sleepers_.fetch_sub(1);
  }

  std::atomic<uint64_t> ticket_{0};
  std::atomic<int> done_{0}, sleepers_{0};
  std::atomic<bool> stop_{false};
  void (*call_)(const void*, int, int) = nullptr;
  const void* context_ = nullptr;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
  std::vector<int> starts_;  // of the runs of parallel_ranges
};

// ====================================================================================================================
// 4. Model file: map, check, bind
// ====================================================================================================================

struct Section {
  uint64_t offset, bytes;
};

// The first 256 bytes of a model file.
struct Header {
  char magic[8];          // kMagic
  uint32_t version;       // kFormatVersion
  uint32_t architecture;  // kLlama; kMegabyte is megabyte.hpp's
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
  uint8_t reserved[56];       // 0 in a Llama
};
static_assert(sizeof(Header) == 256);

inline constexpr char kMagic[8] = {'P', 'K', 'T', 'L', 'L', 'A', 'M', 'A'};
inline constexpr uint32_t kFormatVersion = 1, kLlama = 1, kMegabyte = 2;
inline constexpr int kMaxHeadDim = 1024;
inline constexpr uint64_t kPage = 4096;  // alignment of the tensors section

struct TensorEntry {
  uint32_t type, rows, cols, reserved;
  uint64_t offset, bytes;  // offset from the start of the file
  int8_t codebook[16];     // q4, else 0
  uint8_t padding[16];     // 0
};
static_assert(sizeof(TensorEntry) == 64);

// vector: float32, padded to 64 bytes. rows: row-major. panels: see the top of this file.
enum class Layout { vector, rows, panels };

struct TensorSpec {
  std::string name;
  Layout layout;
  int rows, cols;
};

// Every tensor of a model, in the order of the file.
inline std::vector<TensorSpec> tensor_specs(const Config& c) {
  std::vector<TensorSpec> specs = {{"token_embedding", Layout::rows, c.vocab_size, c.dim}};
  for (int l = 0; l < c.n_layers; l++) {
    const std::string p = "layers." + std::to_string(l) + ".";
    specs.push_back({p + "attention_norm", Layout::vector, 1, c.dim});
    specs.push_back({p + "wq", Layout::panels, c.q_dim(), c.dim});
    specs.push_back({p + "wk", Layout::panels, c.kv_dim(), c.dim});
    specs.push_back({p + "wv", Layout::panels, c.kv_dim(), c.dim});
    specs.push_back({p + "wo", Layout::panels, c.dim, c.q_dim()});
    specs.push_back({p + "ffn_norm", Layout::vector, 1, c.dim});
    specs.push_back({p + "w1", Layout::panels, c.hidden_dim, c.dim});
    specs.push_back({p + "w3", Layout::panels, c.hidden_dim, c.dim});
    specs.push_back({p + "w2", Layout::panels, c.dim, c.hidden_dim});
  }
  specs.push_back({"final_norm", Layout::vector, 1, c.dim});
  specs.push_back({"output", Layout::panels, c.vocab_size, c.dim});
  return specs;
}

inline int panels_of(int rows) { return (rows + kPanelRows - 1) / kPanelRows; }

inline uint64_t tensor_bytes(const TensorSpec& spec, Type type) {
  if (spec.layout == Layout::vector) return round_up<uint64_t>(uint64_t(spec.cols) * 4, kAlign);
  if (spec.layout == Layout::rows) return round_up<uint64_t>(embedding_row_bytes(type, spec.cols) * spec.rows, kAlign);
  return uint64_t(panels_of(spec.rows)) * panel_bytes(type, spec.cols);
}

inline bool type_fits(Layout layout, uint32_t type) {
  return layout == Layout::vector ? type == 0 : layout == Layout::rows ? type <= 1 : type <= 2;
}

inline const char* type_name(Type type) { return type == Type::f32 ? "f32" : type == Type::q8 ? "q8" : "q4"; }

// XXH64 with seed 0, by its public specification (github.com/Cyan4973/xxHash, doc/xxhash_spec.md), of whole stripes of
// 32 bytes: what is shorter is filled up with zeros. A checksum, not a secret.
class Hash64 {
 public:
  void update(const void* data, size_t n) {
    const uint8_t* p = static_cast<const uint8_t*>(data);
    total_ += round_up<size_t>(n, 32);
    for (; n >= 32; p += 32, n -= 32) stripe(p);
    uint8_t last[32] = {};
    if (n > 0) stripe(static_cast<uint8_t*>(std::memcpy(last, p, n)));
  }

  uint64_t digest() const {
    uint64_t h = rotate(lane_[0], 1) + rotate(lane_[1], 7) + rotate(lane_[2], 12) + rotate(lane_[3], 18);
    for (uint64_t lane : lane_) h = (h ^ round(0, lane)) * k1 + k4;
    h += total_;
    h = (h ^ h >> 33) * k2;
    h = (h ^ h >> 29) * k3;
    return h ^ h >> 32;
  }

 private:
  static constexpr uint64_t k1 = 0x9E3779B185EBCA87, k2 = 0xC2B2AE3D27D4EB4F, k3 = 0x165667B19E3779F9,
                            k4 = 0x85EBCA77C2B2AE63;
  static uint64_t rotate(uint64_t x, int n) { return x << n | x >> (64 - n); }
  static uint64_t round(uint64_t acc, uint64_t input) { return rotate(acc + input * k2, 31) * k1; }
  void stripe(const uint8_t* p) {
    for (int i = 0; i < 4; i++) lane_[i] = round(lane_[i], load<uint64_t>(p + 8 * i));
  }

  uint64_t lane_[4] = {k1 + k2, k2, 0, 0 - k1}, total_ = 0;
};

inline uint64_t hash_bytes(const void* data, size_t n) {
  Hash64 hash;
  hash.update(data, n);
  return hash.digest();
}

inline uint64_t hash_logits(const float* logits, int n) { return hash_bytes(logits, size_t(n) * sizeof(float)); }

// llama2.c's files have no magic number: dim, hidden_dim and n_layers come first.
inline bool looks_like_llama2c(const uint8_t* p, size_t n) {
  return n >= 28 && load<uint32_t>(p) - 1 < 1 << 16 && load<uint32_t>(p + 4) - 1 < 1 << 20 &&
         load<uint32_t>(p + 8) - 1 < 1 << 10;
}

// What a file is that is not ours, by its first bytes.
inline std::string describe_file(const uint8_t* p, size_t n) {
  const std::string_view s(reinterpret_cast<const char*>(p), std::min<size_t>(n, 64));
  const auto starts = [&](std::string_view with) { return s.substr(0, with.size()) == with; };
  if (n == 0) return "an empty file";
  if (starts("GGUF")) return "a GGUF file; convert it: export/convert FILE -o model.bin";
  if (starts("PK\x03\x04")) return "a zip archive (PyTorch saves such files)";
  if (starts("version https://git-lfs")) return "a Git LFS pointer, not the file itself; fetch it with: git lfs pull";
  if (starts("<!") || starts("<html") || starts("<HTML")) return "a web page (HTML); the download went wrong";
  if (starts("\x80\x02") || starts("\x80\x04")) return "a Python pickle (old PyTorch checkpoint)";
  if (n > 8 && p[8] == '{' && load<uint64_t>(p) < (1u << 30))
    return "a safetensors file; convert its folder: export/convert FOLDER -o model.bin";
  if (looks_like_llama2c(p, n))
    return "perhaps a llama2.c checkpoint; convert it: export/convert FILE -z TOKENIZER -o model.bin";
  return "something else";
}

// Reads a section from front to back; once something does not fit, ok is false and every value 0.
struct ByteReader {
  std::string_view bytes;
  bool ok = true;

  std::string_view take(uint64_t n) {
    if (!ok || n > bytes.size()) return ok = false, std::string_view();
    const std::string_view taken = bytes.substr(0, size_t(n));
    bytes.remove_prefix(size_t(n));
    return taken;
  }
  template <class T> T get() {
    const std::string_view raw = take(sizeof(T));
    return ok ? load<T>(raw.data()) : T();
  }
};

// The limits of a shape, for model files and checkpoints alike. Within them no product of sizes overflows 64 bits, and
// pairs turn by at most a radian a position, so that every angle is one that exact::sincos can reduce. Where something
// is wrong it returns refuse(field, expected, found).
template <class Refuse> bool check_config(const Config& c, const Refuse& refuse) {
  const bool scaled = c.rope_scaling != RopeScaling::none, llama3 = c.rope_scaling == RopeScaling::llama3;
  const struct {
    const char* field;
    int value, low, high;
    bool used;
  } integers[] = {{"dim", c.dim, 1, 1 << 16, true},
                  {"hidden_dim", c.hidden_dim, 1, 1 << 20, true},
                  {"n_layers", c.n_layers, 1, 1 << 10, true},
                  {"n_heads", c.n_heads, 1, 1 << 10, true},
                  {"n_kv_heads", c.n_kv_heads, 1, c.n_heads, true},
                  {"head_dim", c.head_dim, 2, kMaxHeadDim, true},
                  {"vocab_size", c.vocab_size, 1, 1 << 22, true},
                  {"max_seq_len", c.max_seq_len, 1, 1 << 22, true},
                  {"rope_original_len", c.rope_original_len, 1, 1 << 24, llama3}};
  for (const auto& f : integers)
    if (f.used && (f.value < f.low || f.value > f.high))
      return refuse(f.field, std::to_string(f.low) + " to " + std::to_string(f.high), std::to_string(f.value));
  if (c.n_heads % c.n_kv_heads)
    return refuse("n_kv_heads", "a divisor of " + std::to_string(c.n_heads) + " heads", std::to_string(c.n_kv_heads));
  if (c.head_dim % 2) return refuse("head_dim", "an even number", std::to_string(c.head_dim));
  const struct {
    const char* field;
    float value, low;
    bool used;
  } numbers[] = {{"norm_eps", c.norm_eps, 0, true},
                 {"rope_theta", c.rope_theta, 1, true},
                 {"rope_factor", c.rope_factor, 1, scaled},
                 {"rope_low_freq", c.rope_low_freq, 0, llama3},
                 {"rope_high_freq", c.rope_high_freq, 0, llama3}};
  for (const auto& f : numbers)
    if (f.used && !(f.value > 0 && f.value >= f.low && f.value < 1e30f))
      return refuse(f.field, f.low == 1 ? "1 or more" : "a positive number", std::to_string(f.value));
  return !llama3 || c.rope_high_freq > c.rope_low_freq ||
         refuse("rope_high_freq", "more than the low one, " + std::to_string(c.rope_low_freq),
                std::to_string(c.rope_high_freq));
}

inline std::string architecture_name(uint32_t architecture) {
  const std::string number = std::to_string(architecture);
  return architecture == kLlama      ? number + " (llama)"
         : architecture == kMegabyte ? number + " (MEGABYTE: include megabyte.hpp and open a MegabyteModel)"
                                     : number;
}

// The door: every check of a model file. Steps return false with `error` set.
struct ModelReader {
  ModelFile& m;
  Header h;

  template <class A, class B> bool refuse(const std::string& field, const A& expected, const B& found) {
    const auto text = [](const auto& v) {
      if constexpr (std::is_arithmetic_v<std::decay_t<decltype(v)>>)
        return std::to_string(v);
      else
        return std::string(v);
    };
    m.error = field + ": expected " + text(expected) + ", found " + text(found);
    return false;
  }

  bool header(uint32_t architecture) {
    if (m.size_ < 8 || std::memcmp(m.base_, kMagic, 8) != 0)
      return refuse("magic", "a pocketllama model", describe_file(m.base_, m.size_));
    if (m.size_ < sizeof(Header)) return refuse("size", "at least 256 bytes of header", m.size_);
    std::memcpy(&h, m.base_, sizeof h);
    if (h.version != kFormatVersion) return refuse("version", kFormatVersion, h.version);
    if (h.file_bytes != m.size_) return refuse("file_bytes", h.file_bytes, std::to_string(m.size_) + " (cut short?)");
    if (h.architecture != architecture)
      return refuse("architecture", architecture_name(architecture), architecture_name(h.architecture));
    return sections() && checksum();
  }

  bool sections() {
    const char* names[] = {"tokenizer", "chat", "provenance", "self_test", "tensor_table", "tensors"};
    const Section all[] = {h.tokenizer, h.chat, h.provenance, h.self_test, h.tensor_table, h.tensors};
    uint64_t at = sizeof(Header);
    for (int i = 0; i < 6; i++) {
      const std::string field = std::string("section ") + names[i];
      const uint64_t align = i == 5 ? kPage : kAlign;
      if (all[i].offset % align)
        return refuse(field + ".offset", "a multiple of " + std::to_string(align), all[i].offset);
      if (all[i].offset < at) return refuse(field + ".offset", "at least " + std::to_string(at), all[i].offset);
      if (all[i].offset > m.size_ || all[i].bytes > m.size_ - all[i].offset)
        return refuse(field + ".bytes", "an end within " + std::to_string(m.size_) + " bytes", all[i].bytes);
      at = all[i].offset + all[i].bytes;
    }
    return at == m.size_ || refuse("section tensors", "the end of the file", at);
  }

  bool checksum() {
    Header zeroed = h;
    zeroed.checksum = 0;
    Hash64 hash;
    hash.update(&zeroed, sizeof zeroed);
    hash.update(m.base_ + sizeof(Header), h.tensors.offset - sizeof(Header));
    return hash.digest() == h.checksum || refuse("checksum", h.checksum, std::to_string(hash.digest()) + " (damaged)");
  }

  struct Integer {
    const char* field;
    uint32_t value;
    int* out;
  };
  bool integers(std::initializer_list<Integer> fields) {
    for (const Integer& f : fields) {
      if (f.value > INT32_MAX) return refuse(f.field, "less than 2^31", f.value);
      *f.out = int(f.value);
    }
    return true;
  }

  template <class Shape> bool fits(const Shape& shape) {
    return check_config(shape, [this](const char* field, const std::string& expected, const std::string& found) {
      return refuse(field, expected, found);
    });
  }

  // count: of the specs, which are made only if the file has room for so many: the list of a model with a thousand
  // layers must not be made for a tiny file.
  template <class Specs> bool tensors(uint64_t count, const Specs& specs, std::vector<Tensor>& bound) {
    if (h.tensor_table.bytes != count * sizeof(TensorEntry))
      return refuse("section tensor_table.bytes", count * sizeof(TensorEntry), h.tensor_table.bytes);
    uint64_t at = h.tensors.offset;
    bool all_f32 = true;
    for (const TensorSpec& spec : specs()) {
      const auto e = load<TensorEntry>(m.base_ + h.tensor_table.offset + bound.size() * sizeof(TensorEntry));
      const std::string field = "tensor " + spec.name;
      if (!type_fits(spec.layout, e.type)) return refuse(field + ".type", "a type that fits", e.type);
      if (e.rows != uint32_t(spec.rows)) return refuse(field + ".rows", spec.rows, e.rows);
      if (e.cols != uint32_t(spec.cols)) return refuse(field + ".cols", spec.cols, e.cols);
      if (e.offset != at) return refuse(field + ".offset", at, e.offset);
      const uint64_t bytes = tensor_bytes(spec, Type(e.type));
      if (e.bytes != bytes) return refuse(field + ".bytes", bytes, e.bytes);
      if (bytes > m.size_ - at)
        return refuse(field, std::to_string(bytes) + " bytes", std::to_string(m.size_ - at) + " left");
      Tensor t = {Type(e.type), spec.rows, spec.cols, m.base_ + at, size_t(bytes)};
      std::memcpy(t.codebook, e.codebook, sizeof e.codebook);
      for (int8_t value : e.codebook)  // section 8 counts on 7 bits
        if (value < -64 || value > 63) return refuse(field + ".codebook", "-64 to 63", int(value));
      bound.push_back(t);
      all_f32 = all_f32 && (spec.layout != Layout::panels || t.type == Type::f32);
      at += bytes;
    }
    if (at != m.size_) return refuse("section tensors", at, m.size_);
    m.all_f32 = all_f32;
    return true;
  }

  std::string_view view(const Section& s) {
    return {reinterpret_cast<const char*>(m.base_) + s.offset, size_t(s.bytes)};
  }

  bool ids(ByteReader& in, int vocab_size, std::vector<int>& out) {
    const uint32_t count = in.get<uint32_t>();
    if (count > in.bytes.size() / 4) return false;
    for (uint32_t i = 0; i < count; i++) {
      const int32_t id = in.get<int32_t>();
      if (id < 0 || id >= vocab_size) return false;
      out.push_back(id);
    }
    return in.ok;
  }

  bool chat(int vocab_size) {
    ByteReader in{view(h.chat)};
    ChatTemplate chat;
    if (!ids(in, vocab_size, chat.stop_ids)) return refuse("section chat", "stop ids within the vocabulary", "others");
    chat.default_system = std::string(in.take(in.get<uint32_t>()));
    for (auto& slot : chat.slot) {
      const uint32_t parts = in.get<uint32_t>();
      for (uint32_t i = 0; i < parts && in.ok; i++) {
        const int32_t id = in.get<int32_t>();
        if (id < -1 || id >= vocab_size) return refuse("section chat", "ids within the vocabulary", id);
        slot.push_back({id, std::string(in.take(in.get<uint32_t>()))});
      }
    }
    if (in.ok && !in.bytes.empty()) chat.trim = in.get<uint32_t>();  // left out where it is 0
    if (!in.ok || !in.bytes.empty() || chat.trim > 7)
      return refuse("section chat", "a whole template", "one that does not fit its bytes");
    m.chat = std::move(chat);
    return true;
  }

  bool self_test(int vocab_size) {
    ByteReader in{view(h.self_test)};
    std::vector<int> prompt;
    if (!ids(in, vocab_size, prompt)) return refuse("section self_test", "ids within the vocabulary", "others");
    m.self_test_hash = in.get<uint64_t>();
    if (!in.ok || !in.bytes.empty()) return refuse("section self_test", "ids and a hash", "other bytes");
    m.self_test_ids = std::move(prompt);
    return true;
  }

  // The sections that all architectures share.
  bool rest(int vocab_size) {
    if (!chat(vocab_size) || !self_test(vocab_size)) return false;
    m.tokenizer_ = view(h.tokenizer);
    m.provenance_ = view(h.provenance);
    m.file_bytes = m.size_;
    m.tensors_at_ = h.tensors.offset;
    m.tensors_hash_ = h.tensors_checksum;
    m.checksum_ = h.checksum;
    return true;
  }
};

// The shape of a Llama, as the header tells it.
inline bool read_config(ModelReader& reader, Config& c) {
  const Header& h = reader.h;
  if (!reader.integers({{"dim", h.dim, &c.dim},
                        {"hidden_dim", h.hidden_dim, &c.hidden_dim},
                        {"n_layers", h.n_layers, &c.n_layers},
                        {"n_heads", h.n_heads, &c.n_heads},
                        {"n_kv_heads", h.n_kv_heads, &c.n_kv_heads},
                        {"head_dim", h.head_dim, &c.head_dim},
                        {"vocab_size", h.vocab_size, &c.vocab_size},
                        {"max_seq_len", h.max_seq_len, &c.max_seq_len},
                        {"rope_original_len", h.rope_original_len, &c.rope_original_len}}))
    return false;
  if (h.tied > 1) return reader.refuse("tied", "0 or 1", h.tied);
  if (h.rope_scaling > 2) return reader.refuse("rope_scaling", "0 to 2", h.rope_scaling);
  for (uint8_t byte : h.reserved)
    if (byte) return reader.refuse("reserved", 0, int(byte));
  c.tied = h.tied;
  c.norm_eps = h.norm_eps;
  c.rope_theta = h.rope_theta;
  c.rope_scaling = RopeScaling(h.rope_scaling);
  c.rope_factor = h.rope_factor, c.rope_low_freq = h.rope_low_freq, c.rope_high_freq = h.rope_high_freq;
  return reader.fits(c);
}

inline void Model::bind(const std::vector<Tensor>& t) {
  layers.clear();
  token_embedding = t[0];
  for (size_t i = 1; i + 2 < t.size(); i += 9)
    layers.push_back({t[i], t[i + 1], t[i + 2], t[i + 3], t[i + 4], t[i + 5], t[i + 6], t[i + 7], t[i + 8]});
  final_norm = t[t.size() - 2];
  output = t[t.size() - 1];
  bytes_per_token = 0;
  for (size_t i = 1; i < t.size(); i++) bytes_per_token += t[i].bytes;
}

inline bool ModelFile::refuse(const char* name) {
  error = std::string(name) + ": " + error;
  unmap();
  return false;
}

inline bool Model::read(const char* name) {
  layers.clear();
  try {
    ModelReader reader{*this, {}};
    std::vector<Tensor> tensors;
    if (reader.header(kLlama) && read_config(reader, config) &&
        reader.tensors(
            uint64_t(config.n_layers) * 9 + 3, [&] { return tensor_specs(config); }, tensors) &&
        reader.rest(config.vocab_size)) {
      bind(tensors);
      return true;
    }
  } catch (const std::bad_alloc&) {
    error = "out of memory";
  }
  return refuse(name);
}

inline bool Model::open(const char* path) { return map_file(path) && read(path); }
inline bool Model::open_memory(const void* data, size_t size) { return map_memory(data, size) && read("memory"); }

inline bool ModelFile::map_file(const char* path) {
  unmap();
  error.clear();
  const auto fail = [&](const char* what) {
    error = what;
    return refuse(path);
  };
  file_ = ::open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  struct stat st;
  if (file_ < 0 || fstat(file_, &st) != 0) return fail(std::strerror(errno));
  if (S_ISDIR(st.st_mode)) return fail("is a folder; export/convert makes a model.bin from a checkpoint's folder");
  if (!S_ISREG(st.st_mode)) return fail("expected a regular file, which can be mapped");
  if (st.st_size == 0) return fail("magic: expected a pocketllama model, found an empty file");
  void* map = mmap(nullptr, size_t(st.st_size), PROT_READ, MAP_SHARED, file_, 0);
  if (map == MAP_FAILED) return fail(std::strerror(errno));
  base_ = static_cast<const uint8_t*>(map);
  size_ = size_t(st.st_size);
#ifdef MADV_HUGEPAGE
  madvise(map, size_, MADV_HUGEPAGE);  // what is not in memory yet may come in pages of 2 MiB, which are read faster
#endif
  return true;
}

inline bool ModelFile::map_memory(const void* data, size_t size) {
  unmap();
  error.clear();
  if (reinterpret_cast<uintptr_t>(data) % kAlign) {
    error = "memory: expected an address on a 64-byte boundary";
    return false;
  }
  base_ = static_cast<const uint8_t*>(data);
  size_ = size;
  return true;
}

inline void ModelFile::unmap() {
  if (file_ >= 0) {
    if (base_) munmap(const_cast<uint8_t*>(base_), size_);
    ::close(file_);
  }
  base_ = nullptr, size_ = 0, file_ = -1;
  tokenizer_ = provenance_ = {};
  tensors_at_ = tensors_hash_ = checksum_ = 0;
}

inline bool ModelFile::verify_tensors() {
  const uint64_t found = hash_bytes(base_ + tensors_at_, size_ - tensors_at_);
  if (found == tensors_hash_) return true;
  error = "tensors: expected checksum " + std::to_string(tensors_hash_) + ", found " + std::to_string(found);
  return false;
}

// A row is read, not looked at where it is mapped: a page fault would bring 64 KiB around it into memory, to stay.
inline bool ModelFile::read_row(const Tensor& table, int index, float* x) const {
  const Type type = table.type;
  const size_t group = embedding_group_bytes(type), groups = size_t(padded(table.cols)) / kGroup;
  const uint8_t* row = table.data + size_t(index) * groups * group;
  uint8_t copy[4096];
  for (size_t g = 0, take; g < groups; g += take, row += take * group) {
    take = std::min(sizeof copy / group, groups - g);
    const uint8_t* from = row;
    if (file_ >= 0) {
      if (pread(file_, copy, take * group, off_t(row - base_)) != ssize_t(take * group)) return false;
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

// ====================================================================================================================
// 5. The blocks: rmsnorm, rope, swiglu, attention
// ====================================================================================================================
// Plain C++, written once. Section 8 compiles each body for every instruction set, and the compiler makes vectors of
// the loops. The bits stay the same, since the order of every sum is written down here: a sum over a vector has 16
// partial sums, element i in partial i mod 16, folded 8, 4, 2, 1; and every product that is added to something is an
// explicit fma, so that no compiler may decide otherwise.

#define POCKET_BODY inline __attribute__((always_inline))
#define POCKET_FOR(I, N) _Pragma("GCC unroll 16") for (int I = 0; I < N; I++)  // laid out flat

// Where sums must stay in registers the loops say so: W floats, which become one register (or two of SSE).
template <int W> struct Vector;
template <> struct Vector<4> {
  typedef float Floats __attribute__((vector_size(16)));
  typedef int32_t Ints __attribute__((vector_size(16)));
};
template <> struct Vector<8> {
  typedef float Floats __attribute__((vector_size(32)));
  typedef int32_t Ints __attribute__((vector_size(32)));
};
template <> struct Vector<16> {
  typedef float Floats __attribute__((vector_size(64)));
  typedef int32_t Ints __attribute__((vector_size(64)));
};

template <int W> struct Lanes {
  typedef typename Vector<W>::Floats Floats;
  typedef typename Vector<W>::Ints Ints;
  Floats v;

  POCKET_BODY void load(const float* p) { std::memcpy(&v, p, sizeof v); }
  POCKET_BODY void load(const int8_t* p) {
    int32_t wide[W];
    for (int i = 0; i < W; i++) wide[i] = p[i];
    Ints ints;
    std::memcpy(&ints, wide, sizeof ints);
    v = __builtin_convertvector(ints, Floats);  // lane by lane
  }
  POCKET_BODY void store(float* p) const { std::memcpy(p, &v, sizeof v); }

  POCKET_BODY void add(const float* p) {
    Lanes b;
    b.load(p);
    v += b.v;
  }
  POCKET_BODY void keep_larger(const float* p) {
    Lanes b;
    b.load(p);
    v = b.v > v ? b.v : v;
  }

  // += a * b, one rounding each.
  POCKET_BODY void add_product(float a, const Lanes& b) {
    float x[W], sum[W];
    std::memcpy(x, &b.v, sizeof x);
    std::memcpy(sum, &v, sizeof sum);
    for (int i = 0; i < W; i++) sum[i] = std::fma(a, x[i], sum[i]);
    std::memcpy(&v, sum, sizeof sum);
  }
};

POCKET_BODY float sum16(float* s) {
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; i++) s[i] += s[i + width];
  return s[0];
}

POCKET_BODY uint32_t float_bits(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return bits;
}

POCKET_BODY float bits_float(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

// Adding and taking away 1.5 * 2^23 rounds a float to an integer, half to even, for |x| < 2^22.
inline constexpr float kRound = 12582912.f;

// e^x within 2 units in the last place; below -87 it stays at e^-87, above 88 at e^88. x = n ln 2 + r with |r| <= ln 2
// / 2; ln 2 is split in two so that r is exact, e^r is a polynomial (Cephes, expf), and 2^n goes into the exponent.
POCKET_BODY float exp_body(float x) {
  x = x < -87.f ? -87.f : x > 88.f ? 88.f : x;
  const float shifted = std::fma(x, 1.44269504f, kRound), n = shifted - kRound;
  const float r = std::fma(n, 2.12194440e-4f, std::fma(n, -0.693359375f, x));
  float p = std::fma(1.9875691500e-4f, r, 1.3981999507e-3f);
  p = std::fma(p, r, 8.3334519073e-3f);
  p = std::fma(p, r, 4.1665795894e-2f);
  p = std::fma(p, r, 1.6666665459e-1f);
  p = std::fma(p, r, 5.0000001201e-1f);
  p = std::fma(p * r, r, r) + 1.f;
  return p * bits_float((float_bits(shifted) - float_bits(kRound) + 127u) << 23);
}

POCKET_BODY void exp_vector_body(float* x, int n) {
  for (int i = 0; i < n; i++) x[i] = exp_body(x[i]);
}

// y = x / sqrt(mean of x^2 + eps) * weight. n elements, with zeros behind them up to a multiple of 16.
POCKET_BODY void rmsnorm_body(const float* x, const float* weight, float* y, int n, float eps) {
  float s[16] = {};
  for (int i = 0; i < n; i += 16)
    for (int j = 0; j < 16; j++) s[j] = std::fma(x[i + j], x[i + j], s[j]);
  const float scale = 1.f / std::sqrt(sum16(s) / float(n) + eps);
  for (int i = 0; i < round_up(n, 16); i++) y[i] = x[i] * scale * weight[i];
}

// Groups of 32 to int8: scale = max|x| / 127, q = x / scale rounded half to even, and the sum of each group's q.
POCKET_BODY void quantize_body(const float* x, int n, int8_t* q, float* scale, int32_t* sum) {
  for (int g = 0; g < n / kGroup; g++, x += kGroup, q += kGroup) {
    uint32_t top = 0;  // for |x| the order of the bits is the order of the floats
    for (int i = 0; i < kGroup; i++) top = std::max(top, float_bits(x[i]) & 0x7fffffff);
    const float largest = bits_float(top);
    const float inverse = largest < 1e-30f ? 0.f : 127.f / largest;  // so small that 1 / scale may be infinite: zeros
    int32_t total = 0;
    for (int i = 0; i < kGroup; i++) {
      q[i] = int8_t(float_bits(std::fma(x[i], inverse, kRound)) - float_bits(kRound));
      total += q[i];
    }
    scale[g] = inverse == 0.f ? 0.f : largest / 127.f;
    sum[g] = total;
  }
}

// Rotary position embedding (Su et al. 2021), on halves: the pair (x[i], x[i + head_dim / 2]) is turned by the angle
// position * frequency i.
POCKET_BODY void rope_body(float* x, int heads, int head_dim, const float* cos, const float* sin) {
  const int half = head_dim / 2;
  for (int h = 0; h < heads; h++, x += head_dim)
    for (int i = 0; i < half; i++) {
      const float a = x[i], b = x[i + half];
      x[i] = std::fma(a, cos[i], -(b * sin[i]));
      x[i + half] = std::fma(b, cos[i], a * sin[i]);
    }
}

// gate = silu(gate) * up, silu(x) = x / (1 + e^-x).
POCKET_BODY void swiglu_body(float* gate, const float* up, int n) {
  for (int i = 0; i < n; i++) gate[i] = gate[i] / (1.f + exp_body(-gate[i])) * up[i];
}

// Attention, in blocks of 128 keys that start at fixed positions. A block's softmax is taken on its own, and the
// blocks' results are folded in order (the online softmax of FlashAttention, Dao et al. 2022), so that no score matrix
// exists and neither the batch nor the threads can change the order of a sum.
inline constexpr int kBlockKeys = 128;
inline constexpr int kQueries = 8;  // queries that go through a block together

// The keys and values of one layer and KV head, 128 positions of them. Keys lie in tiles of 16, transposed, so that a
// lane is a key: k[(tile * head_dim + i) * 16 + lane]. Values lie row by row, so that a lane is a component:
// v[key * width + i]. The numbers are int8 with one scale a key and one a value, or float32.
struct KvBlock {
  void *k, *v;
  float *k_scale, *v_scale;  // (128); that of k includes 1 / sqrt(head_dim)
  int head_dim;              // components of a key, and of a value
  int width;                 // head_dim padded to 16
  ptrdiff_t ahead = 0;       // bytes to the block that comes next, so that it can be on its way; 0: none

  int key_at(int key) const { return key / 16 * 16 * head_dim + key % 16; }  // its first component; the others: + 16 i
};

// Bytes of a KvBlock, in the order k_scale, v_scale, k, v.
inline size_t kv_block_bytes(int head_dim, bool f32, int keys = kBlockKeys) {
  const size_t scales = 2 * size_t(keys) * sizeof(float), number = f32 ? sizeof(float) : 1;
  return scales + size_t(keys) * (size_t(head_dim) + round_up(head_dim, 16)) * number;
}

// The block of so many keys that lies at `at`.
inline KvBlock kv_block_at(uint8_t* at, int head_dim, bool f32, int keys = kBlockKeys) {
  float* scales = reinterpret_cast<float*>(at);
  uint8_t* k = at + 2 * size_t(keys) * sizeof(float);
  uint8_t* v = k + size_t(keys) * head_dim * (f32 ? sizeof(float) : 1);
  return {k, v, scales, scales + keys, head_dim, round_up(head_dim, 16)};
}

// The result of attention over some keys: the largest score, the sum of e^(score - largest), and from float 16 on the
// values weighted by e^(score - largest).
inline size_t attention_floats(int head_dim) { return 16 + size_t(round_up(head_dim, 16)); }

// Of each of B blocks of 16 lanes the sum of rows 0 ... rows - 1, each times coefficient[n][row], into out[n] (16 * B)
// from `at` on. Rows are `step` elements from one to the next, blocks `between`. A row is loaded and converted once for
// N outputs, and with it goes a prefetch (into the L2 cache) of what lies `ahead` bytes on, which will be wanted next.
template <int W, class T, int N, int B>
POCKET_BODY void combine_blocks(const T* a, int rows, ptrdiff_t step, ptrdiff_t between, ptrdiff_t ahead,
                                const float* const* coefficient, float* const* out, int at) {
  constexpr int kParts = 16 / W;
  Lanes<W> acc[B][N][kParts] = {};
  for (int i = 0; i < rows; i++)
    POCKET_FOR (b, B) {
      Lanes<W> row[kParts];
      const T* lanes = a + b * between + i * step;
      __builtin_prefetch(reinterpret_cast<const uint8_t*>(lanes) + ahead, 0, 2);
      POCKET_FOR (p, kParts) row[p].load(lanes + p * W);
      POCKET_FOR (n, N)
        POCKET_FOR (p, kParts) acc[b][n][p].add_product(coefficient[n][i], row[p]);
    }
  POCKET_FOR (b, B)
    POCKET_FOR (n, N)
      POCKET_FOR (p, kParts) acc[b][n][p].store(out[n] + at + 16 * b + p * W);
}

// The same for any number of blocks. Where outputs are few, several blocks go together: an fma waits four cycles for
// the one before it, so that it takes eight sums or more to keep the CPU's two units busy.
template <int W, class T, int N>
POCKET_BODY void combine(const T* a, int rows, ptrdiff_t step, ptrdiff_t between, int blocks, ptrdiff_t ahead,
                         const float* const* coefficient, float* const* out) {
  constexpr int kTogether = N == 1 || (W == 16 && N < 8) ? 4 : 1;
  int b = 0;
  for (; b + kTogether <= blocks; b += kTogether)
    combine_blocks<W, T, N, kTogether>(a + b * between, rows, step, between, ahead, coefficient, out, 16 * b);
  for (; b < blocks; b++)
    combine_blocks<W, T, N, 1>(a + b * between, rows, step, between, ahead, coefficient, out, 16 * b);
}

// Scores of `keys` keys to the weights of their values; top is the largest score, sum that of all e^(score - top).
template <int W> POCKET_BODY void softmax_scores(float* s, int keys, const KvBlock& kv, float& top, float& sum) {
  constexpr int kParts = 16 / W;
  const int end = round_up(keys, 16);
  for (int j = 0; j < end; j++) s[j] *= kv.k_scale[j];
  for (int j = keys; j < end; j++) s[j] = -std::numeric_limits<float>::infinity();
  Lanes<W> tops[kParts], sums[kParts] = {};
  POCKET_FOR (p, kParts) tops[p].load(s + p * W);
  for (int j = 16; j < end; j += 16)
    POCKET_FOR (p, kParts) tops[p].keep_larger(s + j + p * W);
  float largest[16], total[16];
  POCKET_FOR (p, kParts) tops[p].store(largest + p * W);
  top = largest[0];
  for (int l = 1; l < 16; l++) top = largest[l] > top ? largest[l] : top;
  const float highest = top;
  for (int j = 0; j < end; j++) s[j] = exp_body(s[j] - highest);
  for (int j = keys; j < end; j++) s[j] = 0;
  for (int j = 0; j < end; j += 16)
    POCKET_FOR (p, kParts) sums[p].add(s + j + p * W);
  POCKET_FOR (p, kParts) sums[p].store(total + p * W);
  sum = sum16(total);
  for (int j = 0; j < end; j++) s[j] *= kv.v_scale[j];
}

// N queries (head_dim) against the first keys[n] keys of a block; out[n] gets attention_floats.
template <int W, class T, int N>
POCKET_BODY void attend_block(const KvBlock& kv, const float* const* q, const int* keys, float* const* out) {
  alignas(64) float score[N][kBlockKeys] = {};
  int shortest = keys[0], longest = keys[0];
  for (int n = 1; n < N; n++) shortest = std::min(shortest, keys[n]), longest = std::max(longest, keys[n]);
  float* tiles[N];
  for (int n = 0; n < N; n++) tiles[n] = score[n];
  combine<W, T, N>(static_cast<const T*>(kv.k), kv.head_dim, 16, 16 * kv.head_dim, (longest + 15) / 16, kv.ahead, q,
                   tiles);
  const float* weights[N];
  float* values[N];
  for (int n = 0; n < N; n++) {
    softmax_scores<W>(score[n], keys[n], kv, out[n][0], out[n][1]);
    weights[n] = score[n], values[n] = out[n] + 16;
  }
  const T* v = static_cast<const T*>(kv.v);
  combine<W, T, N>(v, shortest, kv.width, 16, kv.width / 16, kv.ahead, weights, values);
  for (int n = 0; n < N; n++)  // queries of later tokens see some keys more
    for (int j = shortest; j < keys[n]; j++)
      for (int i = 0; i < kv.width; i++)
        values[n][i] = std::fma(score[n][j], float(v[size_t(j) * kv.width + i]), values[n][i]);
}

template <int W, class T>
POCKET_BODY void attend_body(const KvBlock& kv, int n, const float* const* q, const int* keys, float* const* out) {
  int i = 0;
  if constexpr (W == 16)  // which has registers for the sums of eight
    for (; i + 8 <= n; i += 8) attend_block<W, T, 8>(kv, q + i, keys + i, out + i);
  for (; i + 4 <= n; i += 4) attend_block<W, T, 4>(kv, q + i, keys + i, out + i);
  for (; i + 3 <= n; i += 3) attend_block<W, T, 3>(kv, q + i, keys + i, out + i);
  for (; i < n; i++) attend_block<W, T, 1>(kv, q + i, keys + i, out + i);
}

// Folds the result of one more block into that of the blocks before it.
POCKET_BODY void fold_body(float* state, const float* part, int width) {
  const bool higher = part[0] > state[0];
  const float less = exp_body(higher ? state[0] - part[0] : part[0] - state[0]);  // for the one with the lower top
  const float a = higher ? less : 1.f, b = higher ? 1.f : less;
  if (higher) state[0] = part[0];
  state[1] = std::fma(state[1], a, part[1] * b);
  for (int i = 16; i < 16 + width; i++) state[i] = std::fma(state[i], a, part[i] * b);
}

// Panels of an f32 matrix times n tokens: a panel is (cols, 16), and its 16 rows' sums are one combination of its rows.
template <int W>
POCKET_BODY void matmul_f32_body(const Tensor& w, int first, int count, const Activations& x, int n, float* y,
                                 size_t ldy) {
  const ptrdiff_t ahead = ptrdiff_t(panel_bytes(w.type, w.cols));
  for (int p = first; p < first + count; p++) {
    const float* panel = reinterpret_cast<const float*>(w.data + size_t(p) * ahead);
    for (int t = 0; t < n;) {
      const float* in[4];
      float* out[4];
      for (int i = 0; i < 4; i++) {
        in[i] = x.f + size_t(std::min(t + i, n - 1)) * x.cols;
        out[i] = y + std::min(t + i, n - 1) * ldy + size_t(p) * kPanelRows;
      }
      n - t >= 4 ? combine_blocks<W, float, 4, 1>(panel, x.cols, kPanelRows, 0, ahead, in, out, 0)
                 : combine_blocks<W, float, 1, 1>(panel, x.cols, kPanelRows, 0, ahead, in, out, 0);
      t += n - t >= 4 ? 4 : 1;
    }
  }
}

// Rotary angles in double precision of our own, from nothing but + - * / and fma, which are exact to the last bit
// everywhere; the C library's sin, cos, exp and log are not.
namespace exact {

inline double log(double x) {  // ln x = e ln 2 + 2 artanh((m - 1) / (m + 1)), m in [0.7, 1.4]
  int e;
  double m = std::frexp(x, &e);
  if (m < 0.70710678118654752) m *= 2, e--;
  const double z = (m - 1) / (m + 1), z2 = z * z;
  double sum = 0;
  for (int k = 23; k >= 1; k -= 2) sum = std::fma(sum, z2, 1.0 / k);
  return std::fma(double(e), 0.69314718055994531, 2 * z * sum);
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

// Radians per position of rotary pair i. Scaling: "linear" divides all positions by the factor; "llama3" does so for
// the pairs that turn slowly over the original context and leaves the fast ones alone, with a smooth passage between.
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

// ====================================================================================================================
// 6. forward
// ====================================================================================================================

inline constexpr int kLogitRows = 8;    // tokens whose logits are computed together, where all are asked for
inline constexpr int kTileTokens = 16;  // tokens of one attention task of a prompt

inline const Kernels* find_kernels(const char* name);  // section 8; null: the best

inline bool packs(const Kernels& k, int n) { return k.matmul_packed && n > kFewTokens; }

inline Activations Activations::of(const Kernels& k, int n) const {
  Activations x = *this;
  x.use_packed = packs(k, n);
  return x;
}

template <class Take> void Activations::place(int width, bool floats, const Take& take) {
  const size_t count = size_t(kChunk) * padded(width);
  cols = padded(width);
  f = nullptr;
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

inline void Activations::quantize_token(const Kernels& k, int t, int n) const {
  quantize(k, f + size_t(t) * cols, t, n, 0, cols);
}

// About how many nanoseconds these take one thread of a CPU of today, for the pool: a matmul with weights of so many
// bytes, n vectors that are passed over once, and the attention of one token to so many keys.
inline double matmul_work(size_t bytes, int n) { return double(bytes) * n / 16; }
inline double vector_work(int width, int n) { return double(width) * n / 2; }
inline double attention_work(int q_dim, int keys) { return double(keys) * q_dim / 16; }

// f(t) for each of n tokens. A thread gets up to 16 neighbours, since what they leave in the cache of keys and for
// packed matmuls shares cache lines, and those should not travel to and fro.
template <class F> void each_token(Pool& pool, int n, double work, const F& f) {
  pool.parallel_ranges(n, std::clamp(n / pool.threads(), 1, 16), work, [&](int first, int end) {
    for (int t = first; t < end; t++) f(t);
  });
}

struct Product {
  const Tensor& w;
  float* y;  // (n, rows padded to 64)
};

// Panels that a matmul of n tokens takes together: four, which are read as four streams at once (reads_four_streams),
// or, where each is used for many tokens, two.
inline int run_unit(int n) { return n == 1 ? 4 : 2; }

// y = w f for each product: matrices that share their input go through in one pass, as if one stood under the other.
inline void matmul(const Kernels& k, Pool& pool, std::initializer_list<Product> products, const Activations& in,
                   int n) {
  int total = 0;
  size_t bytes = 0;
  for (const Product& p : products) total += panels_of(p.w.rows), bytes += p.w.bytes;
  pool.parallel_ranges(total, run_unit(n), matmul_work(bytes, n), [&](int first, int end) {
    for (const Product& p : products) {
      const int panels = panels_of(p.w.rows), from = std::max(first, 0), to = std::min(end, panels);
      if (from < to) matmul_panels(k, p.w, from, to - from, in.of(k, n), n, p.y, size_t(padded(p.w.rows)));
      first -= panels;  // relative to the next product's first panel
      end -= panels;
    }
  });
}

inline int thread_count(const SessionOptions& o) {
  return o.threads > 0 ? std::min(o.threads, 256) : std::max(1, int(std::thread::hardware_concurrency()));
}
inline bool keeps_f32(const SessionOptions& o, const ModelFile& model) {
  return o.kv == KvType::f32 || (o.kv == KvType::automatic && model.all_f32);
}

// A session's memory, laid out in one reservation from `base` on; with base null, to see how large it will be. n tokens
// of a chunk, at most kChunk; widths are padded to 64 with zeros.
struct Session::Buffers {
  int context, threads;
  bool kv_f32;
  uint8_t* kv;            // (blocks of keys, layers, KV heads, kv_block_bytes)
  float* x;               // (n, dim): the residual stream
  Activations xn;    // (n, dim): its norm; .f also takes what is to be added to it
  Activations q;     // (n, q_dim): queries, and then the attention's output
  float *k, *v;           // (n, kv_dim)
  Activations gate;  // (n, hidden_dim): what the down matrix takes; .f is null where that is quantized
  float *cos, *sin;       // (n, head_dim / 2): rotations of the chunk's positions
  float* partial;         // attention so far, per thread and query; or per block of keys and query
  float* logits;          // (kLogitRows, vocab_size)
  size_t kv_block, kv_position, token_bytes, partial_bytes, logit_bytes, bytes;  // of one each; of all

  Buffers(const Model& model, const SessionOptions& o, uint8_t* base) {
    const Config& c = model.config;
    context = o.context > 0 ? o.context : c.max_seq_len;
    threads = thread_count(o);
    kv_f32 = keeps_f32(o, model);
    const size_t blocks = (size_t(context) + kBlockKeys - 1) / kBlockKeys, group = size_t(c.n_heads / c.n_kv_heads);
    const size_t half = size_t(c.head_dim) / 2;
    uintptr_t at = reinterpret_cast<uintptr_t>(base);
    const auto take = [&](auto& pointer, size_t count) {
      pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(at);
      at += round_up<size_t>(count * sizeof *pointer, 64);
    };
    kv_block = kv_block_bytes(c.head_dim, kv_f32);
    kv_position = kv_block * c.n_layers * c.n_kv_heads / kBlockKeys;
    take(kv, blocks * kBlockKeys * kv_position);
    const uintptr_t tokens = at;
    take(x, size_t(kChunk) * padded(c.dim));
    xn.place(c.dim, true, take);
    q.place(c.q_dim(), true, take);
    for (float** buffer : {&k, &v}) take(*buffer, size_t(kChunk) * padded(c.kv_dim()));
    const auto takes_floats = [](const Layer& l) { return l.w2.type == Type::f32; };
    gate.place(c.hidden_dim, std::any_of(model.layers.begin(), model.layers.end(), takes_floats), take);
    for (float** buffer : {&cos, &sin}) take(*buffer, kChunk * half);
    token_bytes = (at - tokens) / kChunk;
    take(partial, std::max(threads * kTileTokens * group, c.n_heads * blocks) * attention_floats(c.head_dim));
    partial_bytes = at - reinterpret_cast<uintptr_t>(partial);
    take(logits, size_t(kLogitRows) * padded(c.vocab_size));
    logit_bytes = size_t(padded(c.vocab_size)) * sizeof(float);
    bytes = at - reinterpret_cast<uintptr_t>(base);
  }
};

inline std::vector<MemoryItem> memory_of(const Model& model, const SessionOptions& options, int tokens) {
  const Session::Buffers b(model, options, nullptr);
  const size_t filled = size_t(std::min(tokens, b.context));
  return {{"weights", model.bytes_per_token},
          {"keys and values", filled * b.kv_position},
          {"activations", std::min<size_t>(filled, kChunk) * b.token_bytes + b.partial_bytes},
          {"logits and sampler", 4 * b.logit_bytes}};
}

inline Session::Session(const Model& model, SessionOptions options) : model_(model) {
  try {
    if (!prepare(options)) pool_.reset();
  } catch (const std::bad_alloc&) {
    pool_.reset();
    error = "session: out of memory";
  }
}

inline Session::~Session() {
  if (buf_) munmap(buf_->kv, buf_->bytes);
}

inline int Session::threads() const { return pool_ ? pool_->threads() : 0; }
inline int Session::context() const { return pool_ ? buf_->context : 0; }
inline bool Session::kv_f32() const { return pool_ && buf_->kv_f32; }
inline const char* Session::kernel() const { return kernels_ ? kernels_->name : ""; }

// The kernel set of that name, or the best; null with `error` set where this CPU has none such.
inline const Kernels* choose_kernels(const char* name, std::string& error) {
  const Kernels* kernels = find_kernels(name);
  if (kernels) return kernels;
  error = std::string("kernel: '") + name + "' is none of this CPU's:";
  for (const std::string& known : kernel_names()) error += " " + known;
  return nullptr;
}

// One reservation, zero, which the system fills page by page as it is touched: a cache costs what is used of it. Null
// with `error` set where there is no room.
inline uint8_t* reserve_memory(size_t bytes, std::string& error) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    error = "session: no memory for " + std::to_string(bytes >> 20) + " MiB; a smaller context needs less";
    return nullptr;
  }
#ifdef MADV_NOHUGEPAGE
  madvise(memory, bytes, MADV_NOHUGEPAGE);  // or the first key of a block would bring 2 MiB with it
#endif
  return static_cast<uint8_t*>(memory);
}

inline bool Session::prepare(const SessionOptions& options) {
  if (model_.layers.empty()) return error = "session: the model is not open", false;
  if (options.context < 0)
    return error = "session: context: expected 0 or more, found " + std::to_string(options.context), false;
  if (!(kernels_ = choose_kernels(options.kernel, error))) return false;
  uint8_t* memory = reserve_memory(Buffers(model_, options, nullptr).bytes, error);
  if (!memory) return false;
  buf_ = std::make_unique<Buffers>(model_, options, memory);
  for (int i = 0; i < model_.config.head_dim / 2; i++) frequencies_.push_back(rope_frequency(model_.config, i));
  pool_ = std::make_unique<Pool>(buf_->threads);
  return true;
}

inline bool Session::check(const int* ids, size_t n) {
  if (!pool_) return false;  // error says why
  error.clear();
  const size_t room = size_t(buf_->context - position_);
  if (n == 0 || !ids) error = "forward: no tokens";
  if (n > room) error = "context: room for " + std::to_string(room) + " more tokens, not for " + std::to_string(n);
  for (size_t i = 0; i < n && error.empty(); i++)
    if (ids[i] < 0 || ids[i] >= vocab_size())
      error = "token " + std::to_string(i) + ": expected an id below " + std::to_string(vocab_size()) + ", found " +
              std::to_string(ids[i]);
  return error.empty();
}

inline const float* Session::forward(const int* ids, size_t n) {
  return process(ids, n, nullptr) ? logits_of(int((n - 1) % kChunk), 1) : nullptr;
}

inline bool Session::forward(const int* ids, size_t n, const EachLogits& each) { return process(ids, n, &each); }

inline bool Session::process(const int* ids, size_t n, const EachLogits* each) {
  if (!check(ids, n)) return false;
  const int start = position_;
  for (size_t i = 0; i < n; i += kChunk) {
    const int size = int(std::min<size_t>(kChunk, n - i));
    if (!chunk(ids + i, size)) return position_ = start, false;
    for (int t = 0; each && t < size; t += kLogitRows) {
      const int rows = std::min(kLogitRows, size - t);
      const float* logits = logits_of(t, rows);
      for (int r = 0; r < rows; r++)
        if (!(*each)(i + t + r, logits + size_t(r) * padded(vocab_size())))
          return position_ = start + int(i) + t + r + 1, true;
    }
  }
  return true;
}

// n tokens (at most kChunk) through all layers; buf_->x then holds what the last layer left.
inline bool Session::chunk(const int* ids, int n) {
  const Config& c = model_.config;
  const int half = c.head_dim / 2;
  for (int t = 0; t < n; t++) {
    if (!model_.embed(ids[t], buf_->x + size_t(t) * padded(c.dim)))
      return error = "token_embedding: row " + std::to_string(ids[t]) + " cannot be read any more", false;
    for (int i = 0; i < half; i++) {
      double sin, cos;
      exact::sincos((position_ + t) * frequencies_[i], sin, cos);
      buf_->sin[t * half + i] = float(sin);
      buf_->cos[t * half + i] = float(cos);
    }
  }
  for (int l = 0; l < c.n_layers; l++) {
    if (cancelled_.exchange(false, std::memory_order_relaxed)) return error = "cancelled", false;
    layer(l, n);
  }
  position_ += n;
  return true;
}

// One layer: x += wo attention(norm(x)); x += w2 (silu(w1 norm(x)) * w3 norm(x)).
inline void Session::layer(int l, int n) {
  const Config& c = model_.config;
  const Layer& w = model_.layers[l];

  norm_input(w.attention_norm, 0, n);
  matmul({{w.wq, buf_->q.f}, {w.wk, buf_->k}, {w.wv, buf_->v}}, buf_->xn, n);
  store_kv(l, n);
  if (observer_) show_attention(l, n);
  attention(l, n);
  matmul({{w.wo, buf_->xn.f}}, buf_->q, n);
  add_residual(n);

  norm_input(w.ffn_norm, 0, n);
  gate_and_up(w, n);
  matmul({{w.w2, buf_->xn.f}}, buf_->gate, n);
  add_residual(n);

  for (int t = 0; observer_ && t < n; t++)
    observer_({Observation::layer_output, l, -1, position_ + t, buf_->x + size_t(t) * padded(c.dim), c.dim});
}

// Token t of n, quantized for the matmul that comes next. Float weights take their inputs as they are.
inline void Session::quantize(const Activations& in, int t, int n) {
  if (!model_.all_f32) in.quantize_token(*kernels_, t, n);
}

// xn = rmsnorm(x), for the tokens from `first` on; row 0 of xn is the first of them.
inline void Session::norm_input(const Tensor& weight, int first, int n) {
  const Config& c = model_.config;
  const float* w = reinterpret_cast<const float*>(weight.data);
  each_token(*pool_, n, vector_work(c.dim, n), [&](int t) {
    const size_t at = size_t(t) * padded(c.dim);
    kernels_->rmsnorm(buf_->x + size_t(first) * padded(c.dim) + at, w, buf_->xn.f + at, c.dim, c.norm_eps);
    quantize(buf_->xn, t, n);
  });
}

inline void Session::add_residual(int n) {
  const size_t width = size_t(padded(model_.config.dim));
  each_token(*pool_, n, vector_work(int(width), n), [&](int t) {
    for (size_t i = t * width; i < (t + 1) * width; i++) buf_->x[i] += buf_->xn.f[i];
  });
}

inline void Session::matmul(std::initializer_list<Product> products, const Activations& in, int n) {
  pocket::matmul(*kernels_, *pool_, products, in, n);
}

// gate = silu(w1 xn) * (w3 xn). A task takes some groups of 32 rows of both matrices, and goes on with what they gave
// while that is at hand: one group of a long chunk, more of a short one.
inline void Session::gate_and_up(const Layer& w, int n) {
  const Buffers& b = *buf_;
  const int per_group = kGroup / kPanelRows, panels = panels_of(w.w1.rows), piece = kChunk / n;
  const double work = matmul_work(w.w1.bytes + w.w3.bytes, n);
  const Activations x = b.xn.of(*kernels_, n);
  const auto rows_from = [](Tensor w, int panel) {  // of a matrix, the rows from a panel on
    w.data += size_t(panel) * panel_bytes(w.type, w.cols);
    return w;
  };
  pool_->parallel_ranges(b.gate.cols / kGroup, run_unit(n) / per_group, work, [&](int first, int end) {
    alignas(64) float gate[kChunk * kGroup], up[kChunk * kGroup];
    for (int at = first; at < end; at += piece) {
      const int panel = at * per_group, cols = std::min(piece, end - at) * kGroup;
      const int count = std::max(0, std::min(cols / kPanelRows, panels - panel));
      if (count * kPanelRows < cols) std::fill_n(gate, n * cols, 0.f), std::fill_n(up, n * cols, 0.f);  // padding
      matmul_panels(*kernels_, rows_from(w.w1, panel), 0, count, x, n, gate, size_t(cols));
      matmul_panels(*kernels_, rows_from(w.w3, panel), 0, count, x, n, up, size_t(cols));
      for (int t = 0; t < n; t++) {
        float* g = gate + size_t(t) * cols;
        kernels_->swiglu(g, up + size_t(t) * cols, cols);
        if (!model_.all_f32) b.gate.quantize(*kernels_, g, t, n, at * kGroup, cols);
        if (b.gate.f) std::memcpy(b.gate.f + size_t(t) * b.gate.cols + at * kGroup, g, cols * sizeof(float));
      }
    }
  });
}

inline KvBlock Session::kv_block(int l, int kv_head, int block) const {
  const Config& c = model_.config;
  uint8_t* at = buf_->kv + ((size_t(block) * c.n_layers + l) * c.n_kv_heads + kv_head) * buf_->kv_block;
  KvBlock kv = kv_block_at(at, c.head_dim, buf_->kv_f32);
  if (block < position_ / kBlockKeys) kv.ahead = ptrdiff_t(buf_->kv_block) * c.n_layers * c.n_kv_heads;
  return kv;
}

// One vector of a head into the cache, element i at out[i * stride]; returns its scale.
template <class T> float store_vector(const float* x, int n, T* out, int stride) {
  if constexpr (sizeof(T) == 4) {
    for (int i = 0; i < n; i++) out[i * stride] = x[i];
    return 1;
  } else {
    float largest = 0;
    for (int i = 0; i < n; i++) largest = std::max(largest, std::fabs(x[i]));
    const float inverse = largest < 1e-30f ? 0.f : 127.f / largest;
    for (int i = 0; i < n; i++) out[i * stride] = T(float_bits(std::fma(x[i], inverse, kRound)) - float_bits(kRound));
    return inverse == 0.f ? 0.f : largest / 127.f;
  }
}

// A key and a value of one head (head_dim) into their places in a block.
inline void store_key(const KvBlock& kv, bool f32, int key, const float* k, const float* v) {
  const float root = 1.f / std::sqrt(float(kv.head_dim));
  const auto store = [&](auto* keys, auto* values) {
    kv.k_scale[key] = root * store_vector(k, kv.head_dim, keys + kv.key_at(key), 16);
    kv.v_scale[key] = store_vector(v, kv.head_dim, values + key * kv.width, 1);
  };
  if (f32)
    store(static_cast<float*>(kv.k), static_cast<float*>(kv.v));
  else
    store(static_cast<int8_t*>(kv.k), static_cast<int8_t*>(kv.v));
}

// Turns queries and keys to their positions, and puts keys and values into the cache.
inline void Session::store_kv(int l, int n) {
  const Config& c = model_.config;
  const int half = c.head_dim / 2;
  each_token(*pool_, n, vector_work(c.q_dim() + 2 * c.kv_dim(), n), [&](int t) {
    float* k = buf_->k + size_t(t) * padded(c.kv_dim());
    float* v = buf_->v + size_t(t) * padded(c.kv_dim());
    const float *cos = buf_->cos + t * half, *sin = buf_->sin + t * half;
    kernels_->rope(buf_->q.f + size_t(t) * padded(c.q_dim()), c.n_heads, c.head_dim, cos, sin);
    kernels_->rope(k, c.n_kv_heads, c.head_dim, cos, sin);
    const int key = (position_ + t) % kBlockKeys;
    for (int h = 0; h < c.n_kv_heads; h++, k += c.head_dim, v += c.head_dim) {
      store_key(kv_block(l, h, (position_ + t) / kBlockKeys), buf_->kv_f32, key, k, v);
    }
  });
}

// q = softmax(q k / sqrt(head_dim)) v, and its quantized form.
inline void Session::attention(int l, int n) {
  if (n == 1)
    attend_token(l);
  else
    attend_prompt(l, n);
  each_token(*pool_, n, vector_work(buf_->q.cols, n), [&](int t) { quantize(buf_->q, t, n); });
}

// A vector that looks for keys, how many keys of a block it may see, and where what it finds goes (attention_floats).
struct Query {
  const float* q;
  int keys;
  float* state;
};

// n queries, query(i) each, against one block of keys: what they find becomes, or is folded into, their state. Only
// those that may see a key of the block take part.
template <class GetQuery>
void attend_queries(const Kernels& k, const KvBlock& kv, bool f32, int n, bool fold, const GetQuery& query) {
  alignas(64) float part[kQueries][16 + kMaxHeadDim];
  const float* q[kQueries];
  int keys[kQueries], ready = 0;
  float *states[kQueries], *out[kQueries];
  for (int i = 0; i < n; i++) {
    const Query next = query(i);
    if (next.keys <= 0) continue;  // those that see nothing of the block come first
    q[ready] = next.q;
    keys[ready] = next.keys;
    states[ready] = next.state;
    out[ready] = fold ? part[ready] : states[ready];
    if (++ready < kQueries && i + 1 < n) continue;
    (f32 ? k.attend_f32 : k.attend_q8)(kv, ready, q, keys, out);
    for (int j = 0; j < ready && fold; j++) k.fold(states[j], part[j], kv.width);
    ready = 0;
  }
}

// The queries of one KV head and of n tokens, from `first` on, against one block. state: (n * group).
inline void Session::attend_group(int l, int kv_head, int block, int first, int n, float* state, bool fold) {
  const Config& c = model_.config;
  const size_t record = attention_floats(c.head_dim);
  const int group = c.n_heads / c.n_kv_heads;
  attend_queries(*kernels_, kv_block(l, kv_head, block), buf_->kv_f32, n * group, fold, [&](int i) {
    const int t = first + i / group, head = kv_head * group + i % group;
    const int visible = std::min(kBlockKeys, position_ + t + 1 - block * kBlockKeys);
    return Query{buf_->q.f + size_t(t) * padded(c.q_dim()) + head * c.head_dim, visible, state + i * record};
  });
}

// Several tokens: a task takes some of them and one KV head through all blocks.
inline void Session::attend_prompt(int l, int n) {
  const Config& c = model_.config;
  const size_t record = attention_floats(c.head_dim);
  const int group = c.n_heads / c.n_kv_heads, tiles = (n + kTileTokens - 1) / kTileTokens;
  pool_->parallel_for(tiles * c.n_kv_heads, attention_work(c.q_dim(), position_ + n) * n, [&](int task, int thread) {
    const int kv_head = task % c.n_kv_heads, first = task / c.n_kv_heads * kTileTokens;
    const int tokens = std::min(kTileTokens, n - first), last_block = (position_ + first + tokens - 1) / kBlockKeys;
    float* state = buf_->partial + size_t(thread) * kTileTokens * group * record;
    for (int b = 0; b <= last_block; b++) attend_group(l, kv_head, b, first, tokens, state, b > 0);
    for (int i = 0; i < tokens * group; i++)
      finish_head(state + i * record, first + i / group, kv_head * group + i % group);
  });
}

// One token: KV heads and blocks are all spread over the threads, so that a long context keeps them busy. The blocks'
// results are folded afterwards, in the same order as above.
inline void Session::attend_token(int l) {
  const Config& c = model_.config;
  const size_t record = attention_floats(c.head_dim);
  const int group = c.n_heads / c.n_kv_heads, blocks = position_ / kBlockKeys + 1;
  const auto part = [&](int block, int head) { return buf_->partial + (size_t(block) * c.n_heads + head) * record; };
  const auto finish = [&](int kv_head, int) {
    for (int head = kv_head * group; head < (kv_head + 1) * group; head++) {
      for (int b = 1; b < blocks; b++) kernels_->fold(part(0, head), part(b, head), round_up(c.head_dim, 16));
      finish_head(part(0, head), 0, head);
    }
  };
  pool_->parallel_ranges(blocks * c.n_kv_heads, 1, attention_work(c.q_dim(), position_ + 1), [&](int first, int end) {
    for (int i = first; i < end; i++) {
      const int kv_head = i / blocks, block = i % blocks;
      attend_group(l, kv_head, block, 0, 1, part(block, kv_head * group), false);
      if (blocks == 1) finish(kv_head, 0);
    }
  });
  if (blocks > 1) pool_->parallel_for(c.n_kv_heads, vector_work(c.q_dim(), blocks), finish);
}

inline void Session::finish_head(const float* state, int t, int head) {
  const Config& c = model_.config;
  float* y = buf_->q.f + size_t(t) * padded(c.q_dim()) + head * c.head_dim;
  const float scale = 1.f / state[1];
  for (int i = 0; i < c.head_dim; i++) y[i] = state[16 + i] * scale;
}

// For an observer only: forward() never needs all weights at once.
inline void Session::show_attention(int l, int n) {
  const Config& c = model_.config;
  std::vector<float> weights;
  for (int t = 0; t < n; t++)
    for (int head = 0; head < c.n_heads; head++) {
      const float* q = buf_->q.f + size_t(t) * padded(c.q_dim()) + head * c.head_dim;
      const int keys = position_ + t + 1;
      weights.assign(keys, 0.f);
      for (int j = 0; j < keys; j++) {
        const KvBlock kv = kv_block(l, head / (c.n_heads / c.n_kv_heads), j / kBlockKeys);
        const int key = j % kBlockKeys, at = key / 16 * 16 * c.head_dim + key % 16;
        for (int i = 0; i < c.head_dim; i++) {
          const int k = at + i * 16;
          weights[j] =
              std::fma(q[i], buf_->kv_f32 ? static_cast<float*>(kv.k)[k] : static_cast<int8_t*>(kv.k)[k], weights[j]);
        }
        weights[j] *= kv.k_scale[key];
      }
      const float top = *std::max_element(weights.begin(), weights.end());
      float sum = 0;
      for (float& w : weights) sum += w = exp_body(w - top);
      for (float& w : weights) w /= sum;
      observer_({Observation::attention, l, head, position_ + t, weights.data(), keys});
    }
}

// Logits of n tokens of the chunk, from `first` on: (n, vocab_size padded to 64).
inline const float* Session::logits_of(int first, int n) {
  norm_input(model_.final_norm, first, n);
  matmul({{model_.output, buf_->logits}}, buf_->xn, n);
  return buf_->logits;
}

inline size_t Session::position_bytes() const {
  const size_t number = kv_f32() ? sizeof(float) : 1;
  return size_t(model_.config.n_layers) * model_.config.n_kv_heads * (2 * sizeof(float)) +
         2 * size_t(model_.config.n_layers) * model_.config.kv_dim() * number;
}

// Layer by layer and head by head: the scales of key and value, the key, the value.
inline void Session::copy_position(int position, uint8_t* bytes, bool restore) const {
  const Config& c = model_.config;
  const int key = position % kBlockKeys;
  const auto copy = [&](auto* cached, int n, int stride) {
    for (int i = 0; i < n; i++, cached += stride, bytes += sizeof *cached)
      restore ? std::memcpy(cached, bytes, sizeof *cached) : std::memcpy(bytes, cached, sizeof *cached);
  };
  for (int i = 0; i < c.n_layers * c.n_kv_heads; i++) {
    const KvBlock kv = kv_block(i / c.n_kv_heads, i % c.n_kv_heads, position / kBlockKeys);
    const auto vectors = [&](auto* keys, auto* values) {
      copy(keys + kv.key_at(key), c.head_dim, 16);
      copy(values + key * kv.width, c.head_dim, 1);
    };
    copy(kv.k_scale + key, 1, 1);
    copy(kv.v_scale + key, 1, 1);
    if (buf_->kv_f32)
      vectors(static_cast<float*>(kv.k), static_cast<float*>(kv.v));
    else
      vectors(static_cast<int8_t*>(kv.k), static_cast<int8_t*>(kv.v));
  }
}

inline void Session::append_position(const uint8_t* bytes) {
  if (position_ < context()) copy_position(position_++, const_cast<uint8_t*>(bytes), true);
}

// ====================================================================================================================
// 7. Sampler, generate, chat
// ====================================================================================================================

inline Sampler::Sampler(SamplerOptions options)
    : options_(options), kernels_(find_kernels(nullptr)), state_(options.seed) {
  std::fill(recent_, recent_ + kRepeatWindow, -1);
}

// SplitMix64 (Steele, Lea and Flood 2014): 24 of its 64 bits make a float in [0, 1).
inline float Sampler::random() {
  uint64_t z = state_ += 0x9E3779B97F4A7C15;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
  z = (z ^ z >> 27) * 0x94D049BB133111EB;
  return float((z ^ z >> 31) >> 40) / 16777216.f;
}

inline void Sampler::remember(int id) { recent_[next_++ % kRepeatWindow] = id; }

// Keskar et al. 2019 (CTRL); each token once, however often it occurred.
inline void Sampler::penalize(int n) {
  if (options_.repeat_penalty == 1.f) return;
  for (size_t i = 0; i < kRepeatWindow; i++) {
    const int id = recent_[i];
    if (id < 0 || id >= n || std::find(recent_, recent_ + i, id) != recent_ + i) continue;
    work_[id] = work_[id] > 0 ? work_[id] / options_.repeat_penalty : work_[id] * options_.repeat_penalty;
  }
}

inline int Sampler::operator()(const float* logits, int n) {
  int id = 0;
  try {
    work_.assign(logits, logits + n);
    penalize(n);
    const int best = likeliest(work_.data(), n);
    id = options_.temperature > 0 ? choose(work_[best], best) : best;
  } catch (const std::bad_alloc&) {
    id = likeliest(logits, n);  // no memory to choose with
  }
  remember(id);
  return id;
}

// The first of equals; what is not a number never wins.
inline int Sampler::likeliest(const float* logits, int n) {
  int best = 0;
  for (int i = 1; i < n; i++)
    if (logits[i] > logits[best] || logits[best] != logits[best]) best = i;
  return best;
}

// Keeps the likeliest candidates that together hold more than top_p of the total; returns what they hold. The unlikely
// ones that could not be among them are dropped before the sort, which makes it short: if all those below
// (1 - top_p) * total / n were left out, they would hold less than 1 - top_p together.
inline double Sampler::keep_top_p(double total) {
  const double floor = (1.0 - options_.top_p) * total / double(candidates_.size());
  candidates_.erase(
      std::remove_if(candidates_.begin(), candidates_.end(), [&](const Candidate& c) { return c.p < floor; }),
      candidates_.end());
  std::sort(candidates_.begin(), candidates_.end(), Candidate::likelier);
  double sum = 0;
  size_t kept = 0;
  while (kept < candidates_.size() && (kept == 0 || sum <= options_.top_p * total)) sum += candidates_[kept++].p;
  candidates_.resize(kept);
  return sum;
}

// Draws from softmax(logits / temperature), cut down by min-p, top-k and top-p, in this order.
inline int Sampler::choose(float top, int best) {
  for (float& w : work_) w = (w - top) / options_.temperature;
  kernels_->exp(work_.data(), int(work_.size()));  // now relative to the most likely token, which is 1
  candidates_.clear();
  for (size_t i = 0; i < work_.size(); i++)
    if (work_[i] >= options_.min_p) candidates_.push_back({work_[i], int(i)});
  if (options_.top_k > 0 && size_t(options_.top_k) < candidates_.size()) {
    const auto end = candidates_.begin() + options_.top_k;
    std::nth_element(candidates_.begin(), end, candidates_.end(), Candidate::likelier);
    candidates_.erase(end, candidates_.end());
    std::sort(candidates_.begin(), candidates_.end(), Candidate::likelier);  // the order that sums depend on
  }
  double total = 0;
  for (const Candidate& c : candidates_) total += c.p;
  if (options_.top_p < 1 && !candidates_.empty()) total = keep_top_p(total);
  double threshold = random() * total;
  for (const Candidate& c : candidates_)
    if ((threshold -= c.p) < 0) return c.id;
  return candidates_.empty() ? best : candidates_.back().id;
}

template <class AnySession, class Pick>
bool generate(AnySession& session, Pick& pick, const std::vector<int>& prompt, int n, const std::vector<int>& stop_ids,
              const std::function<bool(int id)>& on_token, const Propose& propose) {
  int id = 0, made = 0;
  const auto choose = [&](const float* logits) {  // false: that was the last token
    id = pick(logits, session.vocab_size());
    return std::find(stop_ids.begin(), stop_ids.end(), id) == stop_ids.end() && on_token(id) && ++made < n;
  };
  const float* logits = session.forward(prompt.data(), prompt.size());
  for (int fed : prompt) pick.remember(fed);
  if (!logits) return false;
  bool more = n > 0 && choose(logits);
  while (more && session.position() < session.context()) {
    std::vector<int> batch = {id};
    if (propose) {
      const std::vector<int> guess = propose();
      const int room = std::min({session.context() - session.position(), n - made, kChunk}) - 1;
      batch.insert(batch.end(), guess.begin(), guess.begin() + std::min(int(guess.size()), room));
    }
    const bool good = session.forward(batch.data(), batch.size(), [&](size_t i, const float* next) {
      more = choose(next);
      return more && i + 1 < batch.size() && id == batch[i + 1];
    });
    if (!good) return false;
  }
  return true;
}

// Notices that a text has locked into a loop: its end is one passage over and over, at least four times and for 96
// tokens. Lists, tables and refrains repeat too, but not for so long.
class LoopWatch {
 public:
  static constexpr size_t kTokens = 96, kTimes = 4, kLongest = 128;  // kLongest: of the passage, tokens

  // True once the tokens so far end in a loop.
  bool push(int id) {
    ids_.push_back(id);
    for (size_t p = 1; p <= std::min(kLongest, ids_.size() - 1); p++) {
      repeated_[p] = ids_[ids_.size() - 1 - p] == id ? repeated_[p] + 1 : 0;
      if (repeated_[p] + p < std::max(kTokens, kTimes * p)) continue;
      period_ = p;
      return true;
    }
    return false;
  }
  size_t period() const { return period_; }                         // tokens of the passage
  size_t kept() const { return ids_.size() - repeated_[period_]; }  // tokens up to the end of its first time

 private:
  std::vector<int> ids_;
  size_t repeated_[kLongest + 1] = {};  // by period: how many of the last tokens are what they were a period before
  size_t period_ = 0;
};

inline std::string trimmed(std::string_view text) {
  constexpr std::string_view kSpace = " \t\n\v\f\r";
  const size_t from = std::min(text.find_first_not_of(kSpace), text.size());
  return std::string(text.substr(from, text.find_last_not_of(kSpace) + 1 - from));
}

inline ChatTemplate::Parts chat_parts(const ChatTemplate& chat, const std::string& system, const std::string& message,
                                      bool first) {
  ChatTemplate::Parts parts;
  const auto add = [&](ChatTemplate::Slot slot) {
    parts.insert(parts.end(), chat.slot[slot].begin(), chat.slot[slot].end());
  };
  const auto add_text = [&](const std::string& text, ChatTemplate::Trim trim) {
    parts.push_back({-1, chat.trim & trim ? trimmed(text) : text});
  };
  const std::string& prompt = system.empty() ? chat.default_system : system;
  if (first && !prompt.empty()) {
    add(ChatTemplate::kSystemPrefix);
    add_text(prompt, ChatTemplate::kTrimSystem);
    add(ChatTemplate::kSystemSuffix);
    add(ChatTemplate::kFirstUserPrefix);
  } else {
    if (!first) add(ChatTemplate::kReplySuffix);
    add(ChatTemplate::kUserPrefix);
  }
  add_text(message, ChatTemplate::kTrimUser);
  add(ChatTemplate::kUserSuffix);
  add(ChatTemplate::kReplyPrefix);
  return parts;
}

inline std::vector<int> encode_parts(const ChatTemplate::Parts& parts, const Encode& encode, bool bos) {
  std::vector<int> ids;
  if (bos) ids = encode("", true);  // BOS, or nothing
  if (!ids.empty() && !parts.empty() && parts[0].id == ids[0]) ids.clear();
  std::string text;  // between two control tokens the text is one, whoever wrote it, and is encoded as one
  const auto flush = [&] {
    const std::vector<int> more = text.empty() ? std::vector<int>() : encode(text, false);
    ids.insert(ids.end(), more.begin(), more.end());
    text.clear();
  };
  for (const ChatTemplate::Part& part : parts) {
    text += part.text;
    if (part.id < 0) continue;
    flush();
    ids.push_back(part.id);
  }
  flush();
  return ids;
}

inline std::vector<int> chat_turn(const ChatTemplate& chat, const Encode& encode, const std::string& system,
                                  const std::string& message, bool first) {
  return encode_parts(chat_parts(chat, system, message, first), encode, first);
}

// ====================================================================================================================
// 8. SIMD: one group per instruction set, and the table that picks one
// ====================================================================================================================

// The float blocks of section 5, compiled once more: all that a set adds to them is a target attribute.
#define POCKET_FLOAT_BLOCKS(NAME, TARGET)                                                 \
  struct NAME {                                                                           \
    template <auto Body, class... A> TARGET static void call(A... args) { Body(args...); } \
  };
#define POCKET_FLOAT_ROW(NAME, W)                                                                      \
  NAME::call<rmsnorm_body>, NAME::call<quantize_body>, NAME::call<rope_body>, NAME::call<swiglu_body>,     \
      NAME::call<exp_vector_body>, NAME::call<attend_body<W, int8_t>>, NAME::call<attend_body<W, float>>, \
      NAME::call<fold_body>, NAME::call<matmul_f32_body<W>>

POCKET_FLOAT_BLOCKS(FloatScalar, )
#if defined(__x86_64__)
#define POCKET_AVX2 __attribute__((target("avx2,fma")))
#define POCKET_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma")))
POCKET_FLOAT_BLOCKS(FloatAvx2, POCKET_AVX2)
POCKET_FLOAT_BLOCKS(FloatAvx512, POCKET_AVX512)
#endif

inline void spin_pause() {
#if defined(__x86_64__)
  asm volatile("pause");
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

#if defined(__x86_64__)

// Linux wants to be asked for AMX's tiles, once a process, since they make the saved state of a thread 8 KB larger.
#if defined(__linux__)
inline bool ask_for_tiles() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(2)
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#else
inline bool ask_for_tiles() { return false; }
#endif

// What the CPU has and the OS saves on a task switch.
struct X86Features {
  bool intel = false, avx2 = false, avxvnni = false, avx512vnni = false, amx = false;

  X86Features() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    intel = __get_cpuid(0, &a, &b, &c, &d) && b == 0x756e6547;      // "Genu"ineIntel
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return;  // OSXSAVE
    const bool fma = c >> 12 & 1;
    unsigned xcr0, high, a1, b1, c1, d1;
    asm("xgetbv" : "=a"(xcr0), "=d"(high) : "c"(0));
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    const bool amx_int8 = (d >> 24 & 1) && (d >> 25 & 1) && (xcr0 >> 17 & 3) == 3;
    avx2 = (xcr0 & 6) == 6 && fma && (b >> 5 & 1);
    const bool avx512 = (b >> 16 & 1) && (b >> 17 & 1) && (b >> 30 & 1) && (b >> 31 & 1);  // F, DQ, BW, VL
    avxvnni = avx2 && __get_cpuid_count(7, 1, &a1, &b1, &c1, &d1) && (a1 >> 4 & 1);
    avx512vnni = avx2 && (xcr0 & 0xe6) == 0xe6 && avx512 && (c >> 11 & 1);
    amx = avx512vnni && amx_int8 && ask_for_tiles();
  }
};

#endif  // __x86_64__

const Kernels* kernel_table();
#if !defined(POCKET_SEPARATE_KERNELS)
#if defined(__x86_64__)

// Whether one token's product reads four streams of panels at a time, each through a quarter of them: measured, that
// gives 95% of what plain reading gives on an Intel CPU, where one stream gives 78%. On an AMD one, one is the better.
inline bool reads_four_streams() {
  static const bool answer = X86Features().intel;
  return answer;
}

#endif  // __x86_64__

// Asks for the cache lines that a kernel which reads on and on will need. Of one stream the line six pages on goes to
// the L2 cache, since memory takes its time and the hardware's own guesses stop at every page, and the one 1 KB on to
// the L1 cache; of several, the one 2 KB on.
template <int streams = 1> POCKET_BODY void prefetch_line(const uint8_t* p) {
  if (streams == 1) __builtin_prefetch(p + 6 * 4096, 0, 2);
  __builtin_prefetch(p + (streams == 1 ? 1024 : 2048), 0, 3);
}

#if defined(__x86_64__)

// ---- AVX2: 8 rows a register, so a panel takes two. vpmaddubsw multiplies unsigned by signed bytes and adds pairs
// into 16 bits: 127 * 127 * 2 still fits, so codebook values are moved to 0 ... 127, which -64 times the group's sum of
// xq undoes. q8 weights, which use all 8 bits, give their sign to the activation instead.

namespace avx2 {

POCKET_AVX2 inline __m256i codebook(const int8_t values[16]) {
  const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
  return _mm256_broadcastsi128_si256(_mm_add_epi8(table, _mm_set1_epi8(64)));
}

// Rows 8 half ... 8 half + 7: the scales of one group, from their 4 bits. scales: byte r holds row r's two groups.
POCKET_AVX2 inline __m256 scales_q4(const uint8_t* scales, int half, int odd) {
  __m256i s = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(scales + 8 * half)));
  if (odd) s = _mm256_srli_epi32(s, 4);
  const __m256 size = _mm256_permutevar8x32_ps(_mm256_setr_ps(5, 6, 7, 8, 9, 10, 11, 12), s);  // looks at 3 bits
  return _mm256_xor_ps(size, _mm256_and_ps(_mm256_castsi256_ps(_mm256_slli_epi32(s, 28)), _mm256_set1_ps(-0.f)));
}

// sum + dot products of four unsigned and four signed bytes: what this set and AVX-VNNI do in different ways.
struct Maddubs {
  POCKET_AVX2 static __m256i add(__m256i sum, __m256i unsigned_bytes, __m256i signed_bytes) {
    const __m256i pairs = _mm256_maddubs_epi16(unsigned_bytes, signed_bytes);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
};

POCKET_AVX2 inline void unpack_q4(const uint8_t* codes, const uint8_t* scales, const int8_t values[16], int cols,
                                  uint8_t* out, float* out_scales) {
  const __m256i table = codebook(values), low = _mm256_set1_epi8(15);
  for (int v = 0; v < cols / 8; v++, codes += 64, out += 128)
    POCKET_FOR (half, 2) {
      const __m256i pair = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 32 * half));
      const __m256i first = _mm256_shuffle_epi8(table, _mm256_and_si256(pair, low));
      const __m256i second = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(pair, 4), low));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 32 * half), first);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 64 + 32 * half), second);
    }
  for (int g = 0; g < cols / kGroup; g++)
    POCKET_FOR (half, 2) _mm256_storeu_ps(out_scales + 16 * g + 8 * half, scales_q4(scales + g / 2 * 16, half, g & 1));
}

// P panels, `step` panels from one to the next, times T tokens. A group of one panel at a time: its sums, and all
// panels' results so far, are what 16 registers hold.
template <class Dot, int P, int T>
POCKET_AVX2 POCKET_BODY void gemv_q4_panels(const Tensor& w, int first, int step, const Activations& x, float* y,
                                            size_t ldy) {
  const __m256i table = codebook(w.codebook), low = _mm256_set1_epi8(15);
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
      if (P == 1) prefetch_line(scales + 48);  // the row scales behind them too
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

template <class Dot>
POCKET_AVX2 POCKET_BODY void gemv_q4_any(const Tensor& w, int first, int count, const Activations& x, int n, float* y,
                                         size_t ldy) {
  const int quarter = n == 1 && reads_four_streams() ? count / 4 : 0;
  for (int p = first; p < first + quarter; p++) gemv_q4_panels<Dot, 4, 1>(w, p, quarter, x, y, ldy);
  for (int p = first + 4 * quarter; p < first + count; p++) {
    int t = 0;
    for (; t + 4 <= n; t += 4) gemv_q4_panels<Dot, 1, 4>(w, p, 1, x.token(t), y + t * ldy, ldy);
    if (n - t == 3) gemv_q4_panels<Dot, 1, 3>(w, p, 1, x.token(t), y + t * ldy, ldy);
    if (n - t == 2) gemv_q4_panels<Dot, 1, 2>(w, p, 1, x.token(t), y + t * ldy, ldy);
    if (n - t == 1) gemv_q4_panels<Dot, 1, 1>(w, p, 1, x.token(t), y + t * ldy, ldy);
  }
}

// One panel's codes against T tokens: adds the groups to acc (T, 16).
template <class Dot, Type type, int T>
POCKET_AVX2 POCKET_BODY void dot_tile(const uint8_t* codes, const void* scales, int cols, const Activations& x,
                                      float* acc) {
  POCKET_FOR (half, 2)
    for (int g = 0; g < cols / kGroup; g++) {
      __m256i sum[T];
      POCKET_FOR (t, T) sum[t] = _mm256_set1_epi32(type == Type::q4 ? -64 * x.token(t).sum[g] : 0);
      for (int v = 8 * g; v < 8 * g + 8; v++) {
        const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + size_t(v) * 64 + 32 * half));
        POCKET_FOR (t, T) {
          const __m256i xq = _mm256_set1_epi32(load<int32_t>(x.token(t).q + 4 * v));
          if (type == Type::q4)
            sum[t] = Dot::add(sum[t], w, xq);
          else
            sum[t] = Dot::add(sum[t], _mm256_abs_epi8(w), _mm256_sign_epi8(xq, w));
        }
      }
      __m256 m;
      if (type == Type::q4) {
        m = _mm256_loadu_ps(static_cast<const float*>(scales) + 16 * g + 8 * half);
      } else {
        const uint16_t* bf16 = static_cast<const uint16_t*>(scales) + 16 * g + 8 * half;
        const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bf16));
        m = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
      }
      POCKET_FOR (t, T) {
        float* a = acc + 16 * t + 8 * half;
        const __m256 scale = _mm256_mul_ps(m, _mm256_set1_ps(x.token(t).scale[g]));
        _mm256_storeu_ps(a, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[t]), scale, _mm256_loadu_ps(a)));
      }
    }
}

template <class Dot, Type type>
POCKET_AVX2 POCKET_BODY void dot_tokens(const uint8_t* codes, const void* scales, int cols, const Activations& x, int n,
                                        float* acc) {
  int t = 0;
  for (; t + 4 <= n; t += 4) dot_tile<Dot, type, 4>(codes, scales, cols, x.token(t), acc + 16 * t);
  for (; t < n; t++) dot_tile<Dot, type, 1>(codes, scales, cols, x.token(t), acc + 16 * t);
}

template <class Dot>
POCKET_AVX2 POCKET_BODY void dot_any(Type type, const uint8_t* const codes[2], const void* const scales[2], int cols,
                                     const Activations& x, int n, float* const acc[2]) {
  POCKET_FOR (i, 2)
    type == Type::q4 ? dot_tokens<Dot, Type::q4>(codes[i], scales[i], cols, x, n, acc[i])
                     : dot_tokens<Dot, Type::q8>(codes[i], scales[i], cols, x, n, acc[i]);
}

POCKET_AVX2 inline void gemv_q4(const Tensor& w, int first, int count, const Activations& x, int n, float* y,
                                size_t ldy) {
  gemv_q4_any<Maddubs>(w, first, count, x, n, y, ldy);
}

POCKET_AVX2 inline void dot(Type type, const uint8_t* const codes[2], const void* const scales[2], int cols,
                            const Activations& x, int n, float* const acc[2]) {
  dot_any<Maddubs>(type, codes, scales, cols, x, n, acc);
}

}  // namespace avx2

// ---- AVX-VNNI (small and recent CPUs without AVX-512): the AVX2 kernels, but that one instruction, vpdpbusd, does the
// work of three.

#define POCKET_AVXVNNI __attribute__((target("avxvnni,avx2,fma")))

namespace avxvnni {

struct Dpbusd {
  POCKET_AVXVNNI static __m256i add(__m256i sum, __m256i unsigned_bytes, __m256i signed_bytes) {
    return _mm256_dpbusd_avx_epi32(sum, unsigned_bytes, signed_bytes);
  }
};

POCKET_AVXVNNI inline void gemv_q4(const Tensor& w, int first, int count, const Activations& x, int n, float* y,
                                   size_t ldy) {
  avx2::gemv_q4_any<Dpbusd>(w, first, count, x, n, y, ldy);
}

POCKET_AVXVNNI inline void dot(Type type, const uint8_t* const codes[2], const void* const scales[2], int cols,
                               const Activations& x, int n, float* const acc[2]) {
  avx2::dot_any<Dpbusd>(type, codes, scales, cols, x, n, acc);
}

}  // namespace avxvnni

// ---- AVX-512 with VNNI: 16 rows a register. vpdpbusd multiplies unsigned by signed bytes and adds four products to 32
// bits, exactly. Weights are moved to unsigned (+64 for q4's codebook, +128 for q8), which starting the sum at -64 or
// -128 times the group's sum of xq undoes.

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // g++ 12 warns of its own header (bug 105593)
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

// The scales of 16 rows and one group: as unpack_q4 leaves them, or bfloat16 as q8 has them.
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

// Four panels, `step` panels from one to the next, times one token.
POCKET_AVX512 inline void gemv_q4_panels(const Tensor& w, int first, int step, const Activations& x, float* y) {
  constexpr int P = 4;
  const size_t panel = panel_bytes(Type::q4, w.cols), stride = panel * step, scales_at = code_bytes(Type::q4, w.cols);
  const uint8_t* panels = w.data + first * panel;
  const __m512i table = _mm512_broadcast_i32x4(_mm_add_epi8(load<__m128i>(w.codebook), _mm_set1_epi8(64)));
  const __m512i low = _mm512_set1_epi8(15);
  __m512 acc[P] = {};
  for (int g = 0; g < x.cols / kGroup; g++) {
    __m512i sum[P];
    POCKET_FOR (p, P) sum[p] = _mm512_set1_epi32(-64 * x.sum[g]);
    for (int v = 4 * g; v < 4 * g + 4; v++)
      POCKET_FOR (p, P) {
        const uint8_t* codes = panels + p * stride + size_t(v) * 64;
        prefetch_line<P>(codes);
        const __m512i pair = _mm512_loadu_si512(codes);
        const __m512i w0 = _mm512_shuffle_epi8(table, _mm512_and_si512(pair, low)),
                      w1 = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(pair, 4), low));
        sum[p] = _mm512_dpbusd_epi32(sum[p], w0, _mm512_set1_epi32(load<int32_t>(x.q + 8 * v)));
        sum[p] = _mm512_dpbusd_epi32(sum[p], w1, _mm512_set1_epi32(load<int32_t>(x.q + 8 * v + 4)));
      }
    POCKET_FOR (p, P) {
      const __m512 m = scales_q4(panels + p * stride + scales_at + g / 2 * 16, g & 1);
      acc[p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[p]), _mm512_mul_ps(m, _mm512_set1_ps(x.scale[g])), acc[p]);
    }
  }
  POCKET_FOR (p, P) {
    const __m512 row_scales = _mm512_loadu_ps(panels + p * stride + panel - kPanelRows * sizeof(float));
    _mm512_storeu_ps(y + (first + p * step) * kPanelRows, _mm512_mul_ps(acc[p], row_scales));
  }
}

// Where one stream is read, half a register at a time is measured faster than whole ones.
POCKET_AVX512 inline void gemv_q4(const Tensor& w, int first, int count, const Activations& x, int n, float* y,
                                  size_t ldy) {
  const int quarter = n == 1 && reads_four_streams() ? count / 4 : 0;
  for (int p = first; p < first + quarter; p++) gemv_q4_panels(w, p, quarter, x, y);
  avx2::gemv_q4_any<Dpbusd>(w, first + 4 * quarter, count - 4 * quarter, x, n, y, ldy);
}

// Two panels' codes against T tokens: 2 T sums in registers, each weight loaded once for T tokens.
template <Type type, int T>
POCKET_AVX512 inline void dot_tile(const uint8_t* const codes[2], const void* const scales[2], int cols,
                                   const Activations& x, float* acc0, float* acc1) {
  constexpr int kBias = type == Type::q4 ? 64 : 128;
  __m512 a[2][T];
  POCKET_FOR (t, T) a[0][t] = _mm512_loadu_ps(acc0 + 16 * t), a[1][t] = _mm512_loadu_ps(acc1 + 16 * t);
  for (int g = 0; g < cols / kGroup; g++) {
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
  POCKET_FOR (t, T) _mm512_storeu_ps(acc0 + 16 * t, a[0][t]), _mm512_storeu_ps(acc1 + 16 * t, a[1][t]);
}

template <Type type>
POCKET_AVX512 inline void dot_tokens(const uint8_t* const codes[2], const void* const scales[2], int cols,
                                     const Activations& x, int n, float* const acc[2]) {
  int t = 0;
  for (; t + 6 <= n; t += 6) dot_tile<type, 6>(codes, scales, cols, x.token(t), acc[0] + 16 * t, acc[1] + 16 * t);
  for (; t + 2 <= n; t += 2) dot_tile<type, 2>(codes, scales, cols, x.token(t), acc[0] + 16 * t, acc[1] + 16 * t);
  for (; t < n; t++) dot_tile<type, 1>(codes, scales, cols, x.token(t), acc[0] + 16 * t, acc[1] + 16 * t);
}

POCKET_AVX512 inline void dot(Type type, const uint8_t* const codes[2], const void* const scales[2], int cols,
                              const Activations& x, int n, float* const acc[2]) {
  type == Type::q4 ? dot_tokens<Type::q4>(codes, scales, cols, x, n, acc)
                   : dot_tokens<Type::q8>(codes, scales, cols, x, n, acc);
}

}  // namespace avx512

// ---- AMX (from Sapphire Rapids on): prompts by tiles. A tile is a small matrix in a register, and one instruction
// multiplies two of them: (16 tokens, 32 columns) by (32 columns, 16 rows), signed bytes, summed exactly. A group of a
// panel is such a second tile as it stands. Decoding, where one token cannot fill a tile, is left to the set above.

namespace amx {

// kRound's bits, 16 rows of 16: an integer added to them makes the float kRound + that integer, exactly, if it is less
// than 2^22, as the sum of a group is.
static_assert(kGroup * 128 * 127 < 1 << 22);
struct Start {
  alignas(64) uint32_t bits[16 * kPanelRows] = {};
  constexpr Start() {
    for (uint32_t& b : bits) b = 0x4b400000;
  }
};
inline constexpr Start kStart;

struct Tiles {
  // Tiles 0 to 3 take sums (16 tokens, 16 int32), 4 and 5 activations (16 tokens, 32 bytes), 6 and 7 weights (8, 64
  // bytes): of two groups each. The sums are there twice, so that two products can be under way.
  static void configure() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 32, 32, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, kGroup / 4, kGroup / 4};
    } config;
    asm volatile("ldtilecfg %0" ::"m"(config));
  }

  // 64 columns of 16 rows, to be multiplied from now on.
  static void weights(const uint8_t* w) {
    asm volatile("tileloadd (%0,%1,1), %%tmm6\n tileloadd 512(%0,%1,1), %%tmm7" ::"r"(w), "r"(size_t(64)) : "memory");
  }

  // Begins the products of x (16 tokens, 64 columns). The first group's sums start at 0, the second's at kRound's bits.
  template <int odd> static void multiply(const uint8_t* x) {
    asm volatile(
        "tilezero %%tmm%c3\n tileloadd (%0,%1,1), %%tmm4\n tdpbssd %%tmm6, %%tmm4, %%tmm%c3\n"
        "tileloadd (%2,%1,1), %%tmm%c4\n tileloadd 32(%0,%1,1), %%tmm5\n tdpbssd %%tmm7, %%tmm5, %%tmm%c4" ::"r"(x),
        "r"(size_t(64)), "r"(kStart.bits), "i"(2 * odd), "i"(2 * odd + 1)
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

// Adds two groups, in order, to acc (16 tokens, 16 rows). m: the rows' scales; scale0, scale1: the tokens'. While AMX
// is at work, one of the two units for 512-bit floats does nothing but add. So that it has its share, one group's sums
// are converted to floats, the other's get there by subtraction.
POCKET_AVX512 POCKET_BODY void fold(const int32_t* sums, const __m512 m[2], const float* scale0, const float* scale1,
                                    float* acc) {
  POCKET_FOR (t, 16) {
    __m512 a = _mm512_load_ps(acc + 16 * t);
    const __m512 first = _mm512_cvtepi32_ps(_mm512_load_si512(sums + 16 * t));
    a = _mm512_fmadd_ps(first, _mm512_mul_ps(m[0], _mm512_set1_ps(scale0[t])), a);
    const __m512 raised = _mm512_castsi512_ps(_mm512_load_si512(sums + 256 + 16 * t));
    const __m512 second = _mm512_sub_ps(raised, _mm512_set1_ps(kRound));
    _mm512_store_ps(acc + 16 * t, _mm512_fmadd_ps(second, _mm512_mul_ps(m[1], _mm512_set1_ps(scale1[t])), a));
  }
}

// A panel's weights of 64 columns as tiles, and their scales: q8 has its codes as they stand.
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

// One panel times n tokens, added to acc (n padded to 16, 16). While a product is under way, the one before it is
// folded in, and the weights that come next are unpacked.
template <class T, Type type>
POCKET_AVX512 inline void multiply_panel(const Tensor& w, const uint8_t* panel, const Activations& x, int n,
                                         float* acc) {
  const int tiles = round_up(n, 16) / 16, blocks = x.cols / 64;
  const size_t block_bytes = packed_bytes(n, 64);
  Block<type> block[2];
  alignas(64) int32_t sums[2][2 * 16 * kPanelRows];
  int odd = 0;
  block[0].read(w, panel, 0);
  T::weights(block[0].codes);
  T::template multiply<0>(x.packed);
  if (blocks > 1) block[1].read(w, panel, 1);
  for (int b = 0; b < blocks; b++) {
    const uint8_t* q = x.packed + b * block_bytes;
    const float* scale0 = reinterpret_cast<const float*>(q + size_t(tiles) * 16 * 64);
    const float* scale1 = scale0 + 16 * tiles;
    const __m512 m[2] = {_mm512_load_ps(block[b & 1].scales), _mm512_load_ps(block[b & 1].scales + kPanelRows)};
    float* a = acc;
    for (int t = 0; t < tiles; t++, odd ^= 1, scale0 += 16, scale1 += 16, a += 16 * kPanelRows) {
      const uint8_t* next = t + 1 < tiles ? q + (t + 1) * 16 * 64 : q + block_bytes;
      if (t + 1 == tiles && b + 1 < blocks) T::weights(block[(b + 1) & 1].codes);
      if (t + 1 < tiles || b + 1 < blocks) odd ? T::template multiply<0>(next) : T::template multiply<1>(next);
      int32_t* s = sums[odd];
      odd ? T::template store<1>(s) : T::template store<0>(s);
      asm("" : "+r"(s), "+r"(scale0), "+r"(scale1), "+r"(a));  // one register each: addresses that are sums cost more
      fold(s, m, scale0, scale1, a);
    }
    if (b + 2 < blocks) block[b & 1].read(w, panel, b + 2);
  }
}

template <class T>
POCKET_AVX512 inline void matmul_packed(const Tensor& w, int first, int count, const Activations& x, int n, float* y,
                                        size_t ldy) {
  alignas(64) float acc[kChunk * kPanelRows];
  const size_t bytes = panel_bytes(w.type, w.cols);
  T::configure();
  for (int p = first; p < first + count; p++) {
    const uint8_t* panel = w.data + p * bytes;
    const bool q4 = w.type == Type::q4;
    for (int t = 0; t < round_up(n, 16); t++) _mm512_store_ps(acc + kPanelRows * t, _mm512_setzero_ps());
    q4 ? multiply_panel<T, Type::q4>(w, panel, x, n, acc) : multiply_panel<T, Type::q8>(w, panel, x, n, acc);
    const __m512 row_scales = q4 ? _mm512_loadu_ps(panel + bytes - kPanelRows * sizeof(float)) : _mm512_set1_ps(1);
    for (int t = 0; t < n; t++) {
      const __m512 sum = _mm512_load_ps(acc + kPanelRows * t);
      _mm512_storeu_ps(y + t * ldy + size_t(p) * kPanelRows, _mm512_mul_ps(sum, row_scales));
    }
  }
  T::release();
}

}  // namespace amx
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif  // __x86_64__

#if defined(__aarch64__)

// ---- NEON: 4 rows a register, so a panel takes four. tbl looks the codebook's signed values up as they are. There is
// no aarch64 without what the float blocks need: those of the scalar set serve, a register at a time, with a hint where
// a compiler does not see that it is one.

template <> POCKET_BODY void Lanes<4>::load(const int8_t* p) {
  const int8x8_t bytes = vreinterpret_s8_s32(vdup_n_s32(pocket::load<int32_t>(p)));
  v = Floats(vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes)))));
}
template <> POCKET_BODY void Lanes<4>::add_product(float a, const Lanes& b) { v = Floats(vfmaq_n_f32(v, b.v, a)); }

namespace neon {

#if defined(__APPLE__)
inline bool has_dotprod() { return true; }
inline bool has_i8mm() {
  int has = 0;
  size_t size = sizeof has;
  return sysctlbyname("hw.optional.arm.FEAT_I8MM", &has, &size, nullptr, 0) == 0 && has;
}
#else
inline bool has_dotprod() { return getauxval(AT_HWCAP) >> 20 & 1; }
inline bool has_i8mm() { return getauxval(AT_HWCAP2) >> 13 & 1; }
#endif

// What each compiler calls the two instructions that a CPU may lack. clang before 16 knows their intrinsics only where
// a whole file may use them, so that they are assembler here; volatile, or g++ reorders until it lacks registers.
#if defined(__clang__)
#define POCKET_DOTPROD __attribute__((target("dotprod")))
#define POCKET_I8MM __attribute__((target("i8mm")))
#else
#define POCKET_DOTPROD __attribute__((target("arch=armv8.2-a+dotprod")))
#define POCKET_I8MM __attribute__((target("arch=armv8.2-a+i8mm")))
#endif

// Four rows' sums + dot products of four signed bytes of each with the four in one lane of x.
template <int lane> POCKET_BODY int32x4_t sdot(int32x4_t sum, int8x16_t w, int8x16_t x) {
  asm volatile("sdot %0.4s, %1.16b, %2.4b[%3]" : "+w"(sum) : "w"(w), "w"(x), "i"(lane));
  return sum;
}

// The sums of two rows and two tokens (row 0 with both, row 1 with both) + their products over eight columns.
POCKET_BODY int32x4_t smmla(int32x4_t sum, int8x16_t w, int8x16_t x) {
  asm volatile("smmla %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(w), "w"(x));
  return sum;
}

// Four rows' weights of columns 8v ... 8v+3 and 8v+4 ... 8v+7.
POCKET_BODY int8x16x2_t lookup(int8x16_t table, const uint8_t* codes) {
  const uint8x16_t pair = vld1q_u8(codes);
  return {{vqtbl1q_s8(table, vandq_u8(pair, vdupq_n_u8(15))), vqtbl1q_s8(table, vshrq_n_u8(pair, 4))}};
}

// The scales of one group from their 4 bits. scales: byte r holds row r's two groups.
POCKET_BODY void scales_q4(const uint8_t* scales, int odd, float32x4_t m[4]) {
  static constexpr int8_t kTable[16] = {5, 6, 7, 8, 9, 10, 11, 12, -5, -6, -7, -8, -9, -10, -11, -12};
  const uint8x16_t s = vshlq_u8(vld1q_u8(scales), vdupq_n_s8(odd ? -4 : 0));  // a shift to the right
  const int8x16_t bytes = vqtbl1q_s8(vld1q_s8(kTable), vandq_u8(s, vdupq_n_u8(15)));
  const int16x8_t half[2] = {vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes)};
  POCKET_FOR (i, 2) {
    m[2 * i] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(half[i])));
    m[2 * i + 1] = vcvtq_f32_s32(vmovl_high_s16(half[i]));
  }
}

POCKET_BODY float32x4_t add_group(float32x4_t acc, int32x4_t sum, float32x4_t m, float xs) {
  return vfmaq_f32(acc, vcvtq_f32_s32(sum), vmulq_n_f32(m, xs));
}

// Four rows' sums for T tokens + 16 columns, of which w[i] holds four. x: 16 columns of each token.
template <int T> POCKET_BODY void add_columns(int32x4_t sum[T], const int8x16_t w[4], const int8x16_t x[T]) {
  POCKET_FOR (t, T) sum[t] = sdot<0>(sum[t], w[0], x[t]);
  POCKET_FOR (t, T) sum[t] = sdot<1>(sum[t], w[1], x[t]);
  POCKET_FOR (t, T) sum[t] = sdot<2>(sum[t], w[2], x[t]);
  POCKET_FOR (t, T) sum[t] = sdot<3>(sum[t], w[3], x[t]);
}

// One panel times one token.
POCKET_BODY void gemv_q4_panel(const uint8_t* panel, const Tensor& t, const Activations& x, float* y) {
  const int8x16_t table = vld1q_s8(t.codebook);
  const uint8_t* scales = panel + code_bytes(Type::q4, t.cols);
  float32x4_t acc[4] = {};
  for (int g = 0; g < x.cols / kGroup; g++) {
    int32x4_t sum[4] = {};
    POCKET_FOR (half, 2) {
      const int k = g * kGroup + 16 * half;
      const uint8_t* codes = panel + size_t(k) * 8;
      const int8x16_t xq = vld1q_s8(x.q + k);
      prefetch_line(codes), prefetch_line(codes + 64);
      POCKET_FOR (j, 4) {
        const int8x16x2_t first = lookup(table, codes + 16 * j), second = lookup(table, codes + 64 + 16 * j);
        const int8x16_t w[4] = {first.val[0], first.val[1], second.val[0], second.val[1]};
        add_columns<1>(&sum[j], w, &xq);
      }
    }
    prefetch_line(scales + g / 2 * 16 + 48);  // the row scales behind them too
    float32x4_t m[4];
    scales_q4(scales + g / 2 * 16, g & 1, m);
    POCKET_FOR (j, 4) acc[j] = add_group(acc[j], sum[j], m[j], x.scale[g]);
  }
  const float* rs = reinterpret_cast<const float*>(panel + panel_bytes(Type::q4, t.cols)) - kPanelRows;
  POCKET_FOR (j, 4) vst1q_f32(y + 4 * j, vmulq_f32(acc[j], vld1q_f32(rs + 4 * j)));
}

POCKET_DOTPROD inline void gemv_q4(const Tensor& w, int first, int count, const Activations& x, int n, float* y,
                                   size_t ldy) {
  for (int p = first; p < first + count; p++)
    for (int t = 0; t < n; t++)
      gemv_q4_panel(w.data + p * panel_bytes(Type::q4, w.cols), w, x.token(t), y + t * ldy + p * kPanelRows);
}

// What the two sets do in different ways: keep the 8 columns of four rows that a lookup gives, and multiply a group of
// one panel with T tokens, sum[j][t] being that of rows 4j ... 4j + 3.
struct Sdot {
  POCKET_BODY static void store(int8x16x2_t w, int j, int8_t* out) {
    vst1q_s8(out + 16 * j, w.val[0]);
    vst1q_s8(out + 64 + 16 * j, w.val[1]);
  }

  template <Type, int T>
  POCKET_BODY static void multiply(const int8_t* codes, const Activations& x, int k, int32x4_t (*sum)[T]) {
    for (int end = k + kGroup; k < end; k += 16, codes += 256) {
      int8x16_t xq[T];
      POCKET_FOR (t, T) xq[t] = vld1q_s8(x.token(t).q + k);
      POCKET_FOR (j, 4) {
        int8x16_t w[4];
        POCKET_FOR (i, 4) w[i] = vld1q_s8(codes + 64 * i + 16 * j);
        add_columns<T>(sum[j], w, xq);
      }
    }
  }
};

// smmla wants 8 columns of a row side by side.
struct Smmla {
  POCKET_BODY static void store(int8x16x2_t w, int j, int8_t* out) {
    const int32x4x2_t lanes = {{vreinterpretq_s32_s8(w.val[0]), vreinterpretq_s32_s8(w.val[1])}};
    vst2q_s32(reinterpret_cast<int32_t*>(out + 32 * j), lanes);  // a lane of one, a lane of the other
  }

  template <Type type, int T>
  POCKET_BODY static void multiply(const int8_t* codes, const Activations& x, int k, int32x4_t (*sum)[T]) {
    constexpr int kPairs = (T + 1) / 2;  // of tokens; an odd last one is taken twice, and used once
    int32x4_t square[8][kPairs] = {};    // rows 2i and 2i + 1, and two tokens
    for (int end = k + kGroup; k < end; k += 8, codes += 128) {
      int8x16_t xq[kPairs];
      POCKET_FOR (p, kPairs)
        xq[p] = vcombine_s8(vld1_s8(x.token(2 * p).q + k), vld1_s8(x.token(std::min(2 * p + 1, T - 1)).q + k));
      POCKET_FOR (j, 4) {
        int32x4x2_t w;
        if (type == Type::q4)
          POCKET_FOR (i, 2) w.val[i] = vreinterpretq_s32_s8(vld1q_s8(codes + 32 * j + 16 * i));
        else
          w = vzipq_s32(vreinterpretq_s32_s8(vld1q_s8(codes + 16 * j)),
                        vreinterpretq_s32_s8(vld1q_s8(codes + 64 + 16 * j)));
        POCKET_FOR (i, 2)
          POCKET_FOR (p, kPairs) {
            int32x4_t& s = square[2 * j + i][p];
            s = smmla(s, vreinterpretq_s8_s32(w.val[i]), xq[p]);
          }
      }
    }
    POCKET_FOR (j, 4)
      POCKET_FOR (t, T) {
        const int32x4_t a = square[2 * j][t / 2], b = square[2 * j + 1][t / 2];
        sum[j][t] = t % 2 ? vuzp2q_s32(a, b) : vuzp1q_s32(a, b);
      }
  }
};

template <class Dot>
void unpack_q4(const uint8_t* codes, const uint8_t* scales, const int8_t values[16], int cols, uint8_t* out_codes,
               float* out_scales) {
  const int8x16_t table = vld1q_s8(values);
  for (int v = 0; v < cols / 8; v++)
    POCKET_FOR (j, 4)
      Dot::store(lookup(table, codes + 64 * v + 16 * j), j, reinterpret_cast<int8_t*>(out_codes) + 128 * v);
  for (int g = 0; g < cols / kGroup; g++) {
    float32x4_t m[4];
    scales_q4(scales + g / 2 * 16, g & 1, m);
    POCKET_FOR (j, 4) vst1q_f32(out_scales + 16 * g + 4 * j, m[j]);
  }
}

// One panel's codes against T tokens: adds the groups to acc (T, 16).
template <class Dot, Type type, int T>
POCKET_BODY void dot_tile(const int8_t* codes, const void* scales, int cols, const Activations& x, float* acc) {
  for (int g = 0; g < cols / kGroup; g++) {
    int32x4_t sum[4][T] = {};
    Dot::template multiply<type, T>(codes + 512 * g, x, g * kGroup, sum);
    POCKET_FOR (j, 4) {
      const int at = 16 * g + 4 * j;
      const float32x4_t m =
          type == Type::q4
              ? vld1q_f32(static_cast<const float*>(scales) + at)
              : vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(static_cast<const uint16_t*>(scales) + at), 16));
      POCKET_FOR (t, T) {
        float* a = acc + 16 * t + 4 * j;
        vst1q_f32(a, add_group(vld1q_f32(a), sum[j][t], m, x.token(t).scale[g]));
      }
    }
  }
}

// One panel at a time: four sums and four weights for each of four tokens are what 32 registers hold.
template <class Dot, Type type>
POCKET_BODY void dot_tokens(const uint8_t* const codes[2], const void* const scales[2], int cols, const Activations& x,
                            int n, float* const acc[2]) {
  for (int i = 0; i < 2; i++) {
    const int8_t* w = reinterpret_cast<const int8_t*>(codes[i]);
    int t = 0;
    for (; t + 4 <= n; t += 4) dot_tile<Dot, type, 4>(w, scales[i], cols, x.token(t), acc[i] + 16 * t);
    for (; t + 2 <= n; t += 2) dot_tile<Dot, type, 2>(w, scales[i], cols, x.token(t), acc[i] + 16 * t);
    for (; t < n; t++) dot_tile<Dot, type, 1>(w, scales[i], cols, x.token(t), acc[i] + 16 * t);
  }
}

POCKET_DOTPROD inline void dot(Type type, const uint8_t* const codes[2], const void* const scales[2], int cols,
                               const Activations& x, int n, float* const acc[2]) {
  type == Type::q4 ? dot_tokens<Sdot, Type::q4>(codes, scales, cols, x, n, acc)
                   : dot_tokens<Sdot, Type::q8>(codes, scales, cols, x, n, acc);
}

// A single token leaves half of smmla idle: in q8 sdot is the better one.
POCKET_I8MM inline void dot_i8mm(Type type, const uint8_t* const codes[2], const void* const scales[2], int cols,
                                 const Activations& x, int n, float* const acc[2]) {
  if (type == Type::q4) return dot_tokens<Smmla, Type::q4>(codes, scales, cols, x, n, acc);
  n == 1 ? dot(type, codes, scales, cols, x, n, acc) : dot_tokens<Smmla, Type::q8>(codes, scales, cols, x, n, acc);
}

}  // namespace neon
#endif  // __aarch64__

// The kernel sets, best first; the last one has no name. POCKET_SEPARATE_KERNELS: programs of several files compile the
// kernels once, in a file that defines POCKET_DEFINE_KERNELS before it includes this one.
#if defined(POCKET_DEFINE_KERNELS)
const Kernels* kernel_table() {
#else
inline const Kernels* kernel_table() {
#endif
  static const Kernels table[] = {
#if defined(__x86_64__)
    {"amx", [] { return X86Features().amx; }, POCKET_FLOAT_ROW(FloatAvx512, 16), avx512::unpack_q4<64>, avx512::gemv_q4,
     avx512::dot, amx::matmul_packed<amx::Tiles>},
    {"avx512vnni", [] { return X86Features().avx512vnni; }, POCKET_FLOAT_ROW(FloatAvx512, 16), avx512::unpack_q4<64>,
     avx512::gemv_q4, avx512::dot, nullptr},
    {"avxvnni", [] { return X86Features().avxvnni; }, POCKET_FLOAT_ROW(FloatAvx2, 8), avx2::unpack_q4, avxvnni::gemv_q4,
     avxvnni::dot, nullptr},
    {"avx2", [] { return X86Features().avx2; }, POCKET_FLOAT_ROW(FloatAvx2, 8), avx2::unpack_q4, avx2::gemv_q4,
     avx2::dot, nullptr},
#endif
#if defined(__aarch64__)
    {"neon-i8mm", [] { return neon::has_dotprod() && neon::has_i8mm(); }, POCKET_FLOAT_ROW(FloatScalar, 4),
     neon::unpack_q4<neon::Smmla>, neon::gemv_q4, neon::dot_i8mm, nullptr},
    {"neon-dotprod", neon::has_dotprod, POCKET_FLOAT_ROW(FloatScalar, 4), neon::unpack_q4<neon::Sdot>, neon::gemv_q4,
     neon::dot, nullptr},
#endif
    {"scalar", [] { return true; }, POCKET_FLOAT_ROW(FloatScalar, 8), nullptr, nullptr, nullptr, nullptr},
    {},
  };
  return table;
}

#endif  // POCKET_SEPARATE_KERNELS

inline const Kernels* find_kernels(const char* name) {
  for (const Kernels* k = kernel_table(); k->name; k++)
    if ((!name || std::strcmp(name, k->name) == 0) && k->supported()) return k;
  return nullptr;
}

inline std::vector<std::string> kernel_names() {
  std::vector<std::string> names;
  for (const Kernels* k = kernel_table(); k->name; k++)
    if (k->supported()) names.push_back(k->name);
  return names;
}

}  // namespace pocket
#endif  // POCKET_RUN_CPP

