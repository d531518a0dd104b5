// training_state.hpp: the plan and the progress of a training, and the checkpoint that --resume continues from.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <string>
#include <string_view>
#include <type_traits>

#include "../export/byte_reader.hpp"
#include "../export/output_file.hpp"
#include "distill.hpp"
#include "lora_train.hpp"
#include "megabyte/megabyte_train.hpp"
#include "optimizer.hpp"

namespace pocket {

// Together with the texts, the plan determines the result bit for bit. Part of the checkpoint.
struct TrainPlan {
  uint32_t architecture = kLlama;  // or kMegabyte
  Config config;                   // shape of a Llama
  MegabyteConfig megabyte;         // shape of a MEGABYTE
  int64_t steps = 0, warmup = 0;
  int64_t every = 0;    // steps between two validations
  int32_t batch = 0;    // windows per step
  int32_t context = 0;  // tokens per window
  double rate = 0;      // highest learning rate
  AdamOptions adam;
  LoraPlan lora;
  DistillPlan distill;
  uint64_t seed = 0;
  bool instruct = false;                   // stories follow instructions
  bool examples = false;                   // the text is examples, which stay whole
  bool loss_on_all = false;                // of examples: the prompts count too
  bool keep_best = false;                  // the result is the state with the best validation, not the last one
  float smoothing = 0;                     // of labels: the share of the loss that is spread over all tokens
  float dropout = 0;                       // probability that an element of a residual branch is dropped
  uint64_t base = 0;                       // checksum of the frozen model file that an adapter is of; 0: none
  uint64_t text_hash = 0, valid_hash = 0;  // of the token ids of the texts
};

inline std::vector<Parameter> parameters_of(const TrainPlan& plan) {
  return plan.architecture == kMegabyte ? parameters_of(plan.megabyte) : parameters_of(plan.config);
}

// The progress of a training. Part of the checkpoint.
struct TrainProgress {
  int64_t step = 0;              // steps done
  int64_t epoch = 0, index = 0;  // of the next window
  double seconds = 0;            // time of training so far
  double train = 0;              // sum of the losses since the last row of the loss table
  int64_t counted = 0;           // number of steps in that sum
  double bits = 0;               // bits per character of the last validation
  int64_t validated = 0;         // step of the last validation
  int64_t best_step = 0;         // step of the best validation; 0: none yet
  double best_loss = 0;          // its loss, nats per token
};

// What a model file has besides its weights. Part of the checkpoint.
struct ModelTexts {
  std::string tokenizer = {};              // blob
  std::string chat = {}, provenance = {};  // of the model that the training continues, else "": sections of its file
};

inline constexpr char kCheckpointMagic[8] = {'P', 'K', 'T', 'T', 'R', 'A', 'I', 'N'};
inline constexpr uint32_t kCheckpointVersion = 6;

// ---- The fields of a checkpoint ----
//
// for_each_field() lists the fields in the order of the file, each with its range: each(name, variable, low, high). The
// range may depend on fields before it. Returns false once each() does.

template <class Each> bool for_each_field(Config& c, const Each& each) {
  constexpr int kAny = INT32_MAX;  // check_config() has the limits
  return each("dim", c.dim, 0, kAny) && each("hidden_dim", c.hidden_dim, 0, kAny) &&
         each("n_layers", c.n_layers, 0, kAny) && each("n_heads", c.n_heads, 0, kAny) &&
         each("n_kv_heads", c.n_kv_heads, 0, kAny) && each("head_dim", c.head_dim, 0, kAny) &&
         each("vocab_size", c.vocab_size, 0, kAny) && each("max_seq_len", c.max_seq_len, 0, kAny) &&
         each("norm_eps", c.norm_eps, 0, 1e30) && each("rope_theta", c.rope_theta, 0, 1e30) &&
         each("rope_scaling", c.rope_scaling, 0, int(RopeScaling::llama3)) &&
         each("rope_factor", c.rope_factor, 0, 1e30) && each("rope_low_freq", c.rope_low_freq, 0, 1e30) &&
         each("rope_high_freq", c.rope_high_freq, 0, 1e30) && each("rope_original_len", c.rope_original_len, 0, kAny) &&
         each("tied", c.tied, 0, 1);
}

template <class Each> bool for_each_field(MegabyteConfig& c, const Each& each) {
  constexpr int kAny = INT32_MAX;  // check_config() has the limits
  return each("dim", c.global.dim, 0, kAny) && each("hidden_dim", c.global.hidden_dim, 0, kAny) &&
         each("n_layers", c.global.n_layers, 0, kAny) && each("local dim", c.local.dim, 0, kAny) &&
         each("local hidden_dim", c.local.hidden_dim, 0, kAny) && each("local n_layers", c.local.n_layers, 0, kAny) &&
         each("n_heads", c.n_heads, 0, kAny) && each("head_dim", c.head_dim, 0, kAny) &&
         each("patches", c.patches, 0, kAny) && each("patch_size", c.patch_size, 0, kAny) &&
         each("rotary", c.rotary, 0, 1) && each("positions", c.positions, 0, 1);
}

template <class Each> bool for_each_field(AdamOptions& a, const Each& each) {
  return each("beta1", a.beta1, 0, 0.9999) && each("beta2", a.beta2, 0, 0.999999) && each("eps", a.eps, 1e-30, 1) &&
         each("weight decay", a.decay, 0, 10) && each("clip", a.clip, 0, 1e9) && each("muon", a.muon, 0, 1);
}

// Times 2^32, the most tokens of a step, less than 2^63.
inline constexpr int64_t kMostSteps = int64_t(1) << 30;

// The ranges are those of the options of models/train. A MEGABYTE has no adapters, no teacher and no instructions.
template <class Each> bool for_each_field(TrainPlan& p, const Each& each) {
  if (!each("architecture", p.architecture, kLlama, kMegabyte)) return false;
  const bool llama = p.architecture == kLlama;
  const int64_t least = llama ? INT64_MIN : 0, most = llama ? INT64_MAX : 0;
  return (llama ? for_each_field(p.config, each) : for_each_field(p.megabyte, each)) &&
         each("steps", p.steps, 1, kMostSteps) && each("warmup", p.warmup, 0, p.steps) &&
         each("every", p.every, 1, kMostSteps) && each("batch", p.batch, 1, 1 << 16) &&
         each("context", p.context, 2, 1 << 16) && each("learning rate", p.rate, 1e-12, 1e31) &&
         for_each_field(p.adam, each) && each("lora rank", p.lora.rank, 0, llama ? kMostRank : 0) &&
         each("lora alpha", p.lora.alpha, 0, 1e7) &&
         each("lora targets", p.lora.targets, p.lora.rank > 0, (1 << std::size(kLoraTargets)) - 1) &&
         each("teacher weight", p.distill.share, 0, 1) && each("temperature", p.distill.temperature, 0.01, 1000) &&
         each("teacher", p.distill.teacher, least, most) &&
         each("own texts", p.distill.texts, 0, llama ? INT32_MAX : 0) && each("seed", p.seed, 0, int64_t(9e15)) &&
         each("instruct", p.instruct, 0, llama) && each("examples", p.examples, 0, llama) &&
         each("loss on all", p.loss_on_all, 0, p.examples) && each("keep best", p.keep_best, 0, 1) &&
         each("label smoothing", p.smoothing, 0, 0.9) && each("dropout", p.dropout, 0, llama ? 0.9 : 0) &&
         each("base", p.base, p.lora.rank > 0 ? least : 0, p.lora.rank > 0 ? most : 0) &&
         each("text", p.text_hash, INT64_MIN, INT64_MAX) && each("validation text", p.valid_hash, INT64_MIN, INT64_MAX);
}

template <class Each> bool for_each_field(TrainProgress& p, const TrainPlan& plan, const Each& each) {
  const int64_t most_windows = plan.steps * plan.batch;  // an epoch has at least one
  return each("step", p.step, 0, plan.steps) && each("epoch", p.epoch, 0, most_windows) &&
         each("index", p.index, 0, most_windows) && each("seconds", p.seconds, 0, 1e12) &&
         each("sum of losses", p.train, -1e300, 1e300) && each("losses", p.counted, 0, p.step) &&
         each("bits per character", p.bits, -1e300, 1e300) && each("validated", p.validated, 0, p.step) &&
         each("best step", p.best_step, 0, p.step) && each("best loss", p.best_loss, 0, 1e300);
}

// Writes a field in 8 bytes: a whole number as int64, a real number as double.
struct FieldWriter {
  ByteWriter& out;

  template <class T, class Low, class High> bool operator()(const char*, const T& value, Low, High) const {
    if constexpr (std::is_floating_point_v<T>)
      out.put(double(value));
    else
      out.put(int64_t(value));
    return true;
  }
};

// The type of a field in the file.
template <class T> using StoredField = std::conditional_t<std::is_floating_point_v<T>, double, int64_t>;

// Checks a field. False with `error` set if it is not in its range.
struct FieldChecker {
  const std::string& path;
  std::string& error;

  template <class T, class Low, class High>
  bool operator()(const char* name, const T& value, Low low, High high) const {
    using Stored = StoredField<T>;
    const Stored stored = Stored(value);
    return (stored >= Stored(low) && stored <= Stored(high)) ||
           fail(error, {path, ": ", name, ": expected ", text(Stored(low)), " to ", text(Stored(high)), ", found ",
                        text(stored)});
  }

 private:
  static std::string text(int64_t number) { return std::to_string(number); }
  static std::string text(double number) {
    char digits[32];
    std::snprintf(digits, sizeof digits, "%g", number);
    return digits;
  }
};

// Reads a field and checks it.
struct FieldReader {
  ByteReader& in;
  const std::string& path;
  std::string& error;

  template <class T, class Low, class High> bool operator()(const char* name, T& value, Low low, High high) const {
    const StoredField<T> stored = in.get<StoredField<T>>();
    if (!in.ok) return fail(error, {path, ": ", name, ": truncated"});
    if (!FieldChecker{path, error}(name, stored, low, high)) return false;
    value = static_cast<T>(stored);
    return true;
  }
};

// ---- The file ----

// The arrays of a checkpoint, in order: weights, none if they are frozen in a file; adapters if there are any; AdamW's
// means and squares; the best values if they are kept.
template <class M, class T> auto arrays_of(M& model, T& trainer) {
  std::vector all = {&model.values, &trainer.mean, &trainer.square};
  if (model.adapted()) all.insert(all.begin() + 1, &model.adapters.values);
  if (trainer.best.size() > 0) all.push_back(&trainer.best);
  return all;
}

// The beginning of a checkpoint: magic, version, the fields of plan and progress, and the texts, each after its size.
inline ByteWriter checkpoint_head(TrainPlan plan, TrainProgress progress, const ModelTexts& texts) {
  ByteWriter out;
  out.bytes.append(kCheckpointMagic, sizeof kCheckpointMagic);
  out.put(kCheckpointVersion);
  for_each_field(plan, FieldWriter{out});
  for_each_field(progress, plan, FieldWriter{out});
  for (const std::string* text : {&texts.tokenizer, &texts.chat, &texts.provenance}) out.put_string(*text);
  return out;
}

// A file that is written piece by piece, and XXH64 of its bytes.
class HashedFile {
 public:
  bool open(const std::string& path) { return file_.open(path); }
  void write(const void* data, size_t n) {
    file_.write(data, n);
    for (const char* at = static_cast<const char*>(data); n > 0;) {
      const bool whole = rest_.empty() && n >= kStripe;
      const size_t take = whole ? n / kStripe * kStripe : std::min(n, kStripe - rest_.size());
      whole ? void(hash_.update(at, take)) : void(rest_.append(at, take));
      if (rest_.size() == kStripe) flush();
      at += take;
      n -= take;
    }
  }
  // Completes the file with the hash.
  bool finish() {
    flush();
    const uint64_t digest = hash_.digest();
    return file_.write(&digest, sizeof digest) && file_.finish();
  }
  std::string error() const { return file_.error(); }

 private:
  static constexpr size_t kStripe = 32;  // Hash64 takes whole ones, but for the last
  void flush() {
    if (!rest_.empty()) hash_.update(rest_.data(), rest_.size());
    rest_.clear();
  }
  OutputFile file_;
  Hash64 hash_;
  std::string rest_;  // less than a stripe
};

// Checks that the numbers of an array, little-endian, are finite.
inline bool check_finite(const std::string& path, std::string_view numbers, std::string& error) {
  for (size_t at = 0; at < numbers.size(); at += sizeof(float))
    if (const float x = load<float>(numbers.data() + at); !std::isfinite(x))
      return fail(error, {path, ": weights: expected finite numbers, found ", x});
  return true;
}

// Checks what CheckpointFile::read() would refuse, so that the state of a training that has diverged does not replace a
// good one.
inline bool check_state(const std::string& path, TrainPlan plan, TrainProgress progress, const LearnedWeights& model,
                        const Trainer& trainer, std::string& error) {
  const FieldChecker field{path, error};
  if (!for_each_field(plan, field) || !for_each_field(progress, plan, field)) return false;
  for (const Floats* f : arrays_of(model, trainer))
    if (!check_finite(path, {reinterpret_cast<const char*>(f->data()), f->size() * sizeof(float)}, error)) return false;
  return true;
}

// Writes a checkpoint, little-endian: checkpoint_head(), the arrays, and XXH64 of all the bytes before.
inline bool write_checkpoint(const std::string& path, const TrainPlan& plan, const TrainProgress& progress,
                             const ModelTexts& texts, const LearnedWeights& model, const Trainer& trainer,
                             std::string& error) {
  if (!check_state(path, plan, progress, model, trainer, error)) return false;
  const ByteWriter head = checkpoint_head(plan, progress, texts);
  HashedFile file;
  if (!file.open(path)) return fail(error, file.error());
  file.write(head.bytes.data(), head.bytes.size());
  for (const Floats* f : arrays_of(model, trainer)) file.write(f->data(), f->size() * sizeof(float));
  return file.finish() || fail(error, file.error());
}

// A checkpoint that has been read and checked.
struct CheckpointFile {
  TrainPlan plan;
  TrainProgress progress;
  ModelTexts texts;
  std::string bytes;        // the whole file
  std::string_view arrays;  // its arrays, float32

  // On failure returns false with `error` set.
  bool read(const std::string& path, std::string& error) {
    constexpr uint64_t kLargest = uint64_t(64) << 30;
    if (!read_small_file(path, kLargest, bytes, error)) return false;
    const auto refuse = [&](const std::string& why) { return fail(error, path + ": " + why); };
    ByteReader in{bytes};
    if (in.take(8) != std::string_view(kCheckpointMagic, 8)) return refuse("is not a checkpoint of models/train");
    if (in.get<uint32_t>() != kCheckpointVersion)
      return refuse("the checkpoint was written by another version of models/train");
    if (bytes.size() < 40 || hash_bytes(bytes.data(), bytes.size() - 8) != load<uint64_t>(&bytes[bytes.size() - 8]))
      return refuse("checksum mismatch: the file is damaged or truncated");
    in.bytes.remove_suffix(sizeof(uint64_t));
    const FieldReader field{in, path, error};
    if (!for_each_field(plan, field) || !check_plan(path, error) || !for_each_field(progress, plan, field))
      return false;
    texts.tokenizer = in.take(in.get<uint32_t>());
    if (!in.ok) return refuse("tokenizer: truncated");
    texts.chat = in.take(in.get<uint32_t>());
    texts.provenance = in.take(in.get<uint32_t>());
    ChatTemplate chat;
    if (!in.ok || (!texts.chat.empty() && !chat.load(texts.chat, plan.config.vocab_size)))
      return refuse("chat template: damaged or truncated");
    return read_arrays(path, in.bytes, error);
  }

  // Copies the arrays into a model and a trainer that fit the plan.
  void restore(LearnedWeights& model, Trainer& trainer) const {
    const char* at = arrays.data();
    for (Floats* f : arrays_of(model, trainer)) {
      std::memcpy(f->data(), at, f->size() * sizeof(float));
      at += f->size() * sizeof(float);
    }
    trainer.repack();
  }

 private:
  bool check_plan(const std::string& path, std::string& error) const {
    const auto refuse = [&](const char* field, const std::string& expected, const std::string& found) {
      return fail(error, path + ": " + field + ": expected " + expected + ", found " + found);
    };
    const bool megabyte = plan.architecture == kMegabyte;
    if (!(megabyte ? check_config(plan.megabyte, refuse) : check_config(plan.config, refuse))) return false;
    const int longest = megabyte ? plan.megabyte.max_seq_len() : plan.config.max_seq_len;
    if (plan.context > longest)
      return refuse("context", "at most the model's " + std::to_string(longest), std::to_string(plan.context));
    return megabyte || check_lora(plan.config, plan.lora, error) || fail(error, path + ": " + error);
  }

  bool read_arrays(const std::string& path, std::string_view found, std::string& error) {
    const uint64_t expected = array_bytes();
    if (found.size() != expected)
      return fail(error, {path, ": expected ", expected, " bytes of weights, found ", found.size()});
    if (!check_finite(path, found, error)) return false;
    arrays = found;
    return true;
  }

  uint64_t array_bytes() const {
    const uint64_t weights = plan.base ? 0 : floats_of(parameters_of(plan)), copies = plan.keep_best ? 4 : 3;
    if (plan.lora.rank == 0) return copies * weights * sizeof(float);
    return (weights + copies * floats_of(adapters_for(plan.config, plan.lora).parameters)) * sizeof(float);
  }
};

}  // namespace pocket
