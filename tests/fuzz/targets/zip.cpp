// Zip archives: the directory.
#include "../../../export/zip.hpp"
#include "../../support/pytorch_files.hpp"
#include "../target.hpp"

namespace fuzz::zip {

using namespace pocket;

void run(std::string_view input) {
  static ReusedFile file("model.zip");
  std::string error;
  const auto in = InputFile::open(file.write(input), error);
  ZipDirectory zip(*in);
  if (!zip.read()) return require(!zip.error.empty(), "zip: an error");
  for (const auto& [name, member] : zip.members)
    require(member.offset <= input.size() && member.bytes <= input.size() - member.offset,
            "zip: members within the file");
}

// The size and the place of the directory in the last 22 bytes, from its first entry on.
void repair(std::string& input, size_t) {
  const size_t start = input.find("PK\x01\x02"), end = input.rfind("PK\x05\x06");
  if (start == input.npos || end == input.npos || start >= end || end + 22 > input.size()) return;
  input.resize(end + 22);
  const uint32_t bytes = uint32_t(end - start), at = uint32_t(start);
  std::memcpy(&input[end + 12], &bytes, sizeof bytes);
  std::memcpy(&input[end + 16], &at, sizeof at);
}

std::vector<std::string> seeds() {
  const std::vector<pytorch::Member> members = pytorch::members_of("pickle", {"storage"});
  return {pytorch::zip_of(members), pytorch::zip_of(members, true), pytorch::zip_of(members, false, false)};
}

const Registered target({"zip", run, seeds, repair});

}  // namespace fuzz::zip
