// training.hpp: one run of models/train: the training loop, with validations, samples, checkpoints and the loss table.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "loss_chart.hpp"
#include "progress_line.hpp"
#include "train_output.hpp"
#include "train_setup.hpp"

namespace pocket {

// A training from its texts to its result.
class Training {
 public:
  explicit Training(const TrainOptions& options) : o_(options), t_(options) {}

  // Throws Failure.
  void run() {
    t_.prepare();
    saved_step_ = progress_.step;
    if (!o_.resume) checkpoint(true);  // detects a full disk early
    open_log(o_.resume ? progress_.step - validation_due() : -1);
    if (validation_due()) validate();  // interrupted during it
    while (progress_.step < plan_.steps) {
      step();
      if (validation_due())
        validate();
      else if (progress_.step % std::max<int64_t>(1, plan_.every / 10) == 0)
        record(false);
    }
    if (plan_.keep_best && progress_.best_step > 0) {
      std::fprintf(stderr,
                   "train: the best validation was after step %lld, %.4f nats per %s; this state is the result\n",
                   static_cast<long long>(progress_.best_step), progress_.best_loss, unit());
      std::swap(t_.weights->learned(), t_.trainer->best);
      progress_.bits = bits_of(progress_.best_loss * double(count_targets(t_.validation)));
    }
    write_result(t_);
  }

 private:
  const char* unit() const { return t_.architecture->unit(); }

  // Bits per character of the validation texts, of their loss in nats; 0 if they have no characters, as empty replies.
  double bits_of(double sum) const {
    return t_.valid.bytes > 0 ? sum / 0.69314718055994531 / double(t_.valid.bytes) : 0;
  }

  // Whether the validation after this step is to be done.
  bool validation_due() const {
    return progress_.step > progress_.validated && (progress_.step % plan_.every == 0 || progress_.step == plan_.steps);
  }

  void validate() {
    record(true);
    sample();
    checkpoint(false);
  }

  void step() {
    const double begin = seconds();
    const double loss = t_.trainer->learn(t_.next_batch(), progress_.step);
    if (interrupted) stop();
    if (const std::string failure = t_.teacher_failure(); !failure.empty())
      throw Failure{1, o_.teacher + ": " + failure};
    check_finite(loss);
    check_finite(t_.trainer->gradient_norm());
    const double rate = learning_rate(plan_.rate, progress_.step, plan_.warmup, plan_.steps);
    progress_.step++;
    t_.trainer->update(plan_.adam, rate, progress_.step);
    progress_.epoch = t_.stream->epoch();
    progress_.index = t_.stream->index();
    progress_.train += loss;
    progress_.counted++;
    const double time = seconds() - begin;
    progress_.seconds += time;
    show_progress(time, loss, rate);
  }

  // Ends the training before a checkpoint with such a state replaces a good one.
  void check_finite(double loss) {
    if (std::isfinite(loss)) return;
    line_.clear();
    throw Failure{1, "the loss is not finite after step " + std::to_string(progress_.step) +
                         "; start again with --lr below " + std::to_string(plan_.rate) + " (" + o_.checkpoint +
                         " has the state after step " + std::to_string(saved_step_) + ")"};
  }

  void show_progress(double time, double loss, double rate) {
    mean_time_ = mean_time_ > 0 ? mean_time_ + 0.02 * (time - mean_time_) : time;
    mean_loss_ = mean_loss_ > 0 ? mean_loss_ + 0.05 * (loss - mean_loss_) : loss;
    char line[160];
    std::snprintf(line, sizeof line, "step %lld of %lld, loss %.3f, rate %.5f, %.0f %ss/s, %s left",
                  static_cast<long long>(progress_.step), static_cast<long long>(plan_.steps), mean_loss_, rate,
                  double(t_.tokens_per_step()) / mean_time_, unit(),
                  duration_text(mean_time_ * double(plan_.steps - progress_.step)).c_str());
    line_.show(line);
  }

  [[noreturn]] void stop() {
    line_.clear();
    checkpoint(false);
    throw Failure{130, "interrupted after step " + std::to_string(progress_.step) + " of " +
                           std::to_string(plan_.steps) + "; to continue, give the same " + inputs() +
                           " and -o, and --resume"};
  }

  // What a resumed training needs, which the checkpoint does not contain.
  std::string inputs() const {
    std::string all = o_.draft() ? "" : "text";
    for (const std::string name : {"--init", "--teacher", "--valid", "--own-text", "--checkpoint"})
      if (o_.is_given(name.c_str()) && (name != "--init" || plan_.base)) all += (all.empty() ? "" : ", ") + name;
    return all;
  }

  // Opens the table and the chart of the losses.
  void open_log(int64_t resume_step) {
    std::string error;
    if (!log_.open(o_.loss_table(), o_.loss_chart(), base_name(o_.text()) + " to " + base_name(o_.output), resume_step,
                   error))
      throw Failure{1, error};
  }

  // Adds a row to the loss table, with or without a validation.
  void record(bool with_validation) {
    LossRow row;
    row.step = progress_.step;
    row.tokens = progress_.step * t_.tokens_per_step();
    row.seconds = progress_.seconds;
    if (progress_.counted) row.train = progress_.train / double(progress_.counted);
    row.learning_rate = learning_rate(plan_.rate, progress_.step - 1, plan_.warmup, plan_.steps);
    if (with_validation) measure(row);
    progress_.train = 0;
    progress_.counted = 0;
    std::string error;
    if (!log_.add(row, error) || (with_validation && !log_.draw(error))) warn(error);
  }

  void warn(const std::string& error) {
    line_.clear();
    print_message("train", error + "; the training continues");
  }

  // Without validation texts, only whether the loss of a window that is trained on is finite: the last step may have
  // diverged.
  void measure(LossRow& row) {
    const bool measured = !t_.validation.empty();
    const double start = seconds();
    const double sum = measured ? t_.trainer->evaluate(t_.validation) : t_.trainer->evaluate(first_window());
    if (interrupted) stop();
    check_finite(sum);
    if (measured) {
      progress_.seconds += seconds() - start;
      report(row, sum);
    }
    progress_.validated = progress_.step;  // last: an interrupted validation is repeated
  }

  // sum: the loss of the validation texts, nats.
  void report(LossRow& row, double sum) {
    row.validation = sum / double(count_targets(t_.validation));
    progress_.bits = bits_of(sum);
    char bits[80] = "";
    if (t_.valid.bytes > 0) {
      row.bits_per_character = progress_.bits;
      std::snprintf(bits, sizeof bits, ", %.4f bits per character (byte of UTF-8)", progress_.bits);
    }
    line_.clear();
    std::fprintf(stderr, "train: step %lld: validation %.4f nats per %s%s; training %.4f\n",
                 static_cast<long long>(progress_.step), row.validation, unit(), bits, row.train);
    if (t_.stored) print_agreement();
    if (plan_.keep_best && (progress_.best_step == 0 || row.validation < progress_.best_loss)) keep(row.validation);
  }

  std::vector<Window> first_window() const { return {WindowStream(t_.train, plan_.context, plan_.seed).next()}; }

  void keep(double loss) {
    Floats& best = t_.trainer->best;
    std::memcpy(best.data(), t_.weights->learned().data(), best.size() * sizeof(float));
    progress_.best_step = progress_.step;
    progress_.best_loss = loss;
  }

  // The share of a draft's tokens that its teacher would accept at temperature 0.
  void print_agreement() {
    size_t tokens = 0;
    for (const Window& w : t_.validation)
      for (size_t i = 0; i < w.likeliest.size(); i++) tokens += w.likeliest[i] >= 0;
    const size_t agreed = t_.trainer->agreements(t_.validation);
    if (interrupted) stop();
    std::fprintf(stderr, "train: of 100 first choices of the teacher, the draft proposes %.1f\n",
                 100 * double(agreed) / double(std::max<size_t>(tokens, 1)));
  }

  // Writes samples to stdout.
  void sample() {
    if (plan_.examples && !o_.is_given("--prompt")) return write_sample(example_prompt());
    write_sample(t_.architecture->encode_prompt(o_.prompt));
    if (plan_.instruct) write_sample(t_.architecture->encode_prompt(instruction_prompt({{"dog", "cake"}, {}, ""})));
  }

  // The tokens of an example before those that count.
  std::vector<int> example_prompt() const {
    const TokenText& text = t_.valid.ids.empty() ? t_.train : t_.valid;
    size_t n = 1;
    while (n < text.end(0) && !text.counts[n]) n++;
    return {text.ids.begin(), text.ids.begin() + ptrdiff_t(n)};
  }

  void write_sample(std::vector<int> ids) {
    const TrainedArchitecture& architecture = *t_.architecture;
    const size_t context = size_t(plan_.context);
    Sampler pick({0.8f, 0.9f, plan_.seed});
    if (ids.size() > context) ids.resize(context);
    const size_t end = std::min(ids.size() + size_t(architecture.sample_length()), context);
    while (ids.size() < end) {
      const int id = pick(t_.trainer->next_logits(ids), architecture.vocab_size());
      const std::vector<int>& stops = t_.chat.stop_ids;
      if (id == architecture.end_id() || std::find(stops.begin(), stops.end(), id) != stops.end()) break;
      ids.push_back(id);
    }
    const std::string text = architecture.decode(ids);
    std::printf("[step %lld] %s\n", static_cast<long long>(progress_.step),
                (platform::is_terminal(1) ? without_controls(text) : text).c_str());
    std::fflush(stdout);
  }

  // required: a failure ends the program; otherwise it is a warning.
  void checkpoint(bool required) {
    std::string error;
    if (write_checkpoint(o_.checkpoint, plan_, progress_, t_.texts, *t_.weights, *t_.trainer, error)) {
      saved_step_ = progress_.step;
      return;
    }
    if (required) throw Failure{1, error};
    warn(error + "; the checkpoint of step " + std::to_string(saved_step_) + " remains");
  }

  const TrainOptions& o_;
  TrainingSetup t_;
  TrainPlan& plan_ = t_.plan;
  TrainProgress& progress_ = t_.progress;
  ProgressLine line_;
  LossLog log_;
  int64_t saved_step_ = 0;                // step of the checkpoint on disk
  double mean_time_ = 0, mean_loss_ = 0;  // running means: seconds per step, loss
};

}  // namespace pocket
