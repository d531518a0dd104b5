// output_file_test.cpp: an output file replaces nothing but regular files, keeps their mode, is complete when it appears,
// and leaves nothing behind otherwise.
#include "../../export/output_file.hpp"

#include <gtest/gtest.h>

#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <csignal>

#include "../support/files.hpp"

namespace output_file_test {

using namespace pocket;
using Access = OutputFile::Access;

struct stat state_of(const std::string& path) {
  struct stat info = {};
  EXPECT_EQ(lstat(path.c_str(), &info), 0) << path;
  return info;
}
mode_t mode_of(const std::string& path) { return state_of(path).st_mode & 07777; }

// Writes a file. Returns "", or the error.
std::string written(const std::string& path, std::string_view bytes = "new") {
  std::string error;
  const bool good = write_whole_file(path, bytes, error);
  EXPECT_EQ(good, error.empty());
  return error;
}

// The error of a file that is refused, by open() and by check().
std::string refusal(const std::string& path, Access access = Access::sequential) {
  OutputFile file;
  EXPECT_FALSE(file.open(path, access)) << path;
  std::string error;
  EXPECT_FALSE(check_output(path, access, error)) << path;
  EXPECT_EQ(error, file.error());
  return error;
}

TEST(OutputFile, KeepsModeAndOwnerOfReplacedFile) {
  const TemporaryFolder t;
  for (const mode_t mode : {0600, 0640, 0755, 0444}) {
    const std::string path = t.write("a", "old");
    chmod(path.c_str(), mode);
    const bool owned = geteuid() != 0 || chown(path.c_str(), 1234, 5678) == 0;
    const struct stat before = state_of(path);
    ASSERT_EQ(written(path), "");
    EXPECT_EQ(mode_of(path), mode);
    EXPECT_TRUE(owned && state_of(path).st_uid == before.st_uid && state_of(path).st_gid == before.st_gid);
    EXPECT_EQ(read_file(path), "new");
    std::filesystem::remove(path);
  }
  EXPECT_EQ(t.list(), "");
}

TEST(OutputFile, NewFileHasModeOfUmask) {
  const TemporaryFolder t;
  for (const mode_t mask : {0022, 0077, 0002}) {
    const mode_t before = umask(mask);
    EXPECT_EQ(written(t.file("a")), "");
    umask(before);
    EXPECT_EQ(mode_of(t.file("a")), 0666 & ~mask);
    std::filesystem::remove(t.file("a"));
  }
}

TEST(OutputFile, WritesTargetOfSymbolicLink) {
  const TemporaryFolder t;
  std::filesystem::create_directory(t.file("sub"));
  const std::string target = t.write("sub/a", "old");
  chmod(target.c_str(), 0600);
  std::filesystem::create_symlink("sub/a", t.file("relative"));
  std::filesystem::create_symlink(target, t.file("absolute"));
  std::filesystem::create_symlink("relative", t.file("chain"));
  std::filesystem::create_symlink("sub", t.file("folder"));
  for (const char* name : {"relative", "absolute", "chain", "folder/a"}) {
    ASSERT_EQ(written(t.file(name), name), "");
    EXPECT_EQ(read_file(target), name);
    EXPECT_EQ(mode_of(target), 0600u);
  }
  for (const char* name : {"relative", "absolute", "chain", "folder"})
    EXPECT_TRUE(S_ISLNK(state_of(t.file(name)).st_mode)) << name;
  EXPECT_EQ(t.list(), "absolute\nchain\nfolder\nrelative\nsub\n");
}

TEST(OutputFile, RefusesDanglingLinksAndLoops) {
  const TemporaryFolder t;
  std::filesystem::create_symlink("none", t.file("dangling"));
  std::filesystem::create_symlink("dangling", t.file("chain"));
  std::filesystem::create_symlink("b", t.file("a"));
  std::filesystem::create_symlink("a", t.file("b"));
  for (const char* name : {"dangling", "chain"})
    EXPECT_EQ(refusal(t.file(name)),
              t.file(name) + ": is a symbolic link to " + t.file("none") + ", which does not exist");
  EXPECT_EQ(refusal(t.file("a")), t.file("a") + ": Too many levels of symbolic links");
  EXPECT_EQ(t.list(), "a\nb\nchain\ndangling\n");
}

TEST(OutputFile, RefusesFoldersAndSockets) {
  const TemporaryFolder t;
  const int socket = ::socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address = {AF_UNIX, {}};
  std::strcpy(address.sun_path, t.file("socket").c_str());
  ASSERT_EQ(bind(socket, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  std::filesystem::create_symlink(".", t.file("link"));
  for (const std::string& folder : {t.path(), t.file(""), t.file("none/"), t.file("link"), t.file("."), t.file("..")})
    EXPECT_EQ(refusal(folder), folder + ": Is a directory");
  EXPECT_EQ(refusal(t.file("socket")),
            t.file("socket") + ": expected a regular file, found a block device or a socket");
  EXPECT_EQ(refusal(t.file("none/a")), t.file("none/a") + ": No such file or directory");
  EXPECT_EQ(refusal(""), ": No such file or directory");
  EXPECT_EQ(t.list(), "link\nsocket\n");
  ::close(socket);
}

// A FIFO is not opened by check(), which would end its reader's input.
TEST(OutputFile, WritesDirectlyToPipes) {
  const TemporaryFolder t;
  ASSERT_EQ(mkfifo(t.file("fifo").c_str(), 0600), 0);
  std::filesystem::create_symlink("fifo", t.file("link"));
  std::string error;
  EXPECT_TRUE(check_output(t.file("fifo"), Access::sequential, error)) << error;
  const int reader = ::open(t.file("fifo").c_str(), O_RDWR | O_NONBLOCK);
  for (const char* name : {"fifo", "link"}) {
    EXPECT_EQ(written(t.file(name), name), "");
    char bytes[10] = {};
    EXPECT_EQ(::read(reader, bytes, sizeof bytes), 4);
    EXPECT_STREQ(bytes, name);
  }
  ::close(reader);
  for (const char* name : {"fifo", "link"})
    EXPECT_EQ(refusal(t.file(name), Access::random),
              t.file(name) + ": expected a regular file, found a device or a pipe");
  EXPECT_TRUE(S_ISFIFO(state_of(t.file("fifo")).st_mode));
  EXPECT_EQ(t.list(), "fifo\nlink\n");
}

TEST(OutputFile, WritesDirectlyToDevices) {
  const TemporaryFolder t;
  const std::string null = t.null_device("null"), full = t.full_device("full");
  if (null.empty() || full.empty()) GTEST_SKIP() << "devices cannot be created here";
  EXPECT_EQ(written(null), "");
  EXPECT_EQ(written(full), full + ": No space left on device");
  EXPECT_EQ(refusal(null, Access::random), null + ": expected a regular file, found a device or a pipe");
  for (const std::string& device : {null, full}) EXPECT_TRUE(S_ISCHR(state_of(device).st_mode));
  EXPECT_EQ(t.list(), "full\nnull\n");
}

// As in `run --logits /dev/stdout >> file`.
TEST(OutputFile, AppendsToOpenDescriptor) {
  const TemporaryFolder t;
  const int file = ::open(t.write("a", "before ").c_str(), O_WRONLY | O_APPEND);
  const std::string number = std::to_string(file);
  std::filesystem::create_symlink("/dev/fd/" + number, t.file("link"));
  EXPECT_EQ(written("/dev/fd/" + number, "one "), "");
  EXPECT_EQ(written("/proc/self/fd/" + number, "two "), "");
  EXPECT_EQ(written(t.file("link"), "three "), "");
  EXPECT_EQ(::write(file, "after", 5), 5);
  EXPECT_EQ(read_file(t.file("a")), "before one two three after");
  ::close(file);
  EXPECT_EQ(refusal("/dev/fd/" + number), "/dev/fd/" + number + ": Bad file descriptor");
  EXPECT_EQ(t.list(), "a\nlink\n");
}

TEST(OutputFile, ChoosesAnotherNameIfTemporaryNameExists) {
  const TemporaryFolder t;
  const std::string stale = "a.tmp." + std::to_string(getpid());
  t.write(stale, "stale");
  std::filesystem::create_symlink(t.write("victim", "victim"), t.file(stale + ".1"));
  EXPECT_EQ(written(t.file("a")), "");
  EXPECT_EQ(read_file(t.file("a")), "new");
  EXPECT_EQ(read_file(t.file(stale)), "stale");
  EXPECT_EQ(read_file(t.file("victim")), "victim");
  EXPECT_EQ(t.list(), "a\n" + stale + "\n" + stale + ".1\nvictim\n");
  EXPECT_EQ(written(t.file(std::string(255, 'n'))), "") << "the temporary name of a long name is not longer";
}

TEST(OutputFile, LeavesNothingWithoutFinish) {
  const TemporaryFolder t;
  t.write("a", "old");
  for (const char* name : {"a", "b"}) {
    std::string error;
    EXPECT_TRUE(check_output(t.file(name), Access::random, error)) << error;
    OutputFile file;
    ASSERT_TRUE(file.open(t.file(name)));
    ASSERT_TRUE(file.write("new", 3));
  }
  EXPECT_EQ(read_file(t.file("a")), "old");
  EXPECT_EQ(t.list(), "a\n");
}

TEST(OutputFile, ReplacesNothingIfDestinationBecomesAPipe) {
  const TemporaryFolder t;
  OutputFile file;
  ASSERT_TRUE(file.open(t.file("a")));
  ASSERT_EQ(mkfifo(t.file("a").c_str(), 0600), 0);
  EXPECT_FALSE(file.finish());
  EXPECT_NE(file.error().find("expected a regular file, found something else"), std::string::npos) << file.error();
  EXPECT_TRUE(S_ISFIFO(state_of(t.file("a")).st_mode));
}

TEST(OutputFile, ReportsFullDiskWithName) {
  const TemporaryFolder t;
  t.write("a", "old");
  rlimit before;
  getrlimit(RLIMIT_FSIZE, &before);
  const rlimit little = {100000, before.rlim_max};
  std::signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &little);
  const std::string error = written(t.file("a"), std::string(200000, 'x'));
  OutputFile random;
  const bool resized = random.open(t.file("b"), Access::random) && random.resize(200000);
  setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_EQ(error, t.file("a") + ": File too large");
  EXPECT_FALSE(resized);
  EXPECT_EQ(random.error(), t.file("b") + ": File too large");
  EXPECT_EQ(read_file(t.file("a")), "old");
}

TEST(OutputFile, WritesManyPiecesOfAnySize) {
  const TemporaryFolder t;
  std::string expected;
  OutputFile file;
  ASSERT_TRUE(file.open(t.file("a")));
  for (const size_t n : {0, 1, 65535, 1, 65536, 65537, 200000, 3}) {
    const std::string piece(n, char('a' + expected.size() % 26));
    ASSERT_TRUE(file.write(piece.data(), n));
    expected += piece;
  }
  ASSERT_TRUE(file.finish()) << file.error();
  EXPECT_TRUE(read_file(t.file("a")) == expected);
}

// ---- Temporary files ----

TEST(Temporary, SignalHandlersDeleteFilesAndFolders) {
  const TemporaryFolder t;
  Temporary folder, file, kept;
  ASSERT_TRUE(folder.create_beside(t.file("f"), [](const char* name) { return mkdir(name, 0777) == 0; }));
  file.own(join_path(folder.name(), "file"));
  kept.own(t.write("kept", ""));
  std::ofstream(file.name()) << "x";
  kept.release();
  remove_temporary_files();
  EXPECT_EQ(t.list(), "kept\n");
}

TEST(Temporary, MoreThanTheTableHoldsAreDeletedByTheirDestructors) {
  const TemporaryFolder t;
  {
    Temporary many[40];
    for (int i = 0; i < 40; i++) many[i].own(t.write(std::to_string(i), ""));
  }
  EXPECT_EQ(t.list(), "");
}

}  // namespace output_file_test
