// The text that a teacher has written for its draft.
#include "../../../models/own_text_file.hpp"
#include "../target.hpp"

namespace fuzz::own_text {

using namespace pocket;

const OwnTextSource kTeacher = {50, 1, 2, 3};

void run(std::string_view input) {
  static ReusedFile file("draft.bin.own");
  OwnTextFile own;
  if (!own.read(file.write(input), kTeacher)) return require(!own.error.empty(), "own text: an error");
  std::string written = own_text_detail::header_bytes(own.source);
  for (const OwnText& text : own.texts) {
    for (const OwnToken& token : text) {
      require(token.id >= 0 && token.id < kTeacher.vocab_size, "own text: ids within the vocabulary");
      require(token.candidates.size() <= kMostCandidates, "own text: few candidates");
      for (const Candidate& c : token.candidates)
        require(c.id >= 0 && c.id < kTeacher.vocab_size && c.p >= 0 && c.p <= 1, "own text: possible candidates");
    }
    written += own_text_detail::text_bytes(text);
  }
  require(written == input.substr(0, written.size()), "own text: written again, the same bytes");
}

// The checksum of each text.
void repair(std::string& input, size_t) {
  const size_t header = own_text_detail::header_bytes(kTeacher).size();
  for (size_t at = header; at + 16 <= input.size();) {
    const size_t end = 8 + size_t(load<uint32_t>(&input[at + 4]));  // of the text, before its checksum
    if (end + 8 > input.size() - at) return;
    const uint64_t hash = hash_bytes(&input[at], end);
    std::memcpy(&input[at + end], &hash, sizeof hash);
    at += end + 8;
  }
}

std::vector<std::string> seeds() {
  const OwnText first = {{1, {}}, {7, {{7, 0.5f}, {9, 0.25f}}}, {49, {{3, 1}}}}, second = {{2, {}}};
  const std::string header = own_text_detail::header_bytes(kTeacher);
  const std::string texts = own_text_detail::text_bytes(first) + own_text_detail::text_bytes(second);
  return {header, header + texts, header + texts.substr(0, texts.size() - 5)};
}

const Registered target({"own_text", run, seeds, repair});

}  // namespace fuzz::own_text
