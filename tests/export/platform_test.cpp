// platform_test.cpp: the part of the operating system behind export/ and apps/cli/, and the helpers of paths. Most of it is
// tested by what uses it: output_file_test.cpp, cli_test.cpp; for Windows, tests/windows/run.
#include "../../export/input_file.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "../support/files.hpp"

namespace platform_test {

using namespace pocket;
using platform::FileKind;

TEST(Paths, FoldersNamesAndExtensions) {
  EXPECT_EQ(folder_of("a/b"), "a");
  EXPECT_EQ(folder_of("b"), ".");
  EXPECT_EQ(folder_of("/b"), "/");
  EXPECT_EQ(base_name("a/b"), "b");
  EXPECT_EQ(base_name("a/b//"), "b");
  EXPECT_EQ(join_path("a/", "b"), "a/b");
  EXPECT_EQ(join_path("", "b"), "b");
  EXPECT_EQ(extension_of("model-00001-of-00002.safetensors"), ".safetensors");
  EXPECT_EQ(extension_of("README"), "");
  EXPECT_EQ(extension_of(".gguf"), "");
}

TEST(Platform, KindsOfFiles) {
  const TemporaryFolder folder;
  const std::string file = folder.write("имя с пробелом", "12345");
  EXPECT_EQ(platform::info_of(file).kind, FileKind::file);
  EXPECT_EQ(platform::info_of(file).size, 5u);
  EXPECT_EQ(platform::info_of(folder.file("missing")).kind, FileKind::none);
  EXPECT_EQ(platform::info_of(folder.path()).kind, FileKind::folder);
  EXPECT_EQ(platform::info_of(std::string("/dev/null")).kind, FileKind::stream);
  ASSERT_EQ(symlink(file.c_str(), folder.file("link").c_str()), 0);
  EXPECT_EQ(platform::info_of_link(folder.file("link")).kind, FileKind::link);
  EXPECT_TRUE(is_same_file(file, folder.file("link")));
}

TEST(Platform, NamesInAFolderAreUtf8) {
  const TemporaryFolder folder;
  folder.write("модель.gguf", "1");
  folder.write("b", "2");
  std::vector<std::string> names = platform::names_in(folder.path());
  std::sort(names.begin(), names.end());
  EXPECT_EQ(names, (std::vector<std::string>{"b", "модель.gguf"}));
  EXPECT_TRUE(platform::names_in(folder.file("missing")).empty());
}

TEST(Platform, ALockedFileIsLockedForOtherDescriptors) {
  const TemporaryFolder folder;
  const std::string path = folder.write("file", "1");
  const int first = platform::open_to_change(path), second = platform::open_to_change(path);
  ASSERT_GE(first, 0);
  ASSERT_GE(second, 0);
  EXPECT_TRUE(platform::lock(first));
  EXPECT_FALSE(platform::lock(second));
  platform::close(first);
  EXPECT_TRUE(platform::lock(second));
  platform::close(second);
}

TEST(Platform, KnowsItsProgramAndItsMemory) {
  EXPECT_EQ(platform::info_of(platform::program_path()).kind, FileKind::file);
  EXPECT_GT(platform::resident_memory(), size_t(1) << 18);
  const size_t resident = platform::resident_memory();
  EXPECT_GE(platform::peak_memory() + (1 << 20), resident);  // Linux counts the pages of each CPU in batches
  EXPECT_GT(platform::available_memory(), size_t(1) << 20);
  EXPECT_GE(platform::physical_memory(), platform::available_memory());
  EXPECT_GE(platform::cpu_count(), 1);
}

}  // namespace platform_test
