// adapter.hpp: LoRA adapters for sessions: an open model file, unchanged, and what run.cpp adds to its products.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "lora.hpp"
#include "model_rows.hpp"

namespace pocket {

/// One or several PEFT adapters in the form that the engine uses. Sessions may share it; it must outlive them.
class LoadedAdapter {
 public:
  std::string error;

  // Reads adapters for an open model, which must stay open: w x becomes w x plus scale * B (A x) of each adapter, in
  // their order. False with `error` set if one is invalid or of another model, or if a matrix gets more than kMaxRank
  // ranks, each adapter's rounded up to 16.
  bool open(const std::vector<LoraSource>& sources, const Model& model) try {
    if (!check_adapters_allowed(model, error)) return false;
    for (const LoraSource& source : sources) {
      LoraAdapter adapter;
      if (!adapter.open({source.folder, 1}, model.config)) return fail(error, {adapter.error});
      if (!add(adapter, {source.folder, source.scale}, model)) return false;
    }
    return true;
  } catch (const std::bad_alloc&) {
    return fail_out_of_memory(error);
  }

  // The same for an adapter that is open, with scale 1, and that this object does not need afterwards. source: its name
  // for messages, and the factor of B A.
  bool add(const LoraAdapter& adapter, const LoraSource& source, const Model& model) try {
    for (const auto& [spec, tensor] : tensors_of(model)) {
      LoraAdapter::Factors factors;
      if (spec.layout != Layout::panels) continue;
      if (!adapter.read(spec, 0, spec.rows, factors, error)) return false;
      factors.scale *= source.scale;
      if (!add(spec, *tensor, factors, source.folder)) return false;
    }
    return true;
  } catch (const std::bad_alloc&) {
    return fail_out_of_memory(error);
  }

  // Adds what another object adds to the same model, without a copy: it must outlive this one.
  bool share(const LoadedAdapter& other, const std::string& folder, const Model& model) try {
    for (const auto& [spec, tensor] : tensors_of(model))
      for (auto [at, end] = other.adapter_.changes.equal_range(tensor); at != end; ++at) {
        if (!has_room(spec, *tensor, at->second.b.cols, folder)) return false;
        adapter_.changes.emplace(tensor, at->second);
      }
    const uint64_t both[] = {adapter_.checksum, other.adapter_.checksum};
    adapter_.checksum = hash_bytes(both, sizeof both);
    return true;
  } catch (const std::bad_alloc&) {
    return fail_out_of_memory(error);
  }

  const Adapter& adapter() const { return adapter_; }  // for SessionOptions
  size_t bytes() const { return bytes_; }              // of memory

 private:
  struct alignas(64) Column {
    float rows[kPanelRows];
  };

  // Adds the factors of a tensor. Their scale goes into B.
  bool add(const TensorSpec& spec, const Tensor& tensor, const LoraAdapter::Factors& f, const std::string& folder) {
    if (f.rank == 0) return true;
    const size_t rank = size_t(f.rank), rows = size_t(spec.rows), cols = size_t(spec.cols),
                 width = round_up<size_t>(rank, kPanelRows), depth = size_t(padded(spec.cols));
    if (!has_room(spec, tensor, int64_t(width), folder)) return false;
    std::vector<Column> a(width / kPanelRows * depth), b(size_t(panels_of(spec.rows)) * width);
    for (size_t k = 0; k < rank; k++) {
      for (size_t i = 0; i < cols; i++) a[k / kPanelRows * depth + i].rows[k % kPanelRows] = f.a[k * cols + i];
      for (size_t r = 0; r < rows; r++) {
        const float value = float(f.scale * double(f.b[r * rank + k]));
        if (!std::isfinite(value))
          return fail(error, {folder, ": ", spec.name, ": expected B times its scale to be finite, found ", value});
        b[r / kPanelRows * width + k].rows[r % kPanelRows] = value;
      }
    }
    adapter_.changes.emplace(
        &tensor, LowRank{keep(std::move(a), int(rank), spec.cols), keep(std::move(b), spec.rows, int(width))});
    Hash64 hash;
    hash.update(&adapter_.checksum, sizeof adapter_.checksum);
    hash.update(spec.name.data(), spec.name.size());
    for (size_t i = memory_.size() - 2; i < memory_.size(); i++)
      hash.update(memory_[i].data(), memory_[i].size() * sizeof(Column));
    adapter_.checksum = hash.digest();
    return true;
  }

  // Checks that a tensor may get so many more ranks.
  bool has_room(const TensorSpec& spec, const Tensor& tensor, int64_t ranks, const std::string& folder) {
    for (auto [at, end] = adapter_.changes.equal_range(&tensor); at != end; ++at) ranks += at->second.b.cols;
    return ranks <= kMaxRank ||
           fail(error, {folder, ": ", spec.name, ": expected at most ", kMaxRank, " ranks in all, found ", ranks,
                        "; merge the adapter with export/convert --lora"});
  }

  // A matrix of float32 in panels, whose memory is kept here.
  Tensor keep(std::vector<Column> columns, int rows, int cols) {
    memory_.push_back(std::move(columns));
    const size_t bytes = memory_.back().size() * sizeof(Column);
    bytes_ += bytes;
    return {Type::f32, rows, cols, reinterpret_cast<const uint8_t*>(memory_.back().data()), bytes, {}, Layout::panels};
  }

  Adapter adapter_;
  std::vector<std::vector<Column>> memory_;
  size_t bytes_ = 0;
};

}  // namespace pocket
