// checkpoint_rows.hpp: reads an open checkpoint as the converter does.
#pragma once

#include "../../../export/checkpoint.hpp"
#include "../target.hpp"

namespace fuzz {

// Reads the first and the last row of each tensor. The tensors of a checkpoint that was opened are within its files.
inline void read_rows(const pocket::Checkpoint& c) {
  std::string error;
  for (const auto& [name, t] : c.tensors) {
    std::vector<float> row(size_t(t.cols));
    for (const int64_t r : {int64_t(0), t.rows - 1})
      require(t.rows == 0 || c.read_rows(name, r, 1, row.data(), error), "checkpoint: tensors are within the file");
  }
}

}  // namespace fuzz
