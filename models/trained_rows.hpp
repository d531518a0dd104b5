// trained_rows.hpp: weights between model files and training.
#pragma once

#include <cmath>
#include <cstring>
#include <string>

#include "../export/input_file.hpp"
#include "../export/model_rows.hpp"
#include "llama_train.hpp"

namespace pocket {

// Loads the weights of a model file to continue training. Requires f32: quantization would lose the effect of small
// steps. Weights that are not finite are an error.
inline bool load_weights(const Model& from, const std::string& path, LearnedWeights& model, std::string& error) {
  if (!from.all_f32)
    return fail(error,
                path + ": expected a model of type f32, found a quantized one; convert its checkpoint with --type f32");
  const ReadRows read = rows_of_file(from);
  for (const Parameter& p : model.parameters)
    for (int r = 0; r < p.spec.rows; r++) {
      float* const row = model.values.data() + p.offset + size_t(r) * p.stride;
      if (!read(p.spec, r, 1, row, error)) return false;
      for (int k = 0; k < p.spec.cols; k++)
        if (!std::isfinite(row[k]))
          return fail(error, {path, ": ", p.spec.name, ": row ", r, ": expected finite numbers, found ", row[k]});
    }
  return true;
}

// The weights, for ModelWriter. tied: the output matrix is the embedding table.
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
