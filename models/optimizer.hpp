// optimizer.hpp: the gradient of a batch, summed in a fixed order, and AdamW with warm-up, cosine decay of the learning
// rate and a clipped gradient norm.
#pragma once

#include <cmath>
#include <functional>
#include <memory>
#include <vector>

#include "muon.hpp"

namespace pocket {

// The learning rate of step 0 ... steps - 1: a linear rise over `warmup` steps, then half a cosine down to 0.
inline double learning_rate(double highest, int64_t step, int64_t warmup, int64_t steps) {
  if (step < warmup) return highest * double(step + 1) / double(warmup + 1);
  const double share = double(step - warmup) / double(std::max<int64_t>(1, steps - warmup));
  double sine, cosine;
  exact::sincos(3.14159265358979323846 * share, sine, cosine);
  return highest * 0.5 * (1 + cosine);
}

// Settings of AdamW.
struct AdamOptions {
  double beta1 = 0.9, beta2 = 0.99, eps = 1e-8;
  double decay = 0.1;  // weight decay of matrices, decoupled: a step subtracts rate * decay of each weight
  double clip = 1;     // largest norm of the gradient; longer ones are scaled down
  bool muon = false;   // the matrices of the layers take steps of Muon instead
};

// A model, its optimizer, and the threads they run on.
class Trainer {
 public:
  // For sequences of at most `tokens` tokens. kernels: see find_train_kernels(). teacher: null if there is none.
  Trainer(LearnedWeights& model, int threads, int tokens, const TrainKernels& kernels, Teacher* teacher = nullptr)
      : m_(model), k_(kernels), pool_(threads) {
    const size_t n = model.learned().size();
    mean = Floats(n);
    square = Floats(n);
    for (int i = 0; i < pool_.threads(); i++) passes_.push_back(model.new_pass(kernels, {tokens, teacher, i}));
    for (const Parameter& p : model.learned_parameters())
      for (size_t at = 0; at < p.size(); at += kPiece)
        pieces_.push_back({p.offset + at, int(std::min(kPiece, p.size() - at)), p.decays(), is_matrix_of_layer(p)});
    square_sums_.resize(pieces_.size());
    m_.pack_weights(pool_, k_);
  }

  // Bytes of memory that training takes: weights and packed weights; trained values, optimizer state and gradients; a
  // SequencePass for each thread.
  static size_t memory_bytes(const std::vector<Parameter>& all, const Adapters& adapters, size_t pass_bytes,
                             int threads, int batch) {
    const size_t n = floats_of(all), added = floats_of(adapters.parameters), learned = adapters.rank > 0 ? added : n;
    return (3 * n + added + (2 + size_t(std::min(batch, kLanes))) * learned) * sizeof(float) +
           size_t(threads) * pass_bytes;
  }

  // Returns the mean loss over the batch's targets: -ln p(target), in nats, or with a teacher the loss of distill_body.
  // Its gradient is in gradient(). step: of the training; with dropout each has masks of its own.
  double learn(const std::vector<Window>& batch, int64_t step = 0) {
    const size_t lanes = std::min<size_t>(batch.size(), kLanes);
    while (lanes_.size() < lanes) lanes_.emplace_back(m_.learned().size());
    size_t counted = 0;
    for (const Window& w : batch)
      for (int target : w.targets) counted += target >= 0;
    std::vector<double> losses(batch.size());
    const float weight = 1.f / float(std::max<size_t>(counted, 1));
    pool_.parallel_for(int(lanes), [&](int lane, int thread) {
      float* gradient = lanes_[size_t(lane)].data();
      std::memset(gradient, 0, m_.learned().size() * sizeof(float));
      for (size_t i = size_t(lane); i < batch.size() && !stopped(); i += kLanes) {
        SequencePass& pass = *passes_[size_t(thread)];
        pass.dropout = {dropout_, Dropout::key_of(dropout_seed_, step, i)};
        pass.forward(batch[i]);
        losses[i] = pass.backward(batch[i], weight, gradient);
        pass.dropout = {};
      }
    });
    double sum = 0;
    for (double loss : losses) sum += loss;
    add_lanes(lanes);
    return sum / double(std::max<size_t>(counted, 1));
  }

  const float* gradient() const { return lanes_[0].data(); }
  double gradient_norm() const { return norm_; }

  // One step of AdamW with gradient(). `step` counts from 1.
  void update(const AdamOptions& o, double rate, int64_t step) {
    const double clip = norm_ > o.clip ? o.clip / norm_ : 1;
    const auto correction = [&](double beta) { return float(1 / (1 - exact::exp(double(step) * exact::log(beta)))); };
    AdamStep a = {float(o.beta1), float(o.beta2),      float(o.eps),       float(rate), 1,
                  float(clip),    correction(o.beta1), correction(o.beta2)};
    AdamStep decayed = a;
    decayed.keep = float(1 - rate * o.decay);
    if (o.muon) update_matrices(float(clip), float(rate), decayed.keep);
    pool_.parallel_for(int(pieces_.size()), [&](int i, int) {
      const Piece& p = pieces_[size_t(i)];
      if (o.muon && p.of_layer) return;
      k_.adam(m_.learned().data() + p.offset, lanes_[0].data() + p.offset, mean.data() + p.offset,
              square.data() + p.offset, p.size, p.decays ? decayed : a);
    });
    m_.pack_weights(pool_, k_);
  }

  // The sum of -ln p(target) over all targets, in nats.
  double evaluate(const std::vector<Window>& windows) {
    std::vector<double> losses(windows.size());
    pool_.parallel_for(int(windows.size()), [&](int i, int thread) {
      if (stopped()) return;
      SequencePass& pass = *passes_[size_t(thread)];
      pass.forward(windows[size_t(i)]);
      losses[size_t(i)] = pass.loss(windows[size_t(i)]);
    });
    double sum = 0;
    for (double loss : losses) sum += loss;
    return sum;
  }

  // The number of tokens whose most likely next token is the teacher's first choice (Window::likeliest).
  size_t agreements(const std::vector<Window>& windows) {
    std::vector<size_t> counts(windows.size());
    pool_.parallel_for(int(windows.size()), [&](int i, int thread) {
      if (stopped()) return;
      SequencePass& pass = *passes_[size_t(thread)];
      pass.forward(windows[size_t(i)]);
      counts[size_t(i)] = pass.agreements(windows[size_t(i)]);
    });
    size_t sum = 0;
    for (const size_t count : counts) sum += count;
    return sum;
  }

  // The logits (vocab_size) of the token after `ids`.
  const float* next_logits(const std::vector<int>& ids) {
    Window w;
    w.ids = ids;
    w.first.assign(ids.size(), 0);
    SequencePass& pass = *passes_[0];
    pass.forward(w);
    return pass.logits(int(ids.size()) - 1, 1).data;
  }

  // Sets the label smoothing of learn(); see LogitRow.
  void set_smoothing(float smoothing) {
    for (const auto& pass : passes_) pass->smoothing = smoothing;
  }

  // Sets the dropout of learn().
  void set_dropout(float rate, uint64_t seed) {
    dropout_ = rate;
    dropout_seed_ = seed;
  }

  // Resets the optimizer to its state before the first step.
  void forget() {
    for (Floats* state : {&mean, &square}) std::fill(state->data(), state->data() + state->size(), 0.f);
  }

  // Call when values of the model were changed from outside.
  void repack() { m_.pack_weights(pool_, k_); }

  Floats mean, square;  // AdamW's: of the gradients, and of their squares
  Floats best;          // the trained values with the lowest validation loss so far; empty: not kept
  // Called between sequences. Once it returns true, learn() and evaluate() end early, and their results are invalid.
  std::function<bool()> cancelled;

 private:
  static constexpr size_t kPiece = 16384;  // floats that one task updates
  struct Piece {
    size_t offset;
    int size;
    bool decays, of_layer;
  };

  static bool is_matrix_of_layer(const Parameter& p) {
    return p.spec.layout == Layout::panels && p.spec.name != "output";
  }

  // The steps of Muon. A matrix is one thread's.
  void update_matrices(float clip, float rate, float keep) {
    std::vector<const Parameter*> matrices;
    int rows = 1, cols = 1;
    for (const Parameter& p : m_.learned_parameters()) {
      if (!is_matrix_of_layer(p)) continue;
      matrices.push_back(&p);
      rows = std::max(rows, std::min(p.spec.rows, p.spec.cols));
      cols = std::max(cols, std::max(p.spec.rows, p.spec.cols));
    }
    while (int(muons_.size()) < pool_.threads()) muons_.push_back(std::make_unique<Muon>(k_, rows, cols));
    pool_.parallel_for(int(matrices.size()), [&](int i, int thread) {
      const Parameter& p = *matrices[size_t(i)];
      muons_[size_t(thread)]->update(p, m_.learned().data() + p.offset, lanes_[0].data() + p.offset,
                                     mean.data() + p.offset, clip, rate, keep);
    });
  }

  bool stopped() const { return cancelled && cancelled(); }

  // Sums the lanes into the first, in order, and computes the norm of the result.
  void add_lanes(size_t lanes) {
    pool_.parallel_for(int(pieces_.size()), [&](int i, int) {
      const Piece& p = pieces_[size_t(i)];
      for (size_t lane = 1; lane < lanes; lane++)
        k_.add(lanes_[0].data() + p.offset, lanes_[lane].data() + p.offset, p.size);
      k_.square_sum(lanes_[0].data() + p.offset, p.size, &square_sums_[size_t(i)]);
    });
    double sum = 0;
    for (float s : square_sums_) sum += double(s);
    norm_ = std::sqrt(sum);
  }

  LearnedWeights& m_;
  const TrainKernels& k_;
  Pool pool_;
  std::vector<std::unique_ptr<SequencePass>> passes_;  // one per thread
  std::vector<Floats> lanes_;                          // gradients
  std::vector<Piece> pieces_;
  std::vector<float> square_sums_;
  std::vector<std::unique_ptr<Muon>> muons_;  // one per thread, when they are used
  double norm_ = 0;
  float dropout_ = 0;
  uint64_t dropout_seed_ = 0;
};

}  // namespace pocket
