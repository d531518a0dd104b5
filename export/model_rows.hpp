// model_rows.hpp: reads the weights of a model file of type f32 row by row, the inverse of the panel layout that
// model_writer.hpp writes.
#pragma once

#include <string>
#include <vector>

#include "model_writer.hpp"

namespace pocket {

/// Reads rows of a model of type f32 (Model::all_f32), which must stay open.
inline ReadRows rows_of_file(const Model& model) {
  std::vector<const Tensor*> tensors = {&model.token_embedding};
  for (const Layer& l : model.layers)
    for (const LayerTensor& t : layer_tensors(model.config)) tensors.push_back(&(l.*t.tensor));
  tensors.push_back(&model.final_norm);
  tensors.push_back(&model.output);
  std::map<std::string, const Tensor*> by_name;
  const std::vector<TensorSpec> specs = tensor_specs(model.config);
  for (size_t i = 0; i < specs.size(); i++) by_name[specs[i].name] = tensors[i];
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
