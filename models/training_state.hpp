// training_state.hpp: what a training is, and where it is: the files it goes on from, and the model file that it makes.
#pragma once

#include <cstring>
#include <string>

#include "../export/model_rows.hpp"
#include "../export/output_file.hpp"
#include "distill.hpp"
#include "lora_train.hpp"
#include "megabyte/megabyte_train.hpp"
#include "optimizer.hpp"

namespace pocket {

// What decides the result, bit for bit, together with the texts.
struct TrainPlan {
  uint32_t architecture = kLlama;  // or kMegabyte
  Config config;                   // of a Llama
  MegabyteConfig megabyte;         // of a MEGABYTE
  int64_t steps = 0, warmup = 0;
  int64_t every = 0;    // steps between two validations
  int32_t batch = 0;    // windows a step
  int32_t context = 0;  // tokens a window
  double rate = 0;      // highest learning rate
  AdamOptions adam;
  LoraPlan lora;
  DistillPlan distill;
  uint64_t seed = 0;
  bool instruct = false;                   // stories stand behind instructions
  uint64_t text_hash = 0, valid_hash = 0;  // of the texts' token ids
};

inline std::vector<Parameter> parameters_of(const TrainPlan& plan) {
  return plan.architecture == kMegabyte ? parameters_of(plan.megabyte) : parameters_of(plan.config);
}

// Where it is.
struct TrainProgress {
  int64_t step = 0;              // steps done
  int64_t epoch = 0, index = 0;  // of the next window
  double seconds = 0;            // spent
  double train = 0;              // sum of the losses since the last line of the loss table
  int64_t counted = 0;           // steps in that sum
  double bits = 0;               // a character, at the last validation
  int64_t judged = 0;            // the step of that
};

inline constexpr char kCheckpointMagic[8] = {'P', 'K', 'T', 'T', 'R', 'A', 'I', 'N'};
inline constexpr uint32_t kCheckpointVersion = 2;

// The arrays of a checkpoint: weights, adapters if there are any, AdamW's means and squares.
template <class M, class T> auto numbers_of(M& model, T& trainer) {
  std::vector all = {&model.values, &trainer.mean, &trainer.square};
  if (model.adapted()) all.insert(all.begin() + 1, &model.adapters.values);
  return all;
}

// A checkpoint, little-endian: magic, version, sizes of the two structures, they themselves, the tokenizer's blob with
// its size in front, the arrays, and XXH64 of it all.
inline bool write_checkpoint(const std::string& path, const TrainPlan& plan, const TrainProgress& progress,
                             const std::string& tokenizer, const LearnedWeights& model, const Trainer& trainer,
                             std::string& error) {
  ByteWriter out;
  out.bytes.append(kCheckpointMagic, sizeof kCheckpointMagic);
  out.put(kCheckpointVersion);
  out.put(uint32_t(sizeof plan));
  out.put(uint32_t(sizeof progress));
  out.put(plan);
  out.put(progress);
  out.put_string(tokenizer);
  for (const Floats* f : numbers_of(model, trainer))
    out.bytes.append(reinterpret_cast<const char*>(f->data()), f->size() * sizeof(float));
  out.put(hash_bytes(out.bytes.data(), out.bytes.size()));
  return write_whole_file(path, out.bytes, error);
}

// A checkpoint as it was read: what goes before the numbers, and they themselves.
struct CheckpointFile {
  TrainPlan plan;
  TrainProgress progress;
  std::string tokenizer;
  std::string bytes;         // of the whole file
  std::string_view numbers;  // the arrays, float32

  bool read(const std::string& path, std::string& error) {
    constexpr uint64_t kLargest = uint64_t(64) << 30;
    if (!read_small_file(path, kLargest, bytes, error)) return false;
    const auto refuse = [&](const std::string& why) { return fail(error, path + ": " + why); };
    ByteReader in{bytes};
    if (in.take(8) != std::string_view(kCheckpointMagic, 8))
      return refuse("expected a checkpoint of models/train, found something else");
    const uint32_t version = in.get<uint32_t>();
    if (version != kCheckpointVersion || in.get<uint32_t>() != sizeof plan || in.get<uint32_t>() != sizeof progress)
      return refuse("expected a checkpoint of this version of models/train, found another's");
    if (bytes.size() < 40 || hash_bytes(bytes.data(), bytes.size() - 8) != load<uint64_t>(&bytes[bytes.size() - 8]))
      return refuse("its checksum does not fit its bytes: the file is damaged or cut short");
    plan = in.get<TrainPlan>(), progress = in.get<TrainProgress>();
    tokenizer = in.take(in.get<uint32_t>());
    const auto refuse_field = [&](const char* field, const std::string& expected, const std::string& found) {
      return refuse(field + (": expected " + expected) + ", found " + found);
    };
    const bool bytes = plan.architecture == kMegabyte;
    if (!bytes && plan.architecture != kLlama)
      return refuse("expected architecture 1 or 2, found " + std::to_string(plan.architecture));
    if (!(bytes ? check_config(plan.megabyte, refuse_field) : check_config(plan.config, refuse_field))) return false;
    const LoraPlan& lora = plan.lora;
    if (lora.rank < 0 || lora.rank > (bytes ? 0 : kMostRank) || !(bytes || check_lora(plan.config, lora, error)))
      return refuse(error);
    const uint64_t weights = floats_of(parameters_of(plan)),
                   adapters = bytes ? 0 : floats_of(adapters_for(plan.config, lora).parameters),
                   expected = (weights + (lora.rank > 0 ? 3 * adapters : 2 * weights)) * sizeof(float);
    if (!in.ok || in.bytes.size() != expected + 8)
      return refuse("expected " + std::to_string(expected) + " bytes of weights, found " +
                    std::to_string(in.bytes.size()));
    numbers = in.bytes.substr(0, size_t(expected));
    return true;
  }

  void restore(LearnedWeights& model, Trainer& trainer) const {
    const char* at = numbers.data();
    for (Floats* f : numbers_of(model, trainer)) {
      std::memcpy(f->data(), at, f->size() * sizeof(float));
      at += f->size() * sizeof(float);
    }
    trainer.repack();
  }
};

// The weights of a model file, to go on with. Only f32 can: what was rounded has lost what a small step would change.
inline bool load_weights(const Model& from, const std::string& path, TrainModel& model, std::string& error) {
  if (!from.all_f32)
    return fail(error,
                path + ": expected a model of type f32, found a quantized one; convert its checkpoint with --type f32");
  const ReadRows read = rows_of_file(from);
  for (const Parameter& p : model.parameters)
    for (int r = 0; r < p.spec.rows; r++)
      if (!read(p.spec, r, 1, model.values.data() + p.offset + size_t(r) * p.stride, error)) return false;
  return true;
}

// For ModelWriter. tied: the output is the embedding table.
inline ReadRows rows_of_model(const LearnedWeights& model, bool tied = false) {
  return [&model, tied](const TensorSpec& spec, int64_t first, int64_t count, float* out, std::string&) {
    const std::string& name = spec.name == "output" && tied ? "token_embedding" : spec.name;
    for (const Parameter& p : model.parameters)
      if (p.spec.name == name)
        for (int64_t r = 0; r < count; r++)
          std::memcpy(out + r * spec.cols, model.values.data() + p.offset + size_t(first + r) * p.stride,
                      size_t(spec.cols) * sizeof(float));
    return true;
  };
}
inline ReadRows rows_of_model(const TrainModel& model) { return rows_of_model(model, model.config.tied); }

}  // namespace pocket
