// training_state.hpp: what a training is, and where it is: the files it goes on from, and the model file that it makes.
#pragma once

#include <cstring>
#include <string>

#include "../export/model_writer.hpp"
#include "../export/output_file.hpp"
#include "megabyte_train.hpp"
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

// A checkpoint, little-endian: magic, version, sizes of the two structures, they themselves, the tokenizer's blob with
// its size in front, weights, AdamW's means and squares, and XXH64 of it all.
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
  for (const Floats* f : {&model.values, &trainer.mean, &trainer.square})
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
  std::string_view numbers;  // three arrays of float32

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
    const bool good = plan.architecture == kMegabyte ? check_config(plan.megabyte, refuse_field)
                                                     : check_config(plan.config, refuse_field);
    if (!good) return false;
    const uint64_t expected = 3 * floats_of(parameters_of(plan)) * sizeof(float);
    if (!in.ok || in.bytes.size() != expected + 8)
      return refuse("expected " + std::to_string(expected) + " bytes of weights, found " +
                    std::to_string(in.bytes.size()));
    numbers = in.bytes.substr(0, size_t(expected));
    return true;
  }

  void restore(LearnedWeights& model, Trainer& trainer) const {
    const char* at = numbers.data();
    for (Floats* f : {&model.values, &trainer.mean, &trainer.square}) {
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
  std::vector<const Tensor*> tensors = {&from.token_embedding};
  for (const Layer& l : from.layers)
    for (const Tensor* t : {&l.attention_norm, &l.wq, &l.wk, &l.wv, &l.wo, &l.ffn_norm, &l.w1, &l.w3, &l.w2})
      tensors.push_back(t);
  tensors.push_back(&from.final_norm);
  tensors.push_back(&from.output);
  for (size_t i = 0; i < model.parameters.size(); i++) {
    const Parameter& p = model.parameters[i];
    for (int r = 0; r < p.spec.rows; r++) {
      float* row = model.values.data() + p.offset + size_t(r) * p.stride;
      const float* data = reinterpret_cast<const float*>(tensors[i]->data);
      const size_t width = size_t(padded(p.spec.cols));
      for (int k = 0; k < p.spec.cols; k++)
        row[k] = p.spec.layout == Layout::panels
                     ? data[r / kPanelRows * width * kPanelRows + size_t(k) * kPanelRows + r % kPanelRows]
                     : data[r * width + size_t(k)];
    }
  }
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
