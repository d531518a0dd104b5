// model_rows.hpp: reads the weights of a model file of type f32 row by row, the inverse of the panel layout that
// model_writer.hpp writes; and which model files have weights.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "model_writer.hpp"

namespace pocket {

/// The tensors of an open model with their names and shapes, in the order of the file.
inline std::vector<std::pair<TensorSpec, const Tensor*>> tensors_of(const Model& model) {
  std::vector<std::pair<TensorSpec, const Tensor*>> all;
  for (TensorSpec& spec : tensor_specs(model.config)) all.push_back({std::move(spec), nullptr});
  size_t i = 0;
  all[i++].second = &model.token_embedding;
  for (const Layer& l : model.layers)
    for (const LayerTensor& t : layer_tensors(model.config)) all[i++].second = &(l.*t.tensor);
  all[i++].second = &model.final_norm;
  all[i].second = &model.output;
  return all;
}

/// How the value of "weights" begins in the provenance of a file that has none (convert --outline).
inline constexpr char kOutline[] = "none, an outline of a ";

/// Checks that a model file is not an outline. path: its name, for the message.
inline bool check_has_weights(const ModelFile& model, const std::string& path, std::string& error) {
  const std::string lines = "\n" + std::string(model.provenance());
  return lines.find(std::string("\nweights: ") + kOutline) == std::string::npos ||
         fail(error, {path, ": a file without weights (--outline); convert the checkpoint that it was made from"});
}

/// Reads rows of a model of type f32 (Model::all_f32), which must stay open.
inline ReadRows rows_of_file(const Model& model) {
  std::map<std::string, const Tensor*> by_name;
  for (const auto& [spec, tensor] : tensors_of(model)) by_name[spec.name] = tensor;
  return [by_name](const TensorSpec& spec, int64_t first, int64_t count, float* out, std::string&) {
    const float* data = reinterpret_cast<const float*>(by_name.at(spec.name)->data);
    const size_t width = size_t(padded(spec.cols));
    for (int64_t r = first; r < first + count; r++)
      for (size_t k = 0; k < size_t(spec.cols); k++)
        *out++ = spec.layout == Layout::panels
                     ? data[size_t(r) / kPanelRows * width * kPanelRows + k * kPanelRows + size_t(r) % kPanelRows]
                     : data[size_t(r) * width + k];
    return true;
  };
}

}  // namespace pocket
