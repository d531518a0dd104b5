// pytorch.hpp: reads the files of torch.save() (PyTorch 1.6 and later; .bin, .pth, .pt) as named tensors.
// Such a file is a zip archive (zip.hpp) with one folder: NAME/data.pkl, a pickle (pickle.hpp) of dictionaries and
// tensors, and NAME/data/KEY, the elements of each storage. A tensor is a view of a storage: first element, shape,
// strides. Two tensors may be views of the same storage.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint.hpp"
#include "pickle.hpp"
#include "zip.hpp"

namespace pocket {

inline constexpr uint64_t kLargestPickle = 16 << 20;  // bytes; about 150 per tensor
inline constexpr size_t kLongestKey = 64;             // bytes of a storage's key, which is a number

/// Reads the list of tensors of one file; the elements stay in the file.
class PyTorchFile {
 public:
  explicit PyTorchFile(const InputFile& file) : file_(file) {}

  std::string error;

  /// Adds the tensors to `found`, by their names in the dictionary of the file or in the nested dictionary "model" or
  /// "state_dict". index: their FoundTensor::file. False with `error` set if the file is invalid.
  bool read(int index, FoundTensors& found) {
    ZipDirectory zip(file_);
    if (!zip.read()) return fail(error, zip.error);
    members_ = std::move(zip.members);
    std::string bytes;
    if (!find_pickle() || !check_byte_order() || !read_member("data.pkl", kLargestPickle, bytes)) return false;
    if (!pickle_.parse(file_.path() + ": data.pkl", std::move(bytes))) return fail(error, pickle_.error);
    const PickleValue* dict = unwrap();
    return dict && read_tensors(*dict, index, found);
  }

  /// The numbers in the dictionary under `key`, as a JSON object; "" if there is none. llama2.c's training stores the
  /// model's configuration there.
  std::string settings(const std::string& key) const {
    const PickleValue* dict = pickle_.find(pickle_.root(), key);
    std::string json;
    if (!dict || dict->kind != PickleKind::dict) return json;
    const std::vector<const PickleValue*> items = pickle_.items(*dict);
    for (size_t i = 0; i < items.size(); i += 2) {
      const PickleValue& value = *items[i + 1];
      const std::string name = printable(items[i]->string());
      if (items[i]->kind != PickleKind::text || name != items[i]->string()) continue;
      if (name.find_first_of("\"\\") != std::string::npos) continue;
      char number[40];
      std::snprintf(number, sizeof number, "%.17g", value.kind == PickleKind::real ? value.real : 0);
      const std::string shown = value.kind == PickleKind::integer   ? std::to_string(value.integer)
                                : value.kind == PickleKind::real    ? number
                                : value.kind == PickleKind::boolean ? (value.integer ? "true" : "false")
                                                                    : "";
      if (!shown.empty()) json += (json.empty() ? "{\"" : ", \"") + name + "\": " + shown;
    }
    return json.empty() ? "" : json + "}";
  }

 private:
  bool refuse(Message why) { return fail(error, {file_.path(), ": ", text_of(why)}); }

  // Finds the folder in the archive: the one with data.pkl.
  bool find_pickle() {
    for (const auto& [name, member] : members_) {
      const size_t slash = name.find('/');
      if (slash == std::string::npos || name.find('/', slash + 1) != std::string::npos) continue;
      if (name.substr(slash) == "/constants.pkl")
        return refuse({"a TorchScript archive; load it in Python and torch.save() its state_dict()"});
      if (name.substr(slash) == "/data.pkl") folder_ = name.substr(0, slash + 1);
    }
    return !folder_.empty() || refuse({"expected a file of torch.save(), found ", kind_of_archive()});
  }

  // What a zip archive without data.pkl is.
  const char* kind_of_archive() const {
    const auto has = [&](std::string_view end) {
      return std::any_of(members_.begin(), members_.end(), [&](const auto& member) {
        const std::string_view name = member.first;
        return name.size() >= end.size() && name.substr(name.size() - end.size()) == end;
      });
    };
    if (has(".npy")) return "a NumPy archive (.npz); save the model as safetensors";
    if (has(".weights.h5")) return "a Keras model; download the model as safetensors";
    for (const char* file : {"config.json", ".safetensors", ".gguf", ".bin", ".pth", "tokenizer.model"})
      if (has(file)) return "a zip archive of a model's files; unpack it, and name the folder";
    return "a zip archive without data.pkl, which is not a model";
  }

  bool read_member(const std::string& name, uint64_t most, std::string& out) {
    const ZipMember& member = members_.at(folder_ + name);
    if (member.bytes > most) return refuse({name, ": expected at most ", most, " bytes, found ", member.bytes});
    out.resize(size_t(member.bytes));
    return file_.read(member.offset, out.data(), member.bytes, error);
  }

  bool check_byte_order() {
    std::string order = "little";
    if (members_.count(folder_ + "byteorder") && !read_member("byteorder", 16, order)) return false;
    return order == "little" || refuse({"byteorder: expected little, found ", printable(order)});
  }

  // The dictionary of tensors: the root, or a nested one.
  const PickleValue* unwrap() {
    const PickleValue* dict = &pickle_.root();
    for (int depth = 0; depth < 4; depth++) {
      const PickleValue* inner = nullptr;
      for (const char* key : {"model", "state_dict", "model_state_dict", "module"})
        if (inner = pickle_.find(*dict, key); inner && inner->kind == PickleKind::dict) break;
      if (!inner || inner->kind != PickleKind::dict) break;
      dict = inner;
    }
    if (dict->kind == PickleKind::dict) return dict;
    refuse({"expected a dictionary of tensors (a state_dict), found ", pickle_kind_name(dict->kind)});
    return nullptr;
  }

  // The tensors of a dictionary by their keys.
  using NamedTensors = std::vector<std::pair<std::string_view, const PickleValue*>>;

  bool read_tensors(const PickleValue& dict, int index, FoundTensors& found) {
    NamedTensors tensors;
    const std::vector<const PickleValue*> items = pickle_.items(dict);
    for (size_t i = 0; i < items.size(); i += 2) {
      const PickleValue &key = *items[i], &value = *items[i + 1];
      if (value.kind == PickleKind::tensor && key.kind == PickleKind::text)
        tensors.emplace_back(key.string(), &value);
      else if (value.kind > PickleKind::text)
        return refuse({"expected a dictionary of tensors (a state_dict), found ", pickle_kind_name(value.kind),
                       " under ",
                       (key.kind == PickleKind::text ? printable(key.string()) : pickle_kind_name(key.kind))});
    }
    if (tensors.empty()) return refuse({"expected a dictionary of tensors (a state_dict), found no tensors"});
    const size_t prefix = common_prefix(tensors);
    for (const auto& [key, value] : tensors) {
      const std::string_view name = key.substr(prefix);
      FoundTensor t{index, 0, 0, DType::f32, {}};
      if (!place(*value, "tensor " + printable(name) + ": ", t)) {
        if (!is_derivable(name, t.shape)) return false;
        error.clear();
        continue;
      }
      if (!found.emplace(name, std::move(t)).second)
        return refuse({"tensor ", printable(name), ": expected once, found twice"});
    }
    return true;
  }

  // The length of the prefix that torch.compile() and DistributedDataParallel add to every name.
  static size_t common_prefix(const NamedTensors& tensors) {
    for (const std::string_view prefix : {"_orig_mod.", "module."}) {
      size_t with = 0;
      for (const auto& tensor : tensors) with += tensor.first.substr(0, prefix.size()) == prefix;
      if (with == tensors.size()) return prefix.size();
    }
    return 0;
  }

  static bool dtype(std::string_view type, DType& out) {
    out = type == "torch.FloatStorage" ? DType::f32 : type == "torch.HalfStorage" ? DType::f16 : DType::bf16;
    return out != DType::bf16 || type == "torch.BFloat16Storage";
  }

  // Finds the elements of a tensor, which must be contiguous and row-major.
  bool place(const PickleValue& tensor, const std::string& where, FoundTensor& t) {
    const std::vector<const PickleValue*> parts = pickle_.items(tensor), of_storage = pickle_.items(*parts[0]);
    const PickleValue &storage = *parts[0], &shape = *parts[1];
    const std::string_view type = of_storage[0]->string(), key = of_storage[1]->string();
    std::vector<int64_t> strides;
    if (shape.size > kMostDimensions)
      return refuse({where, "shape: expected at most ", kMostDimensions, " dimensions, found ", shape.size});
    if (shape.size != parts[2]->size || !integers(shape, t.shape) || !integers(*parts[2], strides))
      return refuse({where, "shape and strides: expected whole numbers, one stride for each size"});
    if (!dtype(type, t.dtype)) return refuse({where, "type: expected float32, float16 or bfloat16, found ", type});
    const int64_t bytes = stored_bytes(t.dtype, t.shape), element = dtype_info(t.dtype).block_bytes;
    if (bytes < 0) return refuse({where, "shape: expected less than 2^62 bytes, found ", shape_text(t.shape)});
    if (key.size() > kLongestKey)
      return refuse({where, "key of its storage: expected at most ", kLongestKey, " bytes, found ", key.size()});
    const auto member = members_.find(text_of({folder_, "data/", key}));
    if (member == members_.end()) return refuse({where, "data/", printable(key), ": expected this member, found none"});
    const uint64_t room = member->second.bytes;
    if (storage.integer < 0 || room % uint64_t(element) || uint64_t(storage.integer) != room / uint64_t(element))
      return refuse(
          {where, "data/", printable(key), ": expected ", storage.integer, " elements, found ", room, " bytes"});
    if (bytes > 0 && !contiguous(t.shape, strides))
      return refuse({where, "expected contiguous elements, found strides ", shape_text(strides), " for shape ",
                     shape_text(t.shape),
                     " (a transposed or sliced view); in Python call .contiguous() on it and save it again"});
    if (tensor.integer < 0 || tensor.integer > storage.integer ||
        uint64_t(bytes) > room - uint64_t(tensor.integer) * uint64_t(element))
      return refuse({where, "expected to stay within the ", storage.integer, " elements of its storage, found shape ",
                     shape_text(t.shape), " from element ", tensor.integer});
    t.offset = member->second.offset + uint64_t(tensor.integer) * uint64_t(element);
    t.bytes = uint64_t(bytes);
    return true;
  }

  bool integers(const PickleValue& tuple, std::vector<int64_t>& out) const {
    for (const PickleValue* item : pickle_.items(tuple)) {
      if (item->kind != PickleKind::integer || item->integer < 0) return false;
      out.push_back(item->integer);
    }
    return true;
  }

  static bool contiguous(const std::vector<int64_t>& shape, const std::vector<int64_t>& strides) {
    int64_t expected = 1;  // at most the number of elements, which place() has checked
    for (size_t i = shape.size(); i-- > 0; expected *= shape[i])
      if (shape[i] != 1 && strides[i] != expected) return false;
    return true;
  }

  const InputFile& file_;
  ZipMembers members_;
  std::string folder_;
  PickleReader pickle_;
};

}  // namespace pocket
