// platform.hpp: what the programs need of the operating system, for POSIX (Linux, macOS) and for Windows: files, memory,
// terminals, signals. The engine's own part is in run.cpp, "The operating system". Nothing else in export/, models/,
// apps/cli/ and apps/translate/ depends on the system.
//
// Paths and arguments are UTF-8. Files are descriptors. Unless stated otherwise, a function that fails returns -1, null
// or false, and sets errno.
//
// Differences on Windows: a file that another program has open is not replaced; a replaced file gets the permissions of
// its folder; names of folders end in / or \; a file that this process maps outlives a second Ctrl-C.
#pragma once

#if defined(_WIN32)
#include "engine.hpp"  // wide_path(), read_at(), windows.h

#include <io.h>
#include <psapi.h>
#include <shellapi.h>
#include <sys/stat.h>
#undef near  // words of ours, which are macros there
#undef small
#else
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#endif
#if defined(__APPLE__)
#include <mach-o/dyld.h>
#include <sys/sysctl.h>
#endif

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace pocket::platform {

/// The kind of a file; stream: a FIFO, a terminal or another character device; other: a block device, a socket.
enum class FileKind { none, file, folder, link, stream, other };

struct FileInfo {
  FileKind kind = FileKind::none;
  uint64_t size = 0;                // in bytes
  uint64_t device = 0, number = 0;  // together they identify the file
  unsigned owner = 0, group = 0, mode = 0;
};

/// Where an output file goes.
struct Destination {
  std::string path;     // without symbolic links
  int descriptor = -1;  // the number N of /dev/fd/N, an open file of this process
  FileInfo info;        // of the existing file
};

inline constexpr size_t kMostAtOnce = 1 << 30;  // bytes that one call reads or writes

#if defined(_WIN32)

// ====================================================================================================================
// Windows
// ====================================================================================================================

// ---- Names ----

inline constexpr const char* kSeparators = "/\\";  // of a path

inline std::string narrow(const wchar_t* text, size_t size) {
  std::string out(3 * size, '\0');
  out.resize(size_t(WideCharToMultiByte(CP_UTF8, 0, text, int(size), &out[0], int(out.size()), nullptr, nullptr)));
  return out;
}
inline std::string narrow(const std::wstring& text) { return narrow(text.data(), text.size()); }

inline std::filesystem::path native(const std::string& path) { return wide_path(path); }

/// Replaces the arguments of main() by the same in UTF-8, which the process keeps.
inline void take_arguments(int& argc, char**& argv) {
  static std::vector<std::string> words;
  static std::vector<char*> pointers;
  int n = 0;
  wchar_t** const wide = CommandLineToArgvW(GetCommandLineW(), &n);
  if (!wide) return;
  for (int i = 0; i < n; i++) words.push_back(narrow(wide[i]));
  for (std::string& word : words) pointers.push_back(&word[0]);
  pointers.push_back(nullptr);
  LocalFree(wide);
  argc = n;
  argv = pointers.data();
}

/// The file of the running program; "" if it is unknown.
inline std::string program_path() {
  std::wstring name(32768, L'\0');
  name.resize(GetModuleFileNameW(nullptr, &name[0], DWORD(name.size())));
  return narrow(name);
}

// ---- Files ----

/// Sets errno by the last error of Windows; returns false.
inline bool set_errno() {
  const DWORD why = GetLastError();
  errno = why == ERROR_FILE_NOT_FOUND || why == ERROR_PATH_NOT_FOUND || why == ERROR_INVALID_NAME ? ENOENT
          : why == ERROR_FILE_EXISTS || why == ERROR_ALREADY_EXISTS                               ? EEXIST
          : why == ERROR_DISK_FULL || why == ERROR_HANDLE_DISK_FULL                               ? ENOSPC
          : why == ERROR_ACCESS_DENIED || why == ERROR_SHARING_VIOLATION                          ? EACCES
          : why == ERROR_NOT_ENOUGH_MEMORY                                                        ? ENOMEM
                                                                                                  : EIO;
  return false;
}

/// Opens a file or a folder so that others may still use, rename and delete it.
inline HANDLE open_handle(const std::string& path, DWORD access, DWORD how, DWORD flags = 0) {
  const HANDLE handle =
      CreateFileW(wide_path(path).c_str(), access, FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, nullptr, how,
                  FILE_ATTRIBUTE_NORMAL | FILE_FLAG_BACKUP_SEMANTICS | flags, nullptr);
  if (handle == INVALID_HANDLE_VALUE) set_errno();
  return handle;
}

/// The descriptor of a handle, which it owns.
inline int descriptor_of(HANDLE handle) {
  return handle == INVALID_HANDLE_VALUE ? -1 : _open_osfhandle(intptr_t(handle), _O_BINARY | _O_NOINHERIT);
}

inline FileInfo info_of(HANDLE handle) {
  FileInfo info;
  BY_HANDLE_FILE_INFORMATION found;
  const DWORD type = GetFileType(handle);
  if (type == FILE_TYPE_CHAR || type == FILE_TYPE_PIPE) info.kind = FileKind::stream;
  if (type != FILE_TYPE_DISK || !GetFileInformationByHandle(handle, &found)) return info;
  info.kind = found.dwFileAttributes & FILE_ATTRIBUTE_DIRECTORY ? FileKind::folder : FileKind::file;
  info.size = uint64_t(found.nFileSizeHigh) << 32 | found.nFileSizeLow;
  info.device = found.dwVolumeSerialNumber;
  info.number = uint64_t(found.nFileIndexHigh) << 32 | found.nFileIndexLow;
  return info;
}

/// The file with this name, which may be a link to it; of an open file.
inline FileInfo info_of(const std::string& path) {
  const HANDLE handle = open_handle(path, 0, OPEN_EXISTING);
  if (handle == INVALID_HANDLE_VALUE) return {};
  const FileInfo info = info_of(handle);
  CloseHandle(handle);
  return info;
}
inline FileInfo info_of(int file) { return info_of(handle_of(file)); }
/// The same of a link itself.
inline FileInfo info_of_link(const std::string& path) {
  const HANDLE handle = open_handle(path, 0, OPEN_EXISTING, FILE_FLAG_OPEN_REPARSE_POINT);
  if (handle == INVALID_HANDLE_VALUE) return {};
  const FileInfo info = info_of(handle);
  CloseHandle(handle);
  return info;
}

/// Opens a file of any kind for reading.
inline int open_to_read(const std::string& path) {
  return descriptor_of(open_handle(path, GENERIC_READ, OPEN_EXISTING));
}
inline std::FILE* open_stream(const std::string& path) {
  const int file = open_to_read(path);
  return file < 0 ? nullptr : _fdopen(file, "rb");
}
/// Opens an existing file for reading and writing; not at the end of a symbolic link.
inline int open_to_change(const std::string& path) {
  return descriptor_of(open_handle(path, GENERIC_READ | GENERIC_WRITE, OPEN_EXISTING));
}
/// Creates a regular file, which did not exist. own: only its owner may read it.
inline int create_file(const char* name, bool) {
  return descriptor_of(open_handle(name, GENERIC_READ | GENERIC_WRITE, CREATE_NEW));
}
/// Creates a folder, which did not exist.
inline bool create_folder(const char* name) {
  return CreateDirectoryW(wide_path(name).c_str(), nullptr) || set_errno();
}
/// Deletes a file or an empty folder.
inline void remove(const char* name) {
  const std::wstring wide = wide_path(name);
  if (!DeleteFileW(wide.c_str())) RemoveDirectoryW(wide.c_str());
}

using pocket::read_at;  // run.cpp
inline int64_t write_at(int file, const void* data, size_t n, uint64_t at) {
  OVERLAPPED to = {};
  to.Offset = DWORD(at);
  to.OffsetHigh = DWORD(at >> 32);
  DWORD done = 0;
  if (WriteFile(handle_of(file), data, DWORD(std::min(n, kMostAtOnce)), &done, &to)) return done;
  set_errno();
  return -1;
}
inline int64_t write(int file, const void* data, size_t n) {
  return ::_write(file, data, unsigned(std::min(n, kMostAtOnce)));
}
inline int close(int file) { return ::_close(file); }
inline bool set_size(int file, uint64_t bytes) { return _chsize_s(file, int64_t(bytes)) == 0; }
/// Writes the data of a file to the disk.
inline bool synchronize(int file) { return _commit(file) == 0; }
/// Writes the names in a folder to the disk, after a rename.
inline bool synchronize_folder(const std::string&) { return true; }  // replace() does so
/// Locks a file for this process, until it is closed; does not wait.
inline bool lock(int file) {
  OVERLAPPED last = {};  // a byte that no file has
  last.Offset = last.OffsetHigh = 0x7fffffff;
  return LockFileEx(handle_of(file), LOCKFILE_EXCLUSIVE_LOCK | LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, &last) ||
         set_errno();
}
/// Gives a new file the permissions of an earlier one, as far as possible.
inline void keep_attributes(int, const FileInfo&) {}
inline bool replace(const std::string& from, const std::string& to) {
  const DWORD flags = MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH;
  return MoveFileExW(wide_path(from).c_str(), wide_path(to).c_str(), flags) || set_errno();
}
/// Whether the path names something else than a regular file, link or not.
inline bool is_not_replaceable(const std::string& path) {
  const FileKind kind = info_of(path).kind;
  return kind != FileKind::none && kind != FileKind::file;
}

/// Finds what is at a path, after symbolic links, and whether it can be replaced. False with `why` set if not.
inline bool find_destination(const std::string& path, Destination& to, std::string& why) {
  const auto fail = [&](const char* reason) {
    why = reason;
    return false;
  };
  to.path = path;
  to.info = info_of(path);
  const DWORD attributes = GetFileAttributesW(wide_path(path).c_str());
  if (to.info.kind == FileKind::none && attributes != INVALID_FILE_ATTRIBUTES)
    return fail(attributes & FILE_ATTRIBUTE_REPARSE_POINT ? "is a symbolic link to a file that does not exist"
                                                          : std::strerror(EACCES));
  if (to.info.kind != FileKind::file) return true;
  const HANDLE existing = open_handle(path, DELETE, OPEN_EXISTING);
  if (existing == INVALID_HANDLE_VALUE) return fail("in use by another program; close the program that uses it");
  if (attributes & FILE_ATTRIBUTE_REPARSE_POINT) {
    std::wstring target(32768, L'\0');
    target.resize(GetFinalPathNameByHandleW(existing, &target[0], DWORD(target.size()), VOLUME_NAME_DOS));
    if (!target.empty()) to.path = narrow(target);
  }
  CloseHandle(existing);
  return !(attributes & FILE_ATTRIBUTE_READONLY) || fail("is read-only");
}
/// Opens a destination that exists. Waits for the reader of a pipe.
inline int open_destination(const Destination& to) {
  return descriptor_of(open_handle(to.path, GENERIC_WRITE, OPEN_EXISTING));
}
inline bool can_open_destination(const Destination& to) {
  const int file = open_destination(to);
  if (file >= 0) ::_close(file);
  return file >= 0;
}

// ---- Memory ----

/// Peak resident memory of this process, and resident memory at this moment, in bytes.
inline size_t peak_memory() {
  PROCESS_MEMORY_COUNTERS counters = {};
  K32GetProcessMemoryInfo(GetCurrentProcess(), &counters, sizeof counters);
  return counters.PeakWorkingSetSize;
}
inline size_t resident_memory() {
  PROCESS_MEMORY_COUNTERS counters = {};
  K32GetProcessMemoryInfo(GetCurrentProcess(), &counters, sizeof counters);
  return counters.WorkingSetSize;
}
inline MEMORYSTATUSEX memory_status() {
  MEMORYSTATUSEX status = {};
  status.dwLength = sizeof status;
  GlobalMemoryStatusEx(&status);
  return status;
}
/// Memory in bytes that a new process could use, and that of the machine.
inline size_t available_memory() { return size_t(memory_status().ullAvailPhys); }
inline uint64_t physical_memory() { return memory_status().ullTotalPhys; }

/// Returns pages of a mapped file to the system, which reads them again when they are used.
inline void release_pages(uintptr_t begin, size_t n) {
  VirtualUnlock(reinterpret_cast<void*>(begin), n);  // of pages that are not locked: removes them from the working set
}
/// Written data is in small pages of the page cache. Dropped and read back, it is in pages of 2 MiB if the system supports
/// them for files, and a mapped model is then read 10% faster.
inline void read_back(const std::string&) {}

// ---- Terminals ----

/// Whether a standard file is a terminal.
inline bool is_terminal(int file) {
  DWORD mode;
  return GetConsoleMode(handle_of(file), &mode);
}

/// Prepares standard input and output for UTF-8 and for bytes that are written unchanged. False if standard output is
/// closed.
inline bool prepare_standard_files() {
  for (const int file : {0, 1, 2}) _setmode(file, _O_BINARY);
  static const UINT before = GetConsoleOutputCP();
  if (before && SetConsoleOutputCP(CP_UTF8)) std::atexit([] { SetConsoleOutputCP(before); });
  for (const int file : {1, 2})
    if (DWORD mode; GetConsoleMode(handle_of(file), &mode))
      SetConsoleMode(handle_of(file), mode | ENABLE_VIRTUAL_TERMINAL_PROCESSING);  // "\033[K" of progress lines
  return _fileno(stdout) >= 0 && GetFileType(handle_of(1)) != FILE_TYPE_UNKNOWN;
}

/// Waits for standard input. 0: nothing came within the time; else it can be read, or is at its end.
inline int wait_for_input(int milliseconds) {
  const HANDLE in = handle_of(0);
  DWORD bytes = 0;
  if (GetFileType(in) != FILE_TYPE_PIPE) return 1;  // Ctrl-C ends the reading of a console
  for (int i = 0; i < milliseconds; i += 10) {
    if (!PeekNamedPipe(in, nullptr, 0, nullptr, &bytes, nullptr) || bytes > 0) return 1;
    Sleep(10);
  }
  return 0;
}

/// Reads standard input: at most n bytes, n at least 4. 0 at its end; -1 with errno EINTR after Ctrl-C.
inline int64_t read_input(char* out, size_t n) {
  if (!is_terminal(0)) return ::_read(0, out, unsigned(std::min(n, kMostAtOnce)));
  constexpr wchar_t kEnd = 26;  // Ctrl-Z
  std::wstring text(n / 3, L'\0');
  DWORD got = 0;
  SetLastError(0);
  const bool good = ReadConsoleW(handle_of(0), &text[0], DWORD(text.size()), &got, nullptr);
  const bool interrupted = GetLastError() == ERROR_OPERATION_ABORTED;
  if (interrupted) Sleep(100);  // the thread of Ctrl-C calls its handler meanwhile
  errno = interrupted ? EINTR : EIO;
  if (!good || (got == 0 && interrupted)) return -1;
  if (got > 0 && text[0] == kEnd) return 0;
  const std::string bytes = narrow(text.data(), got);
  std::copy(bytes.begin(), bytes.end(), out);
  return int64_t(bytes.size());
}

// ---- Signals ----

/// Blocks the signals of this thread while it lives.
using pocket::SignalsBlocked;

/// Ends the process by a signal.
[[noreturn]] inline void end_by_signal(int number) { _exit(128 + number); }

inline std::atomic<void (*)(int)> interrupt_handler{nullptr};
inline void on_interrupt(int number) {
  std::signal(number, on_interrupt);  // which Windows has replaced by the default
  interrupt_handler.load()(number);
}
/// Calls a function at each Ctrl-C, unless it sets another handler. On Windows it runs in another thread.
inline void catch_interrupt(void (*handler)(int), bool) {
  interrupt_handler.store(handler);
  std::signal(SIGINT, on_interrupt);
}
/// Calls a function at the other signals that end a process: on Windows if the console is closed, too.
inline void catch_ends(void (*handler)(int)) {
  for (const int number : {SIGTERM, SIGBREAK}) std::signal(number, handler);
}
/// Calls a function if a page of a mapped file cannot be read. On Windows nobody can truncate a mapped file.
inline void catch_bus_error(void (*)(int)) {}

#else

// ====================================================================================================================
// POSIX
// ====================================================================================================================

// ---- Names ----

inline constexpr const char* kSeparators = "/";
inline std::filesystem::path native(const std::string& path) { return path; }
inline void take_arguments(int&, char**&) {}

inline std::string program_path() {
  char path[PATH_MAX] = "";
#if defined(__APPLE__)
  uint32_t size = sizeof path;
  char resolved[PATH_MAX];
  return _NSGetExecutablePath(path, &size) == 0 && realpath(path, resolved) ? resolved : "";
#else
  const ssize_t n = readlink("/proc/self/exe", path, sizeof path);
  return std::string(path, size_t(std::max<ssize_t>(n, 0)));
#endif
}

// ---- Files ----

inline FileInfo info_of(const struct stat& st) {
  FileInfo info;
  info.kind = S_ISREG(st.st_mode)                           ? FileKind::file
              : S_ISDIR(st.st_mode)                         ? FileKind::folder
              : S_ISLNK(st.st_mode)                         ? FileKind::link
              : S_ISFIFO(st.st_mode) || S_ISCHR(st.st_mode) ? FileKind::stream
                                                            : FileKind::other;
  info.size = uint64_t(st.st_size);
  info.device = uint64_t(st.st_dev);
  info.number = uint64_t(st.st_ino);
  info.owner = unsigned(st.st_uid);
  info.group = unsigned(st.st_gid);
  info.mode = unsigned(st.st_mode) & 0777;
  return info;
}
inline FileInfo info_of(const std::string& path) {
  struct stat st = {};
  return ::stat(path.c_str(), &st) == 0 ? info_of(st) : FileInfo();
}
inline FileInfo info_of(int file) {
  struct stat st = {};
  return fstat(file, &st) == 0 ? info_of(st) : FileInfo();
}
inline FileInfo info_of_link(const std::string& path) {
  struct stat st = {};
  return lstat(path.c_str(), &st) == 0 ? info_of(st) : FileInfo();
}

inline int open_to_read(const std::string& path) {  // does not wait for the writer of a pipe
  return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
}
inline std::FILE* open_stream(const std::string& path) { return std::fopen(path.c_str(), "rb"); }
inline int open_to_change(const std::string& path) {
  return ::open(path.c_str(), O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
}
inline int create_file(const char* name, bool own) {
  return ::open(name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, own ? 0600 : 0666);
}
inline bool create_folder(const char* name) { return ::mkdir(name, 0777) == 0; }
inline void remove(const char* name) {  // also in a signal handler
  if (::unlink(name) != 0) ::rmdir(name);
}

inline int64_t read_at(int file, void* out, size_t n, uint64_t at) {
  return pread(file, out, std::min(n, kMostAtOnce), off_t(at));
}
inline int64_t write_at(int file, const void* data, size_t n, uint64_t at) {
  return pwrite(file, data, std::min(n, kMostAtOnce), off_t(at));
}
inline int64_t write(int file, const void* data, size_t n) { return ::write(file, data, std::min(n, kMostAtOnce)); }
inline int close(int file) { return ::close(file); }
inline bool set_size(int file, uint64_t bytes) { return ftruncate(file, off_t(bytes)) == 0; }
inline bool synchronize(int file) {
  return fsync(file) == 0 || errno == EINVAL;  // EINVAL: not supported by this file system
}
inline bool synchronize_folder(const std::string& folder) {
  const int file = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (file < 0) return true;  // a folder that may be written, but not read
  const bool good = synchronize(file);
  const int why = errno;
  ::close(file);
  errno = why;
  return good;
}
inline bool lock(int file) { return flock(file, LOCK_EX | LOCK_NB) == 0; }
inline void keep_attributes(int file, const FileInfo& earlier) {
  const bool group = fchown(file, uid_t(earlier.owner), gid_t(earlier.group)) == 0 ||
                     fchown(file, uid_t(-1), gid_t(earlier.group)) == 0;
  const bool mode = fchmod(file, mode_t(earlier.mode & (group ? 0777 : 0707))) == 0;  // another group: no permissions
  (void)mode;                                                                         // some file systems have no modes
}
inline bool replace(const std::string& from, const std::string& to) {
  return std::rename(from.c_str(), to.c_str()) == 0;
}
inline bool is_not_replaceable(const std::string& path) {
  const FileKind kind = info_of_link(path).kind;
  return kind != FileKind::none && kind != FileKind::file;
}

/// The last component of a path that does not end in a slash.
inline std::string name_in_folder(const std::string& path) { return path.substr(path.rfind('/') + 1); }

/// Replaces the folder of to.path by its path without symbolic links, and finds out whether it is /dev/fd/N.
inline bool resolve_folder(Destination& to) {
  const size_t slash = to.path.rfind('/');
  const std::string before = slash == std::string::npos ? "." : slash == 0 ? "/" : to.path.substr(0, slash);
  char resolved[PATH_MAX];
  if (!realpath(before.c_str(), resolved)) return false;
  const std::string folder = resolved, name = name_in_folder(to.path);
  const std::string process = "/proc/" + std::to_string(getpid()) + "/";
  const bool descriptors =
      folder.rfind(process, 0) == 0 && folder.size() > 3 && folder.compare(folder.size() - 3, 3, "/fd") == 0;
  to.path = (folder == "/" ? "" : folder) + "/" + name;
  if (descriptors && name.size() < 8 && name.find_first_not_of("0123456789") == std::string::npos)
    to.descriptor = std::stoi(name);
  return true;
}

/// Replaces to.path, a symbolic link, by where it leads.
inline bool follow_link(Destination& to) {
  char link[PATH_MAX];
  const ssize_t n = readlink(to.path.c_str(), link, sizeof link);
  if (n < 0) return false;
  const std::string target(link, size_t(n));
  to.path = target[0] == '/' ? target : to.path.substr(0, to.path.rfind('/') + 1) + target;
  return true;
}

inline bool find_destination(const std::string& path, Destination& to, std::string& why) {
  constexpr int kMostLinks = 40;
  const auto fail = [&](const std::string& reason) {
    why = reason;
    return false;
  };
  to.path = path;
  for (int links = 0;; links++) {
    if (links > kMostLinks) return fail(std::strerror(ELOOP));
    if (!resolve_folder(to)) return fail(std::strerror(errno));
    if (to.descriptor >= 0) return true;
    errno = 0;
    to.info = info_of_link(to.path);
    if (to.info.kind == FileKind::none && errno != ENOENT) return fail(std::strerror(errno));
    if (to.info.kind == FileKind::none && links > 0)
      return fail("is a symbolic link to " + to.path + ", which does not exist");
    if (to.info.kind != FileKind::link) return true;
    if (!follow_link(to)) return fail(std::strerror(errno));
  }
}
inline int open_destination(const Destination& to) {  // a signal ends the wait
  return to.descriptor >= 0 ? fcntl(to.descriptor, F_DUPFD_CLOEXEC, 3)
                            : ::open(to.path.c_str(), O_WRONLY | O_NOFOLLOW | O_NOCTTY | O_CLOEXEC);
}
inline bool can_open_destination(const Destination& to) {
  return to.descriptor >= 0 ? fcntl(to.descriptor, F_GETFL) >= 0 : ::access(to.path.c_str(), W_OK) == 0;
}

// ---- Memory ----

/// The number after `key` at the beginning of a line of a file; 0 if there is none.
inline size_t number_in_file(const std::string& path, const std::string& key) {
  size_t number = 0;
  if (std::FILE* file = std::fopen(path.c_str(), "r")) {
    for (char line[128]; !number && std::fgets(line, sizeof line, file);)
      if (key.compare(0, key.size(), line, std::min(key.size(), std::strlen(line))) == 0)
        number = std::strtoull(line + key.size(), nullptr, 10);
    std::fclose(file);
  }
  return number;
}

inline size_t peak_memory() {  // getrusage would include the memory of the process before exec
  if (const size_t kib = number_in_file("/proc/self/status", "VmHWM: ")) return kib * 1024;
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
#if defined(__APPLE__)
  return size_t(usage.ru_maxrss);
#else
  return size_t(usage.ru_maxrss) * 1024;
#endif
}
inline size_t resident_memory() {  // where it is unknown, the peak
  long pages = 0;
  if (std::FILE* file = std::fopen("/proc/self/statm", "r")) {
    if (std::fscanf(file, "%*d %ld", &pages) != 1) pages = 0;
    std::fclose(file);
  }
  return pages > 0 ? size_t(pages) * size_t(sysconf(_SC_PAGESIZE)) : peak_memory();
}
inline uint64_t physical_memory() { return uint64_t(sysconf(_SC_PHYS_PAGES)) * uint64_t(sysconf(_SC_PAGESIZE)); }

/// Memory in bytes that the control groups of this process still allow, apart from what they can take back from the page
/// cache; SIZE_MAX without a limit. Both versions of Linux's control groups. root: of the file system, for tests.
inline size_t group_memory(const std::string& root = "") {
  struct Files {
    const char *folder, *limit, *used;
  };
  constexpr Files kVersion1 = {"/sys/fs/cgroup/memory", "/memory.limit_in_bytes", "total_rss "};
  constexpr Files kVersion2 = {"/sys/fs/cgroup", "/memory.max", "anon "};
  size_t least = SIZE_MAX;
  std::FILE* groups =
      std::fopen((root + "/proc/self/cgroup").c_str(), "r");  // lines such as 4:memory:/user/session or 0::/user
  if (!groups) return least;
  for (char line[4096]; std::fgets(line, sizeof line, groups);) {
    std::string text = line, path = text.substr(std::min(text.size(), text.rfind(':') + 1));
    const bool one = text.find(":memory:") != std::string::npos || text.find(",memory:") != std::string::npos;
    if (!one && text.compare(0, 3, "0::") != 0) continue;
    const Files& files = one ? kVersion1 : kVersion2;
    while (!path.empty() && (path.back() == '\n' || path.back() == '/')) path.pop_back();
    for (;; path.resize(path.rfind('/'))) {  // the group, and those that it is in
      const std::string folder = root + files.folder + path;
      const size_t limit = number_in_file(folder + files.limit, "");
      const size_t used = number_in_file(folder + "/memory.stat", files.used);
      if (limit > 0) least = std::min(least, limit - std::min(limit, used));
      if (path.empty() || path.rfind('/') == std::string::npos) break;
    }
  }
  std::fclose(groups);
  return least;
}

inline size_t available_memory() {  // where it is unknown, half of the machine's memory
  const size_t kib = number_in_file("/proc/meminfo", "MemAvailable: ");
  return std::min(kib ? kib * 1024 : size_t(physical_memory() / 2), group_memory());
}

inline void release_pages(uintptr_t begin, size_t n) { madvise(reinterpret_cast<void*>(begin), n, MADV_DONTNEED); }
inline void read_back([[maybe_unused]] const std::string& path) {
#ifdef POSIX_FADV_DONTNEED
  const int file = open_to_read(path);
  char piece[1 << 16];
  if (file >= 0 && posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED) == 0)
    while (::read(file, piece, sizeof piece) > 0) continue;
  if (file >= 0) ::close(file);
#endif
}

// ---- Terminals ----

inline bool is_terminal(int file) { return isatty(file); }

inline bool prepare_standard_files() {
  while (true) {  // /dev/null in place of closed ones, because the next opened file would take their descriptors
    const int file = ::open("/dev/null", O_RDWR);
    if (file == 1) return false;
    if (file > 2) ::close(file);
    if (file > 2 || file < 0) return true;
  }
}

inline int wait_for_input(int milliseconds) {
  pollfd in = {0, POLLIN, 0};
  const int ready = poll(&in, 1, milliseconds);
  return ready < 0 && errno == EINTR ? 0 : ready;
}
inline int64_t read_input(char* out, size_t n) { return ::read(0, out, n); }

// ---- Signals ----

class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

inline void end_by_signal(int number) {
  std::signal(number, SIG_DFL);
  std::raise(number);
}
/// restart: an interrupted write continues.
inline void catch_interrupt(void (*handler)(int), bool restart) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = restart ? SA_RESTART : 0;
  sigaction(SIGINT, &action, nullptr);
}
/// Not those that are ignored, as under nohup. A write beyond the largest allowed file size, or to a pipe that nobody
/// reads, fails instead of raising a signal.
inline void catch_ends(void (*handler)(int)) {
  for (const int number : {SIGHUP, SIGTERM, SIGQUIT, SIGXCPU}) {
    struct sigaction before = {};
    sigaction(number, nullptr, &before);
    if (before.sa_handler == SIG_DFL) std::signal(number, handler);
  }
  std::signal(SIGXFSZ, SIG_IGN);
  std::signal(SIGPIPE, SIG_IGN);
}
inline void catch_bus_error(void (*handler)(int)) { std::signal(SIGBUS, handler); }

#endif

/// The number of CPUs for a job that all of them share: on macOS without the slow ones, for which the others would wait.
inline int cpu_count() {
#if defined(__APPLE__)
  int fast = 0;
  size_t size = sizeof fast;
  if (sysctlbyname("hw.perflevel0.logicalcpu", &fast, &size, nullptr, 0) == 0 && fast > 0) return fast;
#endif
  return std::max(1, int(std::thread::hardware_concurrency()));
}

/// The names of the files in a folder; none if it cannot be read.
inline std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(native(folder), ignored))
    names.push_back(entry.path().filename().u8string());
  return names;
}

}  // namespace pocket::platform
