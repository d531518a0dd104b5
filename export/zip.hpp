// zip.hpp: finds the members of a zip archive as PyTorch writes it: stored, not compressed, so that a member is a range
// of the file (PKWARE's APPNOTE.TXT; github.com/pytorch/pytorch, caffe2/serialize).
//
//     for each member: a local header (30 bytes, name, extra field), the data, an optional data descriptor
//     the directory:   for each member 46 bytes, name, extra field, comment: sizes, offset of the local header
//     the end:         22 bytes with the offset of the directory; in an archive with zip64's 64-bit numbers, before
//     them
//                      56 bytes with these numbers, and 20 bytes with the offset of the 56
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "byte_reader.hpp"
#include "input_file.hpp"

namespace pocket {

/// A member: bytes offset ... offset + bytes - 1 of the archive.
struct ZipMember {
  uint64_t offset, bytes;
};
using ZipMembers = std::map<std::string, ZipMember>;  // by name

inline constexpr uint64_t kMostZipMembers = 1 << 20;

/// Whether a file begins like a zip archive.
inline bool looks_like_zip(const InputFile& file) {
  char magic[4];
  std::string error;
  return file.read(0, magic, sizeof magic, error) && std::memcmp(magic, "PK\x03\x04", 4) == 0;
}

/// Reads and checks the directory of an archive: members are stored, do not overlap, precede the directory, and have
/// plain names.
class ZipDirectory {
 public:
  explicit ZipDirectory(const InputFile& file) : file_(file) {}

  std::string error;
  ZipMembers members;

  /// False with `error` set.
  bool read() {
    if (!read_end()) return false;
    if (count_ > kMostZipMembers) return expected("number of members", "at most 1048576", count_);
    FileCursor in(file_, start_);
    for (uint64_t i = 0; i < count_; i++)
      if (!read_member(in)) return in.ok() ? false : fail(error, in.error());
    if (in.position() != end_) return expected("end of the directory", std::to_string(end_), in.position());
    return check_overlap();
  }

 private:
  bool refuse(Message why) { return fail(error, {file_.path(), ": zip archive: ", text_of(why)}); }
  bool expected(const std::string& what, const std::string& expected, uint64_t found) {
    return refuse({what, ": expected ", expected, ", found ", found});
  }

  // Finds the directory from the last 22 bytes. PyTorch writes no comment after them.
  bool read_end() {
    const uint64_t size = file_.size();
    if (size < kEnd) return refuse({"truncated: expected its directory at the end of the file (truncated?)"});
    end_ = size - kEnd;
    FileCursor in(file_, end_);
    if (in.get<uint32_t>() != 0x06054b50 || !in.skip(kEnd - 6) || in.get<uint16_t>() != 0)
      return refuse({"expected its directory at the end of the file, found something else (truncated?)"});
    in = FileCursor(file_, end_ + 4);
    const uint16_t disk = in.get<uint16_t>(), first_disk = in.get<uint16_t>(), on_disk = in.get<uint16_t>();
    count_ = in.get<uint16_t>();
    uint64_t bytes = in.get<uint32_t>();
    start_ = in.get<uint32_t>();
    if (!in.ok()) return fail(error, in.error());
    if (disk || first_disk || on_disk != count_) return refuse({"expected one file, found a part of a split archive"});
    if (!read_end64(bytes)) return false;
    if (start_ > end_ || bytes != end_ - start_)
      return refuse({"directory: expected to fill the file up to offset ", end_, ", found ", bytes,
                     " bytes from offset ", start_});
    return true;
  }

  // Reads zip64's numbers, if present; the directory then ends before them.
  bool read_end64(uint64_t& bytes) {
    const bool wanted = count_ == 0xffff || bytes == 0xffffffff || start_ == 0xffffffff;
    if (end_ < kLocator + kEnd64) return !wanted || refuse({"zip64: expected 64-bit numbers, found none"});
    FileCursor in(file_, end_ - kLocator);
    if (in.get<uint32_t>() != 0x07064b50) return !wanted || refuse({"zip64: expected 64-bit numbers, found none"});
    in.skip(4);
    const uint64_t at = in.get<uint64_t>();
    if (at != end_ - kLocator - kEnd64) return expected("zip64: offset", std::to_string(end_ - kLocator - kEnd64), at);
    in = FileCursor(file_, at);
    if (in.get<uint32_t>() != 0x06064b50) return refuse({"zip64: expected an end of the directory, found none"});
    in.skip(20);
    const uint64_t on_disk = in.get<uint64_t>(), total = in.get<uint64_t>();
    bytes = in.get<uint64_t>();
    start_ = in.get<uint64_t>();
    if (!in.ok()) return fail(error, in.error());
    if (on_disk != total) return refuse({"expected one file, found a part of a split archive"});
    count_ = total;
    end_ = at;
    return true;
  }

  struct Entry {
    uint16_t flags, method, name, extra, comment;
    uint32_t packed, bytes, offset;
  };

  bool read_member(FileCursor& in) {
    if (in.position() > end_ - std::min(end_, kEntry)) return refuse({"directory: truncated"});
    if (in.get<uint32_t>() != 0x02014b50) return refuse({"directory: expected a member, found something else"});
    Entry e = {};
    in.skip(4);
    e.flags = in.get<uint16_t>();
    e.method = in.get<uint16_t>();
    in.skip(8);
    e.packed = in.get<uint32_t>();
    e.bytes = in.get<uint32_t>();
    e.name = in.get<uint16_t>();
    e.extra = in.get<uint16_t>();
    e.comment = in.get<uint16_t>();
    in.skip(8);
    e.offset = in.get<uint32_t>();
    const std::string name = in.get_string(e.name), extra = in.get_string(e.extra);
    if (!in.skip(e.comment)) return false;
    if (in.position() > end_) return refuse({"directory: truncated"});
    const std::string where = "member " + printable(name) + ": ";
    if (!plain(name)) return refuse({where, "expected a name within the archive"});
    if (e.flags & 1) return refuse({where, "expected no encryption"});
    if (e.method != 0)
      return refuse({where, "expected a stored member, found a compressed one (method ", e.method,
                     "); PyTorch does not write these: load the file in Python and save it again with torch.save()"});
    uint64_t packed = e.packed, bytes = e.bytes, offset = e.offset;
    if (!widen(extra, bytes, packed, offset)) return refuse({where, "zip64: expected 64-bit sizes, found none"});
    if (packed != bytes) return expected(where + "size", std::to_string(bytes) + " (stored)", packed);
    ZipMember member{0, bytes};
    if (!read_local(where, name, offset, member)) return false;
    extents_.emplace(offset, std::make_pair(member.offset + bytes, name));
    return members.emplace(name, member).second || refuse({where, "expected once, found twice"});
  }

  // zip64's extra field (1): the 64-bit values of the numbers that are all ones in the entry, in this order.
  static bool widen(std::string_view extra, uint64_t& bytes, uint64_t& packed, uint64_t& offset) {
    ByteReader in{extra}, numbers;
    while (!in.bytes.empty()) {
      const uint16_t id = in.get<uint16_t>(), length = in.get<uint16_t>();
      const std::string_view content = in.take(length);
      if (!in.ok) return false;
      if (id == 1) numbers.bytes = content;
    }
    for (uint64_t* n : {&bytes, &packed, &offset})
      if (*n == 0xffffffff) *n = numbers.get<uint64_t>();
    return numbers.ok;
  }

  // Checks that the local header agrees. Its sizes may be in the data descriptor after the data instead (flag 8).
  bool read_local(const std::string& where, const std::string& name, uint64_t offset, ZipMember& member) {
    if (offset > start_ || start_ - offset < kLocal)
      return expected(where + "offset", "a header before the directory at " + std::to_string(start_), offset);
    std::string header(size_t(kLocal) + name.size(), '\0');
    if (!file_.read(offset, header.data(), header.size(), error)) return false;
    ByteReader in{header};
    if (in.get<uint32_t>() != 0x04034b50) return refuse({where, "expected a header, found something else"});
    in.take(2);
    const uint16_t flags = in.get<uint16_t>(), method = in.get<uint16_t>();
    in.take(8);
    const uint32_t packed = in.get<uint32_t>(), bytes = in.get<uint32_t>();
    const uint16_t name_length = in.get<uint16_t>(), extra_length = in.get<uint16_t>();
    if (name_length != name.size() || in.bytes != name || method != 0)
      return refuse({where, "expected a local header that agrees with the directory"});
    for (uint32_t n : {packed, bytes})
      if (n != member.bytes && n != 0xffffffff && !(n == 0 && (flags & 8)))
        return expected(where + "size in its header", std::to_string(member.bytes), n);
    member.offset = offset + kLocal + name_length + extra_length;
    if (member.offset > start_ || member.bytes > start_ - member.offset)
      return expected(where + "size", "at most " + std::to_string(start_ - std::min(start_, member.offset)),
                      member.bytes);
    return true;
  }

  bool check_overlap() {
    uint64_t at = 0;
    for (const auto& [begin, extent] : extents_) {
      if (begin < at) return refuse({"member ", printable(extent.second), ": expected no overlap with other members"});
      at = extent.first;
    }
    return extents_.size() == members.size() ||
           refuse({"expected members that do not overlap, found two at the same offset"});
  }

  static bool plain(const std::string& name) {
    if (name.empty() || name[0] == '/' || name.find('\0') != std::string::npos) return false;
    return ("/" + name + "/").find("/../") == std::string::npos && name.find('\\') == std::string::npos;
  }

  static constexpr uint64_t kEnd = 22, kLocator = 20, kEnd64 = 56, kEntry = 46, kLocal = 30;

  const InputFile& file_;
  uint64_t start_ = 0, end_ = 0, count_ = 0;                      // of the directory
  std::map<uint64_t, std::pair<uint64_t, std::string>> extents_;  // local header -> (end of the data, name)
};

}  // namespace pocket
