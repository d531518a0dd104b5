// files.hpp: temporary files of the tests.
#pragma once

#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

inline std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// A temporary folder that is deleted with its contents.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "pocketllama.XXXXXX").string();
    if (!mkdtemp(&name[0])) std::abort();
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  std::string path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }
  std::string write(const std::string& name, std::string_view bytes) const {
    std::ofstream(file(name), std::ios::binary) << bytes;
    return file(name);
  }
  // Creates a device like /dev/null. A test that writes to the machine's own would replace it, as root, if it failed.
  // Returns "" if this user cannot create or open devices here.
  std::string null_device(const std::string& name) const { return device(name, 3); }
  std::string full_device(const std::string& name) const { return device(name, 7); }
  // The names in the folder, sorted, one per line.
  std::string list() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(path_))
      names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    std::string all;
    for (const std::string& name : names) all += name + "\n";
    return all;
  }

 private:
  std::string device(const std::string& name, unsigned minor) const {
    if (mknod(file(name).c_str(), S_IFCHR | 0666, makedev(1, minor)) != 0) return "";
    if (std::ofstream(file(name)).is_open()) return file(name);
    std::filesystem::remove(file(name));
    return "";
  }

  std::string path_;
};
