// small_pickles.hpp: pickles of torch.save() with tensors in storages of 96, 24 and 16 bytes.
#pragma once

#include "../../support/pytorch_files.hpp"
#include "../target.hpp"

namespace fuzz {

inline std::vector<std::string> small_pickles() {
  pytorch::Pickle plain, nested;
  plain.op("}(").text("a").tensor("FloatStorage", "0", 24, 0, {4, 6}, {6, 1});
  plain.text("b").tensor("HalfStorage", "1", 12, 2, {5, 2}, {2, 1}).op("u");
  nested.op("}(").text("model_args").op("}(").text("dim").integer(8).text("eps").real(1e-5).op("u").text("model");
  nested.op("}q\1(").text("_orig_mod.c").tensor("BFloat16Storage", "2", 8, 0, {8}, {1}).op("u");
  nested.text("_").op("h\1u");
  return {plain.end(), nested.end(), std::string("\x80\4\x95\2\0\0\0\0\0\0\0N.", 13)};
}

}  // namespace fuzz
