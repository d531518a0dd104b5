// megabyte_train.hpp: a trainable MEGABYTE (Yu et al. 2023, arXiv 2305.07185): parameters, the forward pass with saved
// activations, and a hand-written backward pass.
//
// Two transformers read the bytes of a text, cut into patches of P. The global transformer reads patches: position k
// attends to the start and the patches before k, and its output, projected to P x d, is added to the input of the local
// transformer. The local transformer reads bytes, each patch by itself: the start, then the P bytes; the position of
// byte i predicts the next byte.
//
//     bytes      b0 b1 b2 b3 | b4 b5 b6 b7 | b8 ...            P = 4
//     global     start         e(b0..b3)     e(b4..b7)         rows of width D; output k is G_k, P rows of width d
//     local      start b0+G_0[0] b1+G_0[1] ... | start b4+G_1[0] ... | ...
//     predicts   b0    b1        b2            | -     b5            | ...
//
// The start of a patch attends only to itself, so it is the same for all patches of a text: it is stored as one row,
// which takes part in the attention of every patch. It predicts the first byte of a text; the first byte of a later
// patch is predicted by the last byte of the patch before. So a text of T bytes is T + 1 rows of the local stage, and
// row p predicts byte p.
//
// A window may hold several texts. Each has its own patches, counted from its first byte, and attends only to itself.
// The token kStartId marks the beginning of a text; a window that begins with another token begins within a text: its
// patches are counted from there, and its first byte is not predicted.
#pragma once

#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "../train_blocks.hpp"
#include "megabyte_train_kernels.hpp"

namespace pocket {

inline constexpr int kStartId = kByteValues;  // token of a Window: beginning of a text

// Stage 0 is the global one, stage 1 the local one.
inline const MegabyteStage& stage_of(const MegabyteConfig& c, int s) { return s == 0 ? c.global : c.local; }

// All trained tensors, in the order of the file.
inline std::vector<Parameter> parameters_of(const MegabyteConfig& c) { return placed(tensor_specs(c)); }

// The weights of one layer of a stage.
struct LearnedMegabyteLayer {
  size_t attention_norm, ffn_norm;  // (dim)
  LearnedMatrix qkv;                // (3 q_dim, dim)
  LearnedMatrix out;                // (dim, q_dim)
  LearnedMatrix up, down;           // (hidden, dim), (dim, hidden)
  size_t up_bias, down_bias;        // (hidden), (dim)
};

// The weights of one stage.
struct LearnedMegabyteStage {
  std::vector<LearnedMegabyteLayer> layers;
  size_t norm, start;                    // (dim)
  const Parameter* embedding;            // (256, local dim)
  const Parameter* positions = nullptr;  // (patches or bytes of a patch, dim); null: none
};

// The weights of a MEGABYTE in training. It has no adapters.
class MegabyteWeights : public LearnedWeights {
 public:
  explicit MegabyteWeights(const MegabyteConfig& c) : LearnedWeights(parameters_of(c)), config(c) {
    for (size_t i = 0; i < parameters.size(); i++) index_[parameters[i].spec.name] = i;
    for (int s = 0; s < 2; s++) {
      const std::string stage = s == 0 ? "global." : "local.";
      for (int l = 0; l < stage_of(c, s).n_layers; l++) {
        const std::string p = stage + "layers." + std::to_string(l) + ".";
        stages[s].layers.push_back({place(p + "attention_norm"), place(p + "ffn_norm"),
                                    matrix(of(p + "wq"), 3 * c.q_dim()), whole(p + "wo"), whole(p + "w1"),
                                    whole(p + "w2"), place(p + "w1.bias"), place(p + "w2.bias")});
      }
      stages[s].norm = place(stage + "final_norm");
      stages[s].start = place(stage + "start");
      stages[s].embedding = &of(stage + "embedding");
      if (c.positions) stages[s].positions = &of(stage + "positions");
    }
    patch = whole("patch");
    patch_bias = place("patch.bias");
    next = whole("next");
    next_bias = place("next.bias");
    output = whole("output");
    output_bias = place("output.bias");
    patch_norm = place("patch_norm");
    patch_norm_bias = place("patch_norm.bias");
    embedded_norm = place("embedded_norm");
    embedded_norm_bias = place("embedded_norm.bias");
  }

  MegabyteConfig config;
  LearnedMegabyteStage stages[2];  // global, local
  LearnedMatrix patch;             // (dim, patch_dim)
  LearnedMatrix next;              // (patch_dim, dim)
  LearnedMatrix output;            // (256, local dim)
  size_t patch_bias, next_bias, output_bias;
  size_t patch_norm, patch_norm_bias;        // (patch_dim): the LayerNorm before `patch`
  size_t embedded_norm, embedded_norm_bias;  // (dim): the LayerNorm after `patch`

  const Parameter& of(const std::string& name) const { return parameters[index_.at(name)]; }
  size_t place(const std::string& name) const { return of(name).offset; }
  std::unique_ptr<SequencePass> new_pass(const TrainKernels& kernels, const PassOptions& options) const override;

 private:
  LearnedMatrix whole(const std::string& name) { return matrix(of(name), of(name).spec.rows); }

  std::map<std::string, size_t> index_;  // index of a parameter by its name
};

// The rows of a stage. Attention works on positions: a row that several sequences share has a position in each of them.
struct StageRows {
  std::vector<int> previous;  // (rows): the row whose second half is shifted in; -1: none
  std::vector<int> rotary;    // (rows): position of the rotary embedding
  std::vector<int> source;    // (positions): the row
  std::vector<int> first;     // (positions): the first position that each attends to
  std::vector<bool> repeats;  // (positions): an earlier position has the same row

  int rows() const { return int(previous.size()); }
  int positions() const { return int(source.size()); }

  void clear() {
    for (std::vector<int>* v : {&previous, &rotary, &source, &first}) v->clear();
    repeats.clear();
  }
  void reserve(size_t rows, size_t positions) {
    for (std::vector<int>* v : {&previous, &rotary}) v->reserve(rows);
    for (std::vector<int>* v : {&source, &first}) v->reserve(positions);
    repeats.reserve(positions);
  }
  int add_row(int before, int position) {
    previous.push_back(before);
    rotary.push_back(position);
    return rows() - 1;
  }
  // Adds a position. begins: it is the first of a sequence.
  void attend(int row, bool begins, bool repeated) {
    source.push_back(row);
    repeats.push_back(repeated);
    first.push_back(begins ? positions() - 1 : first.back());
  }
};

// A window of T tokens as rows of the two stages.
struct MegabyteRows {
  StageRows stage[2];
  int shift = 0;                // 1: row 0 of the local stage is a start without a token; token t is row t + shift
  std::vector<int> begin;       // (global rows): the first token of the patch; -1: the start
  std::vector<int> patch_row;   // (local rows): the global row whose output is added; -1: a start
  std::vector<int> patch_slot;  // (local rows): index of the byte in its patch

  static int most_rows(int tokens, int patch, int stage) { return stage == 0 ? tokens / patch + 1 : tokens + 1; }
  static int most_positions(int tokens, int patch) { return tokens + tokens / patch + 1; }

  void reserve(int tokens, int patch) {
    for (int s = 0; s < 2; s++)
      stage[s].reserve(size_t(most_rows(tokens, patch, s)), size_t(most_positions(tokens, patch)));
    begin.reserve(size_t(most_rows(tokens, patch, 0)));
    patch_row.reserve(size_t(tokens) + 1);
    patch_slot.reserve(size_t(tokens) + 1);
  }

  void place(const Window& w, const MegabyteConfig& c) {
    StageRows &global = stage[0], &local = stage[1];
    global.clear();
    local.clear();
    for (std::vector<int>* v : {&begin, &patch_row, &patch_slot}) v->clear();
    begin.push_back(-1);
    global.add_row(-1, 0);
    shift = w.ids[0] != kStartId;
    if (shift) start_text();
    for (int t = 0; t < int(w.ids.size()); t++) {
      if (w.ids[size_t(t)] == kStartId)
        start_text();
      else
        add_byte(t, c.patch_size);
    }
  }

 private:
  void start_text() {
    start_ = stage[1].add_row(-1, 0);
    bytes_ = 0;
    global_row_ = 0;
    patch_row.push_back(-1);
    patch_slot.push_back(0);
    stage[0].attend(0, true, stage[0].positions() > 0);
    stage[1].attend(start_, true, false);
  }

  void add_byte(int t, int patch) {
    StageRows &global = stage[0], &local = stage[1];
    const int slot = bytes_ % patch;
    if (slot == 0 && bytes_ > 0) {  // the previous patch is complete: a row of the global stage
      global_row_ = global.add_row(global_row_, bytes_ / patch);
      global.attend(global_row_, false, false);
      begin.push_back(t - patch);
      local.attend(start_, true, true);
    }
    const int row = local.add_row(slot == 0 ? start_ : local.rows() - 1, slot + 1);
    local.attend(row, false, false);
    patch_row.push_back(global_row_);
    patch_slot.push_back(slot);
    bytes_++;
  }

  // The text that is being placed:
  int start_ = 0;       // local row of its start
  int bytes_ = 0;       // number of its bytes so far
  int global_row_ = 0;  // global row of its last patch
};

// Activations of one stage: the ones that backward() needs of each layer, and scratch memory. R is its number of rows.
struct StageActivated {
  struct OfLayer {
    Rows x, xn;       // (R, dim): input, and normalized after the token shift
    Rows qkv;         // (R, 3 width), with rotated queries and keys
    Rows attention;   // (R, width)
    Rows softmax;     // (heads, 2 positions): see Attention::Saved
    Rows middle, mn;  // (R, dim): after attention, and normalized after the token shift
    Rows up;          // (R, hidden)
  };
  std::vector<OfLayer> layers;
  Rows x, xn;                 // (R, dim): output of the last layer, and normalized
  Rows dx, dnorm;             // (R, dim)
  Rows dqkv;                  // (R, 3 width)
  Rows dattention;            // (R, width)
  Rows hidden, dhidden, dup;  // (R, hidden)

  void lay_out(Places& place, const MegabyteConfig& c, int s, int rows, int positions) {
    const MegabyteStage& of = stage_of(c, s);
    layers.resize(size_t(of.n_layers));
    for (OfLayer& l : layers) {
      for (Rows* m : {&l.x, &l.xn, &l.middle, &l.mn}) place(*m, rows, of.dim);
      place(l.qkv, rows, 3 * c.q_dim());
      place(l.attention, rows, c.q_dim());
      place(l.softmax, c.n_heads, 2 * positions);
      place(l.up, rows, of.hidden_dim);
    }
    for (Rows* m : {&x, &xn, &dx, &dnorm}) place(*m, rows, of.dim);
    place(dqkv, rows, 3 * c.q_dim());
    place(dattention, rows, c.q_dim());
    for (Rows* m : {&hidden, &dhidden, &dup}) place(*m, rows, of.hidden_dim);
  }
};

// Activations of a whole window. A matrix (patches, ...) has a row for each row of the global stage except the start.
struct MegabyteActivated {
  StageActivated stage[2];
  Attention attention;
  Rows spread, dspread;          // (positions, 3 width)
  Rows spread_out, dspread_out;  // (positions, width)
  Rows shifted[2], dshifted[2];  // (1, dim): a row after the token shift
  Rows nothing;                  // zeros: shifted into the first row of a text
  Rows joined, joined_norm;      // (patches, P d): embeddings of the bytes, and normalized
  Rows embedded;                 // (patches, D): projection of joined_norm
  Rows for_local, dfor_local;    // (global rows, P d)
  Rows djoined, djoined_norm, dembedded;
  Rows logits;  // (kLossRows, 256)

  MegabyteActivated(const MegabyteConfig& c, int tokens) : MegabyteActivated(c) {
    memory_ = Floats(lay_out(c, tokens, nullptr));
    lay_out(c, tokens, memory_.data());
  }

  static size_t bytes(const MegabyteConfig& c, int tokens) {
    return MegabyteActivated(c).lay_out(c, tokens, nullptr) * sizeof(float);
  }

 private:
  explicit MegabyteActivated(const MegabyteConfig& c) : attention({c.n_heads, c.n_heads, c.head_dim}) {}

  size_t lay_out(const MegabyteConfig& c, int tokens, float* memory) {
    Places place(memory);
    const int patches = MegabyteRows::most_rows(tokens, c.patch_size, 0);
    const int positions = MegabyteRows::most_positions(tokens, c.patch_size);
    attention.lay_out(place, positions);
    for (int s = 0; s < 2; s++) {
      stage[s].lay_out(place, c, s, MegabyteRows::most_rows(tokens, c.patch_size, s), positions);
      for (Rows* m : {&shifted[s], &dshifted[s]}) place(*m, 1, stage_of(c, s).dim);
    }
    place(nothing, 1, std::max(c.global.dim, c.local.dim));
    for (Rows* m : {&spread, &dspread}) place(*m, positions, 3 * c.q_dim());
    for (Rows* m : {&spread_out, &dspread_out}) place(*m, positions, c.q_dim());
    for (Rows* m : {&joined, &joined_norm, &djoined, &djoined_norm, &for_local, &dfor_local})
      place(*m, patches, c.patch_dim());
    for (Rows* m : {&embedded, &dembedded}) place(*m, patches, c.global.dim);
    place(logits, kLossRows, kByteValues);
    return place.floats() + row_stride(c.head_dim);  // even the last head is read in whole vectors
  }

  Floats memory_;
};

// Runs windows through a MegabyteWeights.
class MegabytePass : public SequencePass {
 public:
  MegabytePass(const MegabyteWeights& model, const TrainKernels& kernels, const PassOptions& options)
      : SequencePass(model, kernels, kByteValues, 0, options),
        m_(model),
        own_(megabyte_train_kernels(kernels)),
        c_(model.config),
        a_(model.config, options.tokens),
        rotation_(rotary(c_), std::max(options.tokens / c_.patch_size, c_.patch_size) + 1) {
    rows_.reserve(options.tokens, c_.patch_size);
  }

  static size_t bytes(const MegabyteConfig& c, int tokens) { return MegabyteActivated::bytes(c, tokens); }

  void forward(const Window& w) override {
    rows_.place(w, c_);
    embed_patches(w);
    for (int l = 0; l < c_.global.n_layers; l++) layer(0, l);
    final_norm(0);
    biased(a_.stage[0].xn, rows(0), m_.next, m_.next_bias, a_.for_local);
    embed_bytes(w);
    for (int l = 0; l < c_.local.n_layers; l++) layer(1, l);
    final_norm(1);
  }

  const Rows& logits(int first, int count) override {
    biased(a_.stage[1].xn.from(first + rows_.shift), count, m_.output, m_.output_bias, a_.logits);
    return a_.logits;
  }

  double backward(const Window& w, float weight, float* gradient) override {
    g_ = gradient;
    double sum = 0;
    StageActivated &global = a_.stage[0], &local = a_.stage[1];
    if (rows_.shift) clear(local.dnorm, 1, c_.local.dim);
    for (int first = 0, n = int(w.ids.size()); first < n; first += kLossRows) {
      const int count = std::min(kLossRows, n - first), row = first + rows_.shift;
      sum += loss_rows(w, first, count, weight);
      biased_backward(m_.output, m_.output_bias, local.xn.from(row), a_.logits, count, local.dnorm.from(row));
    }
    stage_backward(1);
    embed_bytes_backward(w);
    biased_backward(m_.next, m_.next_bias, global.xn, a_.dfor_local, rows(0), global.dnorm);
    stage_backward(0);
    embed_patches_backward(w);
    return sum;
  }

 private:
  static Config rotary(const MegabyteConfig& c) {
    Config r;
    r.head_dim = c.rotary ? c.head_dim : 0;
    return r;
  }

  int dim(int s) const { return stage_of(c_, s).dim; }
  int layers(int s) const { return stage_of(c_, s).n_layers; }
  int rows(int s) const { return rows_.stage[s].rows(); }
  const float* value(size_t offset) const { return m_.values.data() + offset; }

  // y (count, rows of w) = x w^T + bias.
  void biased(const Rows& x, int count, const LearnedMatrix& w, size_t bias, const Rows& y) {
    for (int t = 0; t < count; t++) std::memcpy(y.row(t), value(bias), padded16(w.rows) * sizeof(float));
    by_weight(x, count, w, y, true);
  }
  void biased_backward(const LearnedMatrix& w, size_t bias, const Rows& x, const Rows& dy, int count, const Rows& dx) {
    for (int t = 0; t < count; t++) k_.add(g_ + bias, dy.row(t), w.rows);
    weight_backward(w, x, dy, count, dx);
  }

  // ---- Inputs of the stages ----

  // Row r of the global stage: the embedding of the patch, plus its position.
  void embed_patches(const Window& w) {
    const int D = c_.global.dim, d = c_.local.dim, n = rows(0) - 1, width = c_.patch_dim();
    const Parameter& bytes = *m_.stages[0].embedding;
    const Rows& x = input(0);
    std::memcpy(x.row(0), value(m_.stages[0].start), padded16(D) * sizeof(float));
    for (int r = 0; r < n; r++) {
      for (int i = 0; i < c_.patch_size; i++)
        std::memcpy(a_.joined.row(r) + i * d,
                    value(bytes.offset) + size_t(w.ids[size_t(rows_.begin[size_t(r) + 1] + i)]) * bytes.stride,
                    size_t(d) * sizeof(float));
      own_.layer_norm(a_.joined.row(r), nullptr, value(m_.patch_norm), value(m_.patch_norm_bias), a_.joined_norm.row(r),
                      width);
    }
    biased(a_.joined_norm, n, m_.patch, m_.patch_bias, a_.embedded);
    for (int r = 0; r < n; r++) {
      own_.layer_norm(a_.embedded.row(r), nullptr, value(m_.embedded_norm), value(m_.embedded_norm_bias), x.row(r + 1),
                      D);
      if (c_.positions) k_.add(x.row(r + 1), value(position(0, r + 1)), D);
    }
  }

  void embed_patches_backward(const Window& w) {
    const int D = c_.global.dim, d = c_.local.dim, n = rows(0) - 1, width = c_.patch_dim();
    const Parameter& bytes = *m_.stages[0].embedding;
    const Rows& dx = a_.stage[0].dx;
    k_.add(g_ + m_.stages[0].start, dx.row(0), D);
    for (int r = 0; r < n; r++) {
      if (c_.positions) k_.add(g_ + position(0, r + 1), dx.row(r + 1), D);
      own_.layer_norm_backward(
          {dx.row(r + 1), a_.embedded.row(r), value(m_.embedded_norm), a_.dembedded.row(r), g_ + m_.embedded_norm, D},
          g_ + m_.embedded_norm_bias);
    }
    biased_backward(m_.patch, m_.patch_bias, a_.joined_norm, a_.dembedded, n, a_.djoined_norm);
    for (int r = 0; r < n; r++) {
      own_.layer_norm_backward({a_.djoined_norm.row(r), a_.joined.row(r), value(m_.patch_norm), a_.djoined.row(r),
                                g_ + m_.patch_norm, width},
                               g_ + m_.patch_norm_bias);
      for (int i = 0; i < c_.patch_size; i++)
        k_.add(g_ + bytes.offset + size_t(w.ids[size_t(rows_.begin[size_t(r) + 1] + i)]) * bytes.stride,
               a_.djoined.row(r) + i * d, d);
    }
  }

  // Row r of the local stage: the embedding of the byte, plus its position in the patch and the global stage's output.
  void embed_bytes(const Window& w) {
    const int d = c_.local.dim;
    const Parameter& bytes = *m_.stages[1].embedding;
    const Rows& x = input(1);
    for (int r = 0; r < rows(1); r++) {
      const int from = rows_.patch_row[size_t(r)], slot = rows_.patch_slot[size_t(r)];
      if (from < 0) {
        std::memcpy(x.row(r), value(m_.stages[1].start), padded16(d) * sizeof(float));
        continue;
      }
      std::memcpy(x.row(r), value(bytes.offset) + size_t(w.ids[size_t(r - rows_.shift)]) * bytes.stride,
                  padded16(d) * sizeof(float));
      if (c_.positions) k_.add(x.row(r), value(position(1, r)), d);
      k_.add(x.row(r), a_.for_local.row(from) + slot * d, d);
    }
  }

  void embed_bytes_backward(const Window& w) {
    const int d = c_.local.dim;
    const Parameter& bytes = *m_.stages[1].embedding;
    const Rows& dx = a_.stage[1].dx;
    clear(a_.dfor_local, rows(0), c_.patch_dim());
    for (int r = 0; r < rows(1); r++) {
      const int from = rows_.patch_row[size_t(r)], slot = rows_.patch_slot[size_t(r)];
      if (from < 0) {
        k_.add(g_ + m_.stages[1].start, dx.row(r), d);
        continue;
      }
      k_.add(g_ + bytes.offset + size_t(w.ids[size_t(r - rows_.shift)]) * bytes.stride, dx.row(r), d);
      if (c_.positions) k_.add(g_ + position(1, r), dx.row(r), d);
      k_.add(a_.dfor_local.row(from) + slot * d, dx.row(r), d);
    }
  }

  // The offset of the learned position of a row; the start has none.
  size_t position(int s, int r) const {
    const Parameter& p = *m_.stages[s].positions;
    return p.offset + size_t(rows_.stage[s].rotary[size_t(r)] - 1) * p.stride;
  }

  // ---- A stage ----

  const Rows& input(int s) { return a_.stage[s].layers.empty() ? a_.stage[s].x : a_.stage[s].layers[0].x; }

  const float* second_half(int s, const float* x) const { return x + (dim(s) + 1) / 2; }
  const float* shifted_in(int s, const Rows& x, int r) const {
    const int before = rows_.stage[s].previous[size_t(r)];
    return before < 0 ? a_.nothing.data : second_half(s, x.row(before));
  }

  void final_norm(int s) {
    const Rows &x = a_.stage[s].x, &y = a_.stage[s].xn;
    for (int r = 0; r < rows(s); r++)
      own_.shift_norm(x.row(r), second_half(s, x.row(r)), value(m_.stages[s].norm), y.row(r), dim(s));
  }

  void shift_norm(int s, const Rows& x, size_t weight, const Rows& y) {
    for (int r = 0; r < rows(s); r++) own_.shift_norm(x.row(r), shifted_in(s, x, r), value(weight), y.row(r), dim(s));
  }

  // dx += the gradient of the shifted and normalized rows x, from the gradient of the result in dnorm.
  void shift_norm_backward(int s, const Rows& x, size_t weight) {
    const int n = dim(s), half = (n + 1) / 2;
    const Rows& dx = a_.stage[s].dx;
    float *shifted = a_.shifted[s].data, *dshifted = a_.dshifted[s].data;
    for (int r = 0; r < rows(s); r++) {
      std::memcpy(shifted, x.row(r), size_t(half) * sizeof(float));
      std::memcpy(shifted + half, shifted_in(s, x, r), size_t(n - half) * sizeof(float));
      std::memset(dshifted, 0, padded16(n) * sizeof(float));
      own_.floor_norm_backward({a_.stage[s].dnorm.row(r), shifted, value(weight), dshifted, g_ + weight, n});
      k_.add(dx.row(r), dshifted, half);
      const int before = rows_.stage[s].previous[size_t(r)];
      if (before >= 0) k_.add(dx.row(before) + half, dshifted + half, n - half);
    }
  }

  void rope(int s, const Rows& qkv, const std::vector<float>& sin) {
    if (!c_.rotary) return;
    const size_t half = size_t(c_.head_dim) / 2;
    for (int r = 0; r < rows(s); r++) {  // the keys follow the queries
      const size_t at = size_t(rows_.stage[s].rotary[size_t(r)]) * half;
      k_.rope(qkv.row(r), 2 * c_.n_heads, c_.head_dim, rotation_.cos.data() + at, sin.data() + at);
    }
  }

  // Copies rows to their positions of attention.
  void spread(int s, const Rows& from, const Rows& to, int cols) {
    const StageRows& rows = rows_.stage[s];
    for (int p = 0; p < rows.positions(); p++)
      std::memcpy(to.row(p), from.row(rows.source[size_t(p)]), size_t(cols) * sizeof(float));
  }

  void attention(int s, const StageActivated::OfLayer& a) {
    const StageRows& rows = rows_.stage[s];
    spread(s, a.qkv, a_.spread, 3 * c_.q_dim());
    a_.attention.forward({k_, a_.spread, rows.first, rows.positions()}, {a_.spread_out, a.softmax});
    for (int p = 0; p < rows.positions(); p++)
      if (!rows.repeats[size_t(p)])
        std::memcpy(a.attention.row(rows.source[size_t(p)]), a_.spread_out.row(p), size_t(c_.q_dim()) * sizeof(float));
  }

  // The result of a row is used once, its keys and values by every sequence that it takes part in.
  void attention_backward(int s, const StageActivated::OfLayer& a) {
    const StageRows& rows = rows_.stage[s];
    StageActivated& stage = a_.stage[s];
    spread(s, a.qkv, a_.spread, 3 * c_.q_dim());
    spread(s, a.attention, a_.spread_out, c_.q_dim());
    spread(s, stage.dattention, a_.dspread_out, c_.q_dim());
    for (int p = 0; p < rows.positions(); p++)
      if (rows.repeats[size_t(p)]) std::memset(a_.dspread_out.row(p), 0, size_t(c_.q_dim()) * sizeof(float));
    a_.attention.backward({k_, a_.spread, rows.first, rows.positions()}, {a_.spread_out, a.softmax}, a_.dspread_out,
                          a_.dspread);
    clear(stage.dqkv, rows.rows(), 3 * c_.q_dim());
    for (int p = 0; p < rows.positions(); p++)
      k_.add(stage.dqkv.row(rows.source[size_t(p)]), a_.dspread.row(p), 3 * c_.q_dim());
  }

  void layer(int s, int l) {
    const LearnedMegabyteLayer& m = m_.stages[s].layers[size_t(l)];
    StageActivated& stage = a_.stage[s];
    StageActivated::OfLayer& a = stage.layers[size_t(l)];
    const Rows& out = l + 1 < layers(s) ? stage.layers[size_t(l) + 1].x : stage.x;
    const int n = rows(s);
    shift_norm(s, a.x, m.attention_norm, a.xn);
    by_weight(a.xn, n, m.qkv, a.qkv);
    rope(s, a.qkv, rotation_.sin);
    attention(s, a);
    copy(a.x, a.middle, n, dim(s));
    by_weight(a.attention, n, m.out, a.middle, true);
    shift_norm(s, a.middle, m.ffn_norm, a.mn);
    biased(a.mn, n, m.up, m.up_bias, a.up);
    for (int r = 0; r < n; r++) own_.gelu(a.up.row(r), stage.hidden.row(r), m.up.rows);
    copy(a.middle, out, n, dim(s));
    for (int r = 0; r < n; r++) k_.add(out.row(r), value(m.down_bias), dim(s));
    by_weight(stage.hidden, n, m.down, out, true);
  }

  void stage_backward(int s) {
    StageActivated& stage = a_.stage[s];
    clear(stage.dx, rows(s), dim(s));
    for (int r = 0; r < rows(s); r++)
      own_.floor_norm_backward({stage.dnorm.row(r), stage.x.row(r), value(m_.stages[s].norm), stage.dx.row(r),
                                g_ + m_.stages[s].norm, dim(s)});
    for (int l = layers(s) - 1; l >= 0; l--) layer_backward(s, l);
  }

  // dx: on entry the gradient of the layer's output, on return the gradient of its input.
  void layer_backward(int s, int l) {
    const LearnedMegabyteLayer& m = m_.stages[s].layers[size_t(l)];
    StageActivated& stage = a_.stage[s];
    StageActivated::OfLayer& a = stage.layers[size_t(l)];
    const int n = rows(s);
    input_backward(m.down, stage.dx, n, stage.dhidden);
    for (int r = 0; r < n; r++) {
      k_.add(g_ + m.down_bias, stage.dx.row(r), dim(s));
      own_.gelu_backward(a.up.row(r), stage.dhidden.row(r), stage.hidden.row(r), stage.dup.row(r), m.up.rows);
    }
    matrix_backward(m.down, stage.hidden, stage.dx, n);
    biased_backward(m.up, m.up_bias, a.mn, stage.dup, n, stage.dnorm);
    shift_norm_backward(s, a.middle, m.ffn_norm);
    weight_backward(m.out, a.attention, stage.dx, n, stage.dattention);
    attention_backward(s, a);
    rope(s, stage.dqkv, rotation_.minus_sin);
    weight_backward(m.qkv, a.xn, stage.dqkv, n, stage.dnorm);
    shift_norm_backward(s, a.x, m.attention_norm);
  }

  const MegabyteWeights& m_;
  const MegabyteTrainKernels& own_;
  const MegabyteConfig& c_;
  MegabyteActivated a_;
  MegabyteRows rows_;
  Rotation rotation_;
};

inline std::unique_ptr<SequencePass> MegabyteWeights::new_pass(const TrainKernels& kernels,
                                                               const PassOptions& options) const {
  return std::make_unique<MegabytePass>(*this, kernels, options);
}

// Initial weights: matrices are normal with standard deviation 0.5 / sqrt(cols), divided by sqrt(2 layers of the stage)
// for the matrices that add to a residual stream; norms are 1, biases 0. Embeddings and starts have standard deviation
// 0.3: smaller ones are drowned at first by the global stage's output, which is added to them (after 2 MB of
// TinyStories a model of 1.1 M parameters has 2.40 bits per byte with 0.05, 2.13 with 0.3, 2.17 with 1).
inline void initialize(MegabyteWeights& m, uint64_t seed) {
  for (const Parameter& p : m.parameters) {
    const std::string &name = p.spec.name, last = name.substr(name.rfind('.') + 1);
    if (p.spec.layout == Layout::rows || last == "start") {
      fill_normal(p, 0.3, seed, m.values);
    } else if (p.decays()) {
      const int layers = stage_of(m.config, name.rfind("local.", 0) == 0).n_layers;
      const double added = last == "wo" || last == "w2" ? 1 / std::sqrt(2.0 * layers) : 1;
      fill_normal(p, 0.5 / std::sqrt(double(p.spec.cols)) * added, seed, m.values);
    } else {
      std::fill(m.values.data() + p.offset, m.values.data() + p.offset + p.spec.cols, last == "bias" ? 0.f : 1.f);
    }
  }
}

}  // namespace pocket
