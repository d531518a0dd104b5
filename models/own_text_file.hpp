// own_text_file.hpp: texts that a model has written itself, with its probabilities: what a draft model learns from.
//
//     header   magic "PKOWNTXT", version, vocabulary size, checksum of the model, seed, hash of the messages  40 bytes
//     texts    number of tokens n (uint32), size of the tokens in bytes (uint32), n tokens, XXH64 of all before
//     a token  id (uint32), number of candidates (uint8), and for each its id (uint32) and probability (uint16, / 65535)
//
// The candidates are the most likely tokens at this place, best first. A token without candidates was given to the
// model: it belongs to the prompt. Texts are appended; an incomplete one at the end, left by an interruption, is removed.
#pragma once

#include <cerrno>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "../export/byte_reader.hpp"
#include "../export/model_writer.hpp"
#include "train_blocks.hpp"

namespace pocket {

struct OwnToken {
  int id;
  std::vector<Candidate> candidates;  // best first, with a stored_probability(); empty: the token was given
};
using OwnText = std::vector<OwnToken>;

inline constexpr char kOwnTextMagic[8] = {'P', 'K', 'O', 'W', 'N', 'T', 'X', 'T'};
inline constexpr uint32_t kOwnTextVersion = 2;
inline constexpr size_t kMostCandidates = 16;

// The nearest probability that the file can hold.
inline float stored_probability(float p) { return float(uint16_t(p * 65535.f + 0.5f)) / 65535.f; }

// Who wrote the texts.
struct OwnTextSource {
  int vocab_size = 0;
  uint64_t model = 0;  // checksum of the model file
  uint64_t seed = 0;
  uint64_t messages = 0;  // Messages::hash
};

namespace own_text_detail {

inline std::string header_bytes(const OwnTextSource& source) {
  ByteWriter out;
  out.bytes.append(kOwnTextMagic, sizeof kOwnTextMagic);
  out.put(kOwnTextVersion);
  out.put(uint32_t(source.vocab_size));
  out.put(source.model);
  out.put(source.seed);
  out.put(source.messages);
  return out.bytes;
}

inline std::string text_bytes(const OwnText& text) {
  ByteWriter tokens, out;
  for (const OwnToken& token : text) {
    tokens.put(uint32_t(token.id));
    tokens.put(uint8_t(token.candidates.size()));
    for (const Candidate& c : token.candidates) {
      tokens.put(uint32_t(c.id));
      tokens.put(uint16_t(c.p * 65535.f + 0.5f));
    }
  }
  out.put(uint32_t(text.size()));
  out.put(uint32_t(tokens.bytes.size()));
  out.bytes += tokens.bytes;
  out.put(hash_bytes(out.bytes.data(), out.bytes.size()));
  return out.bytes;
}

// Reads the next text. False with an empty `why` if it is incomplete: the end of an interrupted file.
inline bool read_text(ByteReader& in, int vocab_size, OwnText& text, std::string& why) {
  const std::string_view begin = in.bytes;
  const uint32_t count = in.get<uint32_t>(), size = in.get<uint32_t>();
  ByteReader tokens{in.take(size)};
  const uint64_t hash = in.get<uint64_t>();
  if (!in.ok) return false;
  if (hash != hash_bytes(begin.data(), 8 + size_t(size))) return fail(why, "checksum mismatch");
  if (count == 0) return fail(why, "expected at least one token, found none");
  text.clear();
  for (uint32_t i = 0; i < count; i++) {
    OwnToken token = {int(tokens.get<uint32_t>()), {}};
    bool valid = token.id >= 0 && token.id < vocab_size;
    for (size_t left = tokens.get<uint8_t>(); left > 0 && tokens.ok; left--) {
      const int id = int(tokens.get<uint32_t>());
      token.candidates.push_back({id, float(tokens.get<uint16_t>()) / 65535.f});
      valid = valid && id >= 0 && id < vocab_size;
    }
    if (!tokens.ok || !valid || token.candidates.size() > kMostCandidates) return fail(why, "invalid token");
    text.push_back(std::move(token));
  }
  return tokens.bytes.empty() || fail(why, "invalid size");
}

}  // namespace own_text_detail

// A file of texts that grows. Functions return false with `error` set if they fail.
class OwnTextFile {
 public:
  OwnTextFile() = default;
  ~OwnTextFile() {
    if (file_ >= 0) platform::close(file_);
  }
  OwnTextFile(const OwnTextFile&) = delete;
  OwnTextFile& operator=(const OwnTextFile&) = delete;

  std::string error;
  std::vector<OwnText> texts;
  OwnTextSource source;

  // Reads the texts of an existing file. It must be of the model `expected`.
  bool read(const std::string& path, const OwnTextSource& expected) {
    std::string bytes;
    path_ = path;
    if (!read_small_file(path, kMostBytes, bytes, error)) return false;
    ByteReader in{bytes};
    if (in.take(8) != std::string_view(kOwnTextMagic, 8)) return refuse("is not a file of a model's own text");
    if (in.get<uint32_t>() != kOwnTextVersion) return refuse("was written by another version of models/train");
    source.vocab_size = int(in.get<uint32_t>());
    source.model = in.get<uint64_t>();
    source.seed = in.get<uint64_t>();
    source.messages = in.get<uint64_t>();
    if (!in.ok) return refuse("header: truncated");
    if (source.model != expected.model || source.vocab_size != expected.vocab_size)
      return refuse("is the text of another model; give another --own-text");
    OwnText text;
    std::string why;
    while (own_text_detail::read_text(in, source.vocab_size, text, why)) {
      size_ = bytes.size() - in.bytes.size();
      texts.push_back(text);
    }
    if (why.empty()) return true;
    return refuse("text " + std::to_string(texts.size() + 1) + ": " + why + "; the file is damaged, delete it");
  }

  // Opens the file for append(), after read(), or with `created` a new one. No other process may do so meanwhile.
  bool open(const std::string& path, const OwnTextSource* created = nullptr) {
    path_ = path;
    if (created) {
      const std::string header = own_text_detail::header_bytes(*created);
      if (!write_whole_file(path, header, error)) return false;
      source = *created;
      size_ = header.size();
    }
    file_ = open_existing(path, error);
    if (file_ < 0) return false;
    if (!platform::lock(file_)) return refuse("is in use by another process");
    return platform::set_size(file_, size_) || refuse(std::strerror(errno));
  }

  int64_t count_tokens() const {
    int64_t count = 0;
    for (const OwnText& text : texts) count += int64_t(text.size());
    return count;
  }

  // The number of texts that have so many tokens, or all of them.
  size_t count_texts(int64_t tokens) const {
    size_t count = 0;
    for (; count < texts.size() && tokens > 0; count++) tokens -= int64_t(texts[count].size());
    return count;
  }

  bool append(OwnText text) {
    const std::string bytes = own_text_detail::text_bytes(text);
    for (size_t done = 0; done < bytes.size();) {
      const int64_t n = platform::write_at(file_, bytes.data() + done, bytes.size() - done, size_ + done);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return refuse(std::strerror(n < 0 ? errno : ENOSPC));
      done += size_t(n);
    }
    size_ += bytes.size();
    texts.push_back(std::move(text));
    return true;
  }

 private:
  static constexpr uint64_t kMostBytes = uint64_t(16) << 30;

  bool refuse(const std::string& why) { return fail(error, path_ + ": " + why); }

  std::string path_;
  int file_ = -1;
  uint64_t size_ = 0;  // of the header and all texts
};

}  // namespace pocket
