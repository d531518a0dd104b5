// optimizer.hpp: gradients of a batch, summed in a fixed order, and AdamW with warm-up, a cosine and a clipped norm.
#pragma once

#include <cmath>
#include <functional>
#include <memory>
#include <vector>

#include "llama_train.hpp"

namespace pocket {

// The learning rate of step 0 ... steps - 1: up in a straight line over `warmup` steps, then down half a cosine to 0.
inline double learning_rate(double highest, int64_t step, int64_t warmup, int64_t steps) {
  if (step < warmup) return highest * double(step + 1) / double(warmup + 1);
  const double share = double(step - warmup) / double(std::max<int64_t>(1, steps - warmup));
  double sine, cosine;
  exact::sincos(3.14159265358979323846 * share, sine, cosine);
  return highest * 0.5 * (1 + cosine);
}

struct AdamOptions {
  double beta1 = 0.9, beta2 = 0.99, eps = 1e-8;
  double decay = 0.1;  // of matrices, decoupled: a step takes rate * decay of each weight away
  double clip = 1;     // the longest gradient that is believed
};

// A model, its optimizer, and the threads that they run on.
class Trainer {
 public:
  // Sequences of at most `tokens` tokens. kernels: see find_train_kernels(). teacher: null if there is none.
  Trainer(LearnedWeights& model, int threads, int tokens, const TrainKernels& kernels, Teacher* teacher = nullptr)
      : m_(model), k_(kernels), pool_(threads) {
    const size_t n = model.learned().size();
    mean = Floats(n), square = Floats(n);
    for (int i = 0; i < pool_.threads(); i++) passes_.push_back(model.new_pass(kernels, {tokens, teacher, i}));
    for (const Parameter& p : model.learned_parameters())
      for (size_t at = 0; at < p.size(); at += kPiece)
        pieces_.push_back({p.offset + at, int(std::min(kPiece, p.size() - at)), p.decays()});
    square_sums_.resize(pieces_.size());
    m_.pack_weights(pool_, k_);
  }

  // Bytes that training takes: weights and packed weights; what is learned, optimizer, gradients; a pass (see
  // LearnedWeights::new_pass) for each thread.
  static size_t memory_bytes(const std::vector<Parameter>& all, const Adapters& adapters, size_t pass_bytes,
                             int threads, int batch) {
    const size_t n = floats_of(all), added = floats_of(adapters.parameters), learned = adapters.rank > 0 ? added : n;
    return (3 * n + added + (2 + size_t(std::min(batch, kLanes))) * learned) * sizeof(float) +
           size_t(threads) * pass_bytes;
  }

  // The mean over the batch's targets of -ln p(target), in nats, or of what a teacher makes of it, and its gradient in
  // gradient().
  double learn(const std::vector<Window>& batch) {
    const size_t lanes = std::min<size_t>(batch.size(), kLanes);
    while (lanes_.size() < lanes) lanes_.emplace_back(m_.learned().size());
    size_t asked = 0;
    for (const Window& w : batch)
      for (int target : w.targets) asked += target >= 0;
    std::vector<double> losses(batch.size());
    const float weight = 1.f / float(std::max<size_t>(asked, 1));
    pool_.parallel_for(int(lanes), [&](int lane, int thread) {
      float* gradient = lanes_[size_t(lane)].data();
      std::memset(gradient, 0, m_.learned().size() * sizeof(float));
      for (size_t i = size_t(lane); i < batch.size() && !stopped(); i += kLanes) {
        SequencePass& pass = *passes_[size_t(thread)];
        pass.forward(batch[i]);
        losses[i] = pass.backward(batch[i], weight, gradient);
      }
    });
    double sum = 0;
    for (double loss : losses) sum += loss;
    add_lanes(lanes);
    return sum / double(std::max<size_t>(asked, 1));
  }

  const float* gradient() const { return lanes_[0].data(); }
  double gradient_norm() const { return norm_; }

  // One step of AdamW along gradient(). step counts from 1.
  void update(const AdamOptions& o, double rate, int64_t step) {
    const double clip = norm_ > o.clip ? o.clip / norm_ : 1;
    const auto correction = [&](double beta) { return float(1 / (1 - exact::exp(double(step) * exact::log(beta)))); };
    AdamStep a = {float(o.beta1), float(o.beta2),      float(o.eps),       float(rate), 1,
                  float(clip),    correction(o.beta1), correction(o.beta2)};
    AdamStep decayed = a;
    decayed.keep = float(1 - rate * o.decay);
    pool_.parallel_for(int(pieces_.size()), [&](int i, int) {
      const Piece& p = pieces_[size_t(i)];
      k_.adam(m_.learned().data() + p.offset, lanes_[0].data() + p.offset, mean.data() + p.offset,
              square.data() + p.offset, p.size, p.decays ? decayed : a);
    });
    m_.pack_weights(pool_, k_);
  }

  // The sum over all targets of -ln p(target), in nats.
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

  // The logits (vocab_size) that follow some tokens.
  const float* next_logits(const std::vector<int>& ids) {
    Window w;
    w.ids = ids;
    w.first.assign(ids.size(), 0);
    SequencePass& pass = *passes_[0];
    pass.forward(w);
    return pass.logits(int(ids.size()) - 1, 1).data;
  }

  // To be called when values of the model were changed from outside.
  void repack() { m_.pack_weights(pool_, k_); }

  Floats mean, square;  // AdamW's: of the gradients, and of their squares
  // Asked between sequences; once it says yes learn() and evaluate() end early, and what they return and leave means
  // nothing.
  std::function<bool()> cancelled;

 private:
  static constexpr size_t kPiece = 16384;  // floats that a task updates
  struct Piece {
    size_t offset;
    int size;
    bool decays;
  };

  bool stopped() const { return cancelled && cancelled(); }

  // Sums the lanes into the first, in order, and the length of the result.
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
  std::vector<std::unique_ptr<SequencePass>> passes_;  // one for each thread
  std::vector<Floats> lanes_;                          // gradients
  std::vector<Piece> pieces_;
  std::vector<float> square_sums_;
  double norm_ = 0;
};

// Matrices get normal numbers of deviation 0.5 / sqrt(cols), those that write to the residual stream smaller ones, the
// more layers add to it; norms are 1.
inline void initialize(TrainModel& m, uint64_t seed) {
  for (const Parameter& p : m.parameters) {
    if (!p.decays()) {
      std::fill(m.values.data() + p.offset, m.values.data() + p.offset + p.spec.cols, 1.f);
      continue;
    }
    const std::string last = p.spec.name.substr(p.spec.name.rfind('.') + 1);
    const double added = last == "wo" || last == "w2" ? 1 / std::sqrt(2.0 * m.config.n_layers) : 1;
    fill_normal(p, 0.5 / std::sqrt(double(p.spec.cols)) * added, seed, m.values);
  }
}

}  // namespace pocket
