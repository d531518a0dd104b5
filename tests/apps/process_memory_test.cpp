// process_memory_test.cpp: the memory that control groups allow, by files as Linux has them.
#include "../../export/platform.hpp"

#include <gtest/gtest.h>

#include <filesystem>

#include "../support/files.hpp"

namespace process_memory_test {

using pocket::platform::group_memory;

class GroupMemory : public ::testing::Test {
 protected:
  void write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root() + path).parent_path());
    folder_.write("root" + path, text);
  }
  std::string root() const { return folder_.file("root"); }

 private:
  TemporaryFolder folder_;
};

TEST_F(GroupMemory, IsUnlimitedWithoutGroups) {
  EXPECT_EQ(group_memory(root()), SIZE_MAX);
  write("/proc/self/cgroup", "0::/user\n");
  EXPECT_EQ(group_memory(root()), SIZE_MAX);
  write("/sys/fs/cgroup/user/memory.max", "max\n");
  EXPECT_EQ(group_memory(root()), SIZE_MAX);
}

TEST_F(GroupMemory, IsTheLeastOfAGroupAndThoseItIsIn) {
  write("/proc/self/cgroup", "0::/user/app\n");
  write("/sys/fs/cgroup/user/app/memory.max", "max\n");
  write("/sys/fs/cgroup/user/memory.max", "3000\n");
  write("/sys/fs/cgroup/user/memory.stat", "anon 1000\nfile 1500\n");
  EXPECT_EQ(group_memory(root()), 2000u);  // files in the page cache do not count
  write("/sys/fs/cgroup/user/app/memory.max", "500\n");
  write("/sys/fs/cgroup/user/app/memory.stat", "file 70\nanon 600\n");
  EXPECT_EQ(group_memory(root()), 0u);
}

TEST_F(GroupMemory, ReadsVersion1) {
  write("/proc/self/cgroup", "7:cpu,cpuacct:/x\n4:memory:/box\n");
  write("/sys/fs/cgroup/memory/box/memory.limit_in_bytes", "9000\n");
  write("/sys/fs/cgroup/memory/box/memory.stat", "rss 1\ntotal_rss 2500\n");
  write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(group_memory(root()), 6500u);
}

// In a container the group may have a path that does not exist there.
TEST_F(GroupMemory, ReadsTheRootOfAContainer) {
  write("/proc/self/cgroup", "4:memory:/docker/0123456789abcdef\n");
  write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "8000\n");
  EXPECT_EQ(group_memory(root()), 8000u);
}

}  // namespace process_memory_test
