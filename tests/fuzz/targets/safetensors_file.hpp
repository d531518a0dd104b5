// safetensors_file.hpp: the bytes of a safetensors file with tensors of zeros, float32.
#pragma once

#include <utility>

#include "../target.hpp"

namespace fuzz {

using Shapes = std::vector<std::pair<std::string, std::vector<int>>>;  // by name

inline std::string safetensors_file(const Shapes& shapes) {
  std::string header, data;
  for (const auto& [name, shape] : shapes) {
    const std::string begin = std::to_string(data.size());
    size_t elements = 1;
    std::string sizes;
    for (const int n : shape) {
      sizes += (sizes.empty() ? "" : ",") + std::to_string(n);
      elements *= size_t(n);
    }
    data.append(elements * sizeof(float), '\0');
    header += (header.empty() ? "{\"" : ",\"") + name + "\":{\"dtype\":\"F32\",\"shape\":[" + sizes +
              "],\"data_offsets\":[" + begin + "," + std::to_string(data.size()) + "]}";
  }
  return raw(uint64_t(header.size() + 1)) + header + "}" + data;
}

}  // namespace fuzz
