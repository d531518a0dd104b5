// training_state.hpp: the plan and the progress of a training, and the checkpoint that --resume continues from.
#pragma once

#include <cstring>
#include <string>

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
};

inline constexpr char kCheckpointMagic[8] = {'P', 'K', 'T', 'T', 'R', 'A', 'I', 'N'};
inline constexpr uint32_t kCheckpointVersion = 2;

// The arrays of a checkpoint, in order: weights, adapters if there are any, AdamW's means and squares.
template <class M, class T> auto arrays_of(M& model, T& trainer) {
  std::vector all = {&model.values, &trainer.mean, &trainer.square};
  if (model.adapted()) all.insert(all.begin() + 1, &model.adapters.values);
  return all;
}

// Writes a checkpoint, little-endian: magic, version, the sizes of the two structs, the structs, the tokenizer's blob
// after its size, the arrays, and XXH64 of all the bytes before.
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
  for (const Floats* f : arrays_of(model, trainer))
    out.bytes.append(reinterpret_cast<const char*>(f->data()), f->size() * sizeof(float));
  out.put(hash_bytes(out.bytes.data(), out.bytes.size()));
  return write_whole_file(path, out.bytes, error);
}

// A checkpoint that has been read and checked.
struct CheckpointFile {
  TrainPlan plan;
  TrainProgress progress;
  std::string tokenizer;
  std::string bytes;        // the whole file
  std::string_view arrays;  // its arrays, float32

  // On failure returns false with `error` set.
  bool read(const std::string& path, std::string& error) {
    constexpr uint64_t kLargest = uint64_t(64) << 30;
    if (!read_small_file(path, kLargest, bytes, error)) return false;
    const auto refuse = [&](const std::string& why) { return fail(error, path + ": " + why); };
    ByteReader in{bytes};
    if (in.take(8) != std::string_view(kCheckpointMagic, 8)) return refuse("is not a checkpoint of models/train");
    const uint32_t version = in.get<uint32_t>();
    if (version != kCheckpointVersion || in.get<uint32_t>() != sizeof plan || in.get<uint32_t>() != sizeof progress)
      return refuse("the checkpoint was written by another version of models/train");
    if (bytes.size() < 40 || hash_bytes(bytes.data(), bytes.size() - 8) != load<uint64_t>(&bytes[bytes.size() - 8]))
      return refuse("checksum mismatch: the file is damaged or truncated");
    plan = in.get<TrainPlan>();
    progress = in.get<TrainProgress>();
    tokenizer = in.take(in.get<uint32_t>());
    if (!check_plan(path, error)) return false;
    const uint64_t expected = array_bytes();
    if (!in.ok || in.bytes.size() != expected + 8)
      return refuse("expected " + std::to_string(expected) + " bytes of weights, found " +
                    std::to_string(in.bytes.size()));
    arrays = in.bytes.substr(0, size_t(expected));
    return true;
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
    if (!megabyte && plan.architecture != kLlama)
      return refuse("architecture", "1 or 2", std::to_string(plan.architecture));
    if (!(megabyte ? check_config(plan.megabyte, refuse) : check_config(plan.config, refuse))) return false;
    const int largest = megabyte ? 0 : kMostRank;
    if (plan.lora.rank < 0 || plan.lora.rank > largest)
      return refuse("lora rank", "0 to " + std::to_string(largest), std::to_string(plan.lora.rank));
    return megabyte || check_lora(plan.config, plan.lora, error) || fail(error, path + ": " + error);
  }

  uint64_t array_bytes() const {
    const uint64_t weights = floats_of(parameters_of(plan));
    if (plan.lora.rank == 0) return 3 * weights * sizeof(float);
    return (weights + 3 * floats_of(adapters_for(plan.config, plan.lora).parameters)) * sizeof(float);
  }
};

}  // namespace pocket
