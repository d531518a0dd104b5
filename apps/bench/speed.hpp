// speed.hpp: the speed and memory of a model, compared with the limits of the machine.
//
// On shared machines the memory bandwidth drifts from minute to minute. Bandwidth and speed are therefore measured in
// turns. The results are the medians of both, and the median of the ratios of adjacent measurements.
#pragma once

#include "machine.hpp"
#include "progress.hpp"
#include "worker.hpp"

namespace pocket::bench {

/// The amount of measuring.
struct Effort {
  int rounds;                  // of measuring everything in turns
  int tries;                   // per measurement of the machine: the median of reading, the best of int8
  int tokens;                  // generated per measurement
  double least_seconds;        // per measurement; shorter work is repeated
  double long_prompt_seconds;  // for all long prompts together; no further one starts after it
};
inline constexpr Effort kThorough = {5, 3, 16, 0.3, 6}, kQuick = {2, 2, 8, 0.05, 0};

/// Limits of the machine, for each number of threads.
struct MachineSpeed {
  struct Read {
    int threads;
    double gb_s;
  };
  struct Int8 {
    std::string kernel;
    int threads;
    double top_s;
  };
  std::vector<Read> read;
  std::vector<Int8> int8;
};

/// Time to open the model, and from the start of a process to its first token.
struct LoadTime {
  std::string kernel;
  int threads;
  double open_ms, first_token_ms;
};

/// Memory of a process after `tokens` tokens: measured, and predicted by memory_of().
struct PeakMemory {
  int tokens;
  double peak, expected;  // bytes
};

/// Speed of prompts of `tokens` tokens.
struct PromptSpeed {
  int tokens;
  double tok_s, top_s;
  double int8_share;  // top_s / the int8 rate
};

/// Speed of generation after `depth` tokens.
struct GenerateSpeed {
  int depth;
  double tok_s, gb_s;
  double read_share;  // gb_s / the bandwidth of reading memory
};

/// Speed of one kernel set with one number of threads. NaN: not measured.
struct ModelSpeed {
  std::string kernel;
  int threads;
  double read_gb_s, int8_top_s;
  std::vector<PromptSpeed> prompts;
  std::vector<GenerateSpeed> generate;  // at depth 0 and at the full depth
  double depth_ratio;                   // speed at full depth / speed at depth 0
};

/// The context used for measuring: the model's, at most 2048.
inline int context_of(const Model& model) { return std::min(model.config.max_seq_len, 2048); }
/// The full depth: 1900 of 2048 positions.
inline int depth_of(int context) { return int(int64_t(context) * 1900 / 2048); }

/// Numbers of weights in matrices that a token is multiplied with.
struct MultipliedWeights {
  double layers = 0, output = 0;
};
inline MultipliedWeights multiplied_weights(const Model& model) {
  MultipliedWeights weights;
  for (const TensorSpec& spec : tensor_specs(model.config))
    if (spec.layout == Layout::panels)
      (spec.name == "output" ? weights.output : weights.layers) += double(spec.rows) * double(spec.cols);
  return weights;
}

inline std::string on_threads(int n) { return std::to_string(n) + (n == 1 ? " thread" : " threads"); }

/// Measures a model and shows the progress. Throws Failure.
class SpeedTest {
 public:
  SpeedTest(const std::string& file, const Model& model, const std::vector<int>& threads,
            const std::vector<std::string>& kernels, bool quick)
      : file_(file),
        model_(model),
        threads_(threads),
        kernels_(kernels),
        effort_(quick ? kQuick : kThorough),
        quick_(quick),
        context_(context_of(model)),
        progress_(steps()) {}

  // The four parts are called in this order: worker processes come first, while this process is small.

  LoadTime load() {
    warm_page_cache();
    LoadTime load = {kernels_[0], threads_.back(), 0, 0};
    std::vector<double> opening, starting;
    for (int i = 0; i < 2 * effort_.rounds; i++) {
      progress_("opening the model");
      Model again;
      const double start = seconds();
      if (!again.open(file_.c_str())) throw Failure{1, again.error};
      opening.push_back(seconds() - start);
    }
    for (int i = 0; i < effort_.rounds; i++) {
      progress_("starting a process");
      const double start = seconds();
      Worker worker(worker_options());
      worker.ask("prompt " + std::to_string(std::min(4, context_)));
      starting.push_back(seconds() - start);
    }
    load.open_ms = median(opening) * 1e3;
    load.first_token_ms = median(starting) * 1e3;
    return load;
  }

  std::vector<PeakMemory> memory() {
    std::vector<PeakMemory> all;
    const int some = std::min(128, context_);
    for (const auto& [prompt, tokens] : {std::pair(std::min(4, some), some), std::pair(deep_prompt(), context_)}) {
      progress_("memory for " + std::to_string(tokens) + " tokens");
      Worker worker(worker_options());
      worker.ask("prompt " + std::to_string(prompt));
      if (tokens > prompt) worker.ask("generate " + std::to_string(tokens - prompt));
      all.push_back({tokens, worker.ask("peak"), worker.ask("expected " + std::to_string(tokens))});
    }
    return all;
  }

  MachineSpeed machine() {
    read_ = std::make_unique<ReadTest>(quick_);
    MachineSpeed speed;
    for (const int threads : threads_) {
      progress_("reading memory, " + on_threads(threads));
      speed.read.push_back({threads, read_->gb_s(threads, 2 * effort_.tries)});
    }
    for (const std::string& kernel : kernel_names())
      for (const int threads : threads_) {
        const Int8Rate* rate = find_int8_rate(kernel);
        progress_("int8 rate of " + kernel + ", " + on_threads(threads));
        if (rate) speed.int8.push_back({kernel, threads, int8_top_s(*rate, threads, 2 * effort_.tries)});
      }
    return speed;
  }

  std::vector<ModelSpeed> speeds() {
    std::vector<ModelSpeed> all;
    for (const std::string& kernel : kernels_)
      for (const int threads : threads_) all.push_back(speed(kernel, threads));
    return all;
  }

 private:
  /// The measurements of all rounds, and the limit of the machine in the same round.
  struct Series {
    std::vector<double> values, limits;
    void add(double value, double limit) {
      values.push_back(value);
      limits.push_back(limit);
    }
  };

  size_t steps() const {
    const size_t sets = kernels_.size() * threads_.size(), rounds = size_t(effort_.rounds);
    return 3 * rounds + 2 + threads_.size() * (1 + kernel_names().size()) + sets * (1 + rounds * 3);
  }

  int deep_prompt() const { return std::max(1, depth_of(context_)); }

  std::vector<std::string> worker_options() const {
    return {file_, "--threads", std::to_string(threads_.back()), "--kernel", kernels_[0]};
  }

  void warm_page_cache() const {
    std::FILE* file = std::fopen(file_.c_str(), "rb");
    std::vector<char> piece(1 << 20);
    while (file && std::fread(piece.data(), 1, piece.size(), file) > 0) stop_if_interrupted();
    if (file) std::fclose(file);
  }

  /// Tokens per second of work(), which processes n tokens and returns the seconds. Short work is repeated.
  template <class F> double rate(int n, const F& work) const {
    double taken = 0, tokens = 0;
    for (; taken < effort_.least_seconds; tokens += n) taken += work();
    return tokens / taken;
  }

  ModelSpeed speed(const std::string& kernel, int threads) {
    const std::string how = ", " + kernel + ", " + on_threads(threads);
    SessionOptions options;
    options.context = context_;
    options.threads = threads;
    options.kernel = kernel.c_str();
    const int depth = depth_of(context_), tokens = std::min(effort_.tokens, context_ - depth);
    const auto read = [&] { return read_->gb_s(threads, effort_.tries); };
    Meter meter(model_, options), deep(model_, options);
    progress_("filling " + std::to_string(depth) + " positions" + how);
    if (depth > 0) deep.prompt(depth);
    Series start, end, prompts[2];
    for (int round = 0; round < effort_.rounds; round++) {
      progress_("generating at depth 0" + how);
      meter.reset();
      const double read0 = read(), at_start = rate(tokens, [&] { return meter.generate(tokens); }), read1 = read();
      progress_("generating at depth " + std::to_string(depth) + how);
      const double at_depth = rate(tokens, [&] { return deep.generate(tokens); }), read2 = read();
      start.add(at_start, (read0 + read1) / 2);
      end.add(at_depth, (read1 + read2) / 2);
      progress_("prompts" + how);
      for (int i = 0; i < 2; i++) prompt_round(meter, kernel, threads, prompt_length(i), prompts[i]);
    }
    ModelSpeed speed = {kernel, threads, median(start.limits), median(prompts[0].limits), {}, {}, 0};
    for (int i = 0; i < 2; i++) speed.prompts.push_back(prompt_speed(prompt_length(i), prompts[i]));
    speed.generate = {generate_speed(0, start), generate_speed(depth, end)};
    speed.depth_ratio = median_ratio(end.values, start.values);
    return speed;
  }

  /// Measures a prompt of n tokens, unless long prompts have used up their time.
  void prompt_round(Meter& meter, const std::string& kernel, int threads, int n, Series& prompts) const {
    double taken = 0;
    for (const double tok_s : prompts.values) taken += n / tok_s;
    if (!prompts.values.empty() && n > 32 && taken > effort_.long_prompt_seconds) return;
    const Int8Rate* instruction = model_.all_f32 ? nullptr : find_int8_rate(kernel);
    const auto int8 = [&] { return instruction ? int8_top_s(*instruction, threads, effort_.tries) : std::nan(""); };
    const double before = int8(), speed = rate(n, [&] { return meter.prompt(n); });
    prompts.add(speed, (before + int8()) / 2);
  }

  int prompt_length(int i) const { return std::min(i == 0 ? 32 : 512, context_); }

  /// The output matrix counts once, because only the last token of a prompt has logits.
  PromptSpeed prompt_speed(int n, const Series& s) const {
    const auto [layers, output] = multiplied_weights(model_);
    const double operations = 2 * (layers + output / n) / 1e12, speed = median(s.values);
    return {n, speed, operations * speed, operations * median_ratio(s.values, s.limits)};
  }

  GenerateSpeed generate_speed(int depth, const Series& s) const {
    const double gb = double(model_.bytes_per_token) / 1e9, speed = median(s.values);
    return {depth, speed, gb * speed, gb * median_ratio(s.values, s.limits)};
  }

  const std::string file_;
  const Model& model_;
  const std::vector<int> threads_;
  const std::vector<std::string> kernels_;
  const Effort effort_;
  const bool quick_;
  const int context_;
  Progress progress_;
  std::unique_ptr<ReadTest> read_;
};

}  // namespace pocket::bench
