// pytorch_files.hpp: writes files in the format of torch.save() byte by byte, so that a test can corrupt any part.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

namespace pytorch {

template <class T> void append(std::string& to, T value) {
  to.append(reinterpret_cast<const char*>(&value), sizeof value);
}

/// Writes a pickle opcode by opcode.
struct Pickle {
  std::string bytes = "\x80\x02";

  Pickle& op(const std::string& raw) {
    bytes += raw;
    return *this;
  }
  Pickle& text(const std::string& s) {
    bytes += 'X';
    append(bytes, uint32_t(s.size()));
    return op(s);
  }
  Pickle& integer(int64_t n) {
    if (n >= 0 && n < 256) {
      bytes += 'K';
      append(bytes, uint8_t(n));
    } else if (n == int32_t(n)) {
      bytes += 'J';
      append(bytes, int32_t(n));
    } else {
      bytes += "\x8a\x08";
      append(bytes, n);
    }
    return *this;
  }
  Pickle& real(double value) {
    uint64_t bits;
    std::memcpy(&bits, &value, 8);
    bytes += 'G';
    for (int shift = 56; shift >= 0; shift -= 8) bytes += char(bits >> shift);
    return *this;
  }
  Pickle& tuple(const std::vector<int64_t>& numbers) {
    op("(");
    for (int64_t n : numbers) integer(n);
    return op("t");
  }
  Pickle& global(const std::string& module, const std::string& name) { return op("c" + module + "\n" + name + "\n"); }
  /// A call of torch._utils._rebuild_tensor_v2.
  Pickle& tensor(const std::string& type, const std::string& key, int64_t elements, int64_t first,
                 const std::vector<int64_t>& shape, const std::vector<int64_t>& strides) {
    global("torch._utils", "_rebuild_tensor_v2").op("((").text("storage").global("torch", type).text(key).text("cpu");
    integer(elements).op("tQ").integer(first).tuple(shape).tuple(strides);
    return op("\x89").global("collections", "OrderedDict").op(")RtR");
  }
  std::string end() { return bytes + "."; }
};

/// A member of a zip archive; the contents of its two headers can be changed.
struct Member {
  std::string name, bytes;
  std::string local_name = name;
  uint16_t method = 0, flags = 0x808;
  uint64_t size = bytes.size(), packed = bytes.size(), local_size = bytes.size();
  int64_t offset = -1;  // of the local header; -1: its real offset
};

/// An archive in PyTorch's form: data at multiples of 64, zip64's end of the directory before the usual one. wide:
/// sizes and offsets of the members are in zip64's extra field.
inline std::string zip_of(const std::vector<Member>& members, bool wide = false, bool zip64 = true) {
  std::string file, directory;
  for (const Member& m : members) {
    const uint64_t at = m.offset < 0 ? file.size() : uint64_t(m.offset);
    const size_t padding = (64 - (file.size() + 30 + m.local_name.size() + 4) % 64) % 64;
    file += "PK\x03\x04";
    for (uint16_t n : {uint16_t(0), m.flags, m.method, uint16_t(0), uint16_t(0)}) append(file, n);
    append(file, uint32_t(0));
    for (int i = 0; i < 2; i++) append(file, m.flags & 8 ? uint32_t(0) : uint32_t(m.local_size));
    append(file, uint16_t(m.local_name.size()));
    append(file, uint16_t(padding + 4));
    file += m.local_name + "FB";
    append(file, uint16_t(padding));
    file += std::string(padding, 'Z') + m.bytes;
    directory += "PK\x01\x02";
    for (uint16_t n : {uint16_t(0), uint16_t(0), m.flags, m.method, uint16_t(0), uint16_t(0)}) append(directory, n);
    append(directory, uint32_t(0));
    for (uint64_t n : {m.packed, m.size}) append(directory, wide ? UINT32_MAX : uint32_t(n));
    for (uint16_t n : {uint16_t(m.name.size()), uint16_t(wide ? 28 : 0), uint16_t(0), uint16_t(0), uint16_t(0)})
      append(directory, n);
    append(directory, uint32_t(0));
    append(directory, wide ? UINT32_MAX : uint32_t(at));
    directory += m.name;
    if (!wide) continue;
    append(directory, uint32_t(1 | 24 << 16));
    for (uint64_t n : {m.size, m.packed, at}) append(directory, n);
  }
  const uint64_t start = file.size(), count = members.size(), end = start + directory.size();
  file += directory;
  if (zip64) {
    file += "PK\x06\x06";
    append(file, uint64_t(44));
    file += std::string(12, '\0');
    for (uint64_t n : {count, count, uint64_t(directory.size()), start}) append(file, n);
    file += std::string("PK\x06\x07\0\0\0\0", 8);
    append(file, end);
    append(file, uint32_t(1));
  }
  file += std::string("PK\x05\x06\0\0\0\0", 8);
  for (int i = 0; i < 2; i++) append(file, wide ? uint16_t(0xffff) : uint16_t(count));
  append(file, wide ? UINT32_MAX : uint32_t(directory.size()));
  append(file, wide ? UINT32_MAX : uint32_t(start));
  append(file, uint16_t(0));
  return file;
}

/// A contiguous tensor with a separate storage.
struct NamedTensor {
  std::string name;
  std::vector<int64_t> shape;
  std::string elements;  // raw
  std::string type = "FloatStorage";
  size_t element_bytes = 4;
};

inline std::vector<int64_t> strides_of(const std::vector<int64_t>& shape) {
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * shape[i];
  return strides;
}

/// Pushes a dictionary of tensors, whose storages are numbered from `first`.
inline void put_state_dict(Pickle& p, const std::vector<NamedTensor>& tensors, int first = 0) {
  p.op("}(");
  for (const NamedTensor& t : tensors) {
    const int64_t elements = int64_t(t.elements.size() / t.element_bytes);
    p.text(t.name).tensor(t.type, std::to_string(first++), elements, 0, t.shape, strides_of(t.shape));
  }
  p.op("u");
}

inline std::vector<Member> members_of(const std::string& pickle, const std::vector<std::string>& storages) {
  std::vector<Member> members = {{"archive/data.pkl", pickle}, {"archive/byteorder", "little"}};
  for (size_t i = 0; i < storages.size(); i++) members.push_back({"archive/data/" + std::to_string(i), storages[i]});
  members.push_back({"archive/version", "3\n"});
  return members;
}

/// torch.save(). around: writes what surrounds the dictionary of tensors, and pushes the dictionary by calling its
/// argument.
inline std::string save(const std::vector<NamedTensor>& tensors,
                        const std::function<void(Pickle&, const std::function<void()>&)>& around = nullptr) {
  Pickle p;
  const auto inner = [&] { put_state_dict(p, tensors); };
  if (around)
    around(p, inner);
  else
    inner();
  std::vector<std::string> storages;
  for (const NamedTensor& t : tensors) storages.push_back(t.elements);
  return zip_of(members_of(p.end(), storages));
}

}  // namespace pytorch
