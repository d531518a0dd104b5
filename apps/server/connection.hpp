// connection.hpp: the socket of a client as a stream of cpp-httplib, with limits that the library does not have: a
// deadline for a whole request, however slowly its bytes come, a limit of its bytes, and a deadline for its response.
#pragma once

#include <arpa/inet.h>
#include <httplib.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <string>

namespace pocket::server {

// Limits of a connection: times in milliseconds, sizes in bytes.
struct ConnectionLimits {
  int idle_ms = 15000;           // until the first byte of a request
  int request_ms = 30000;        // from its first to its last byte
  int write_ms = 30000;          // total time that a response waits for its client to read,
  size_t read_per_ms = 32;       // and the bytes read that add 1 ms to it
  size_t head_bytes = 64 << 10;  // of the request line and the headers
  size_t body_bytes = 8 << 20;
};

// Whether a client has closed its connection, or half of it, so that the reply has no reader.
inline bool has_hung_up(int fd) {
  pollfd p = {fd, POLLRDHUP, 0};
  return ::poll(&p, 1, 0) > 0 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL)) != 0;
}

#ifdef __clang__
#pragma clang diagnostic ignored "-Winconsistent-missing-override"  // members of some versions of the library
#endif

// Not for several threads. The functions of the library's Stream have the contracts of recv() and send().
class Connection : public httplib::Stream {
 public:
  // stop: a descriptor that becomes readable when the server stops. Both descriptors are the caller's.
  Connection(int fd, int stop, const ConnectionLimits& limits) : fd_(fd), stop_(stop), limits_(limits) {
    const int yes = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  }

  // Waits for the next request. False if there is none: the client is gone, or idle for too long, or the server stops.
  bool await_request() {
    read_bytes_ = written_bytes_ = 0;
    waited_ms_ = 0;
    timed_out = too_large = head_done = wrote = must_close = false;
    if (at_ == end_ && !wait(POLLIN, limits_.idle_ms, true)) return false;
    started_ = now();
    deadline_ = started_ + limits_.request_ms;
    note.clear();
    return at_ < end_ || fill();
  }

  // Why reading a request failed; wrote: some of the response was written.
  bool timed_out = false, too_large = false, wrote = false;
  bool must_close = false;  // after this request
  bool head_done = false;   // the headers are complete; set by the server

  std::string note;  // for the log: about the request

  int fd() const { return fd_; }
  double elapsed() const { return double(now() - started_) / 1000; }  // seconds since the request began

  bool is_readable() const override { return at_ < end_ || wait(POLLIN, 0); }

  ssize_t read(char* data, size_t size) override {
    if (must_close) return -1;  // some versions of the library read the rest of a request that was refused
    if (at_ == end_ && !fill()) return timed_out || too_large ? -1 : 0;
    const size_t n = std::min(size, end_ - at_);
    read_bytes_ += n;
    if (read_bytes_ > limits_.head_bytes + (head_done ? limits_.body_bytes : 0)) {
      too_large = true;
      return -1;
    }
    std::memcpy(data, buffer_ + at_, n);
    at_ += n;
    return ssize_t(n);
  }

  ssize_t write(const char* data, size_t size) override {
    size = std::min(size, size_t(64 << 10));
    wrote = true;
    for (size_t done = 0; done < size;) {
      const ssize_t n = ::send(fd_, data + done, size - done, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (n > 0) {
        done += size_t(n);
        written_bytes_ += size_t(n);
        continue;
      }
      if (n < 0 && errno == EINTR) continue;
      const bool full = n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
      if (!full || !wait_writable()) return -1;
    }
    return ssize_t(size);
  }

  void get_remote_ip_and_port(std::string& ip, int& port) const override { address(getpeername, ip, port); }
  void get_local_ip_and_port(std::string& ip, int& port) const override { address(getsockname, ip, port); }
  socket_t socket() const override { return fd_; }
  // Members of some versions. is_writable() waits, as the library's does: a stream ends if it returns false.
  bool is_writable() const { return wait_writable() && !has_hung_up(fd_); }
  bool is_peer_alive() const { return !has_hung_up(fd_); }
  bool wait_readable() const { return is_readable() || wait(POLLIN, limits_.idle_ms); }
  bool wait_writable() const {
    while (true) {
      int unread = 0;  // bytes
      ioctl(fd_, TIOCOUTQ, &unread);
      const size_t read = written_bytes_ - std::min(written_bytes_, size_t(unread));
      const int64_t begin = now(), left = limits_.write_ms + int64_t(read / limits_.read_per_ms) - waited_ms_;
      const bool ready = wait(POLLOUT, int(std::clamp<int64_t>(left, 0, 1000)));
      waited_ms_ += now() - begin;
      if (ready || left <= 0) return ready;
    }
  }
  time_t duration() const { return 0; }

  // Ends the connection so that the client gets all of the response, even if it still sends.
  void close_gently() {
    ::shutdown(fd_, SHUT_WR);
    char dropped[4096];
    const int64_t deadline = now() + 1000;
    for (size_t left = 64 << 20; left > 0 && now() < deadline && wait(POLLIN, int(deadline - now()));) {
      const ssize_t n = ::recv(fd_, dropped, sizeof dropped, MSG_DONTWAIT);
      if (n <= 0) break;
      left -= std::min(left, size_t(n));
    }
  }

 private:
  static int64_t now() {
    using namespace std::chrono;
    return duration_cast<milliseconds>(steady_clock::now().time_since_epoch()).count();
  }

  // Waits until the socket is ready. until_stop: or until the server stops, which is false.
  bool wait(short events, int ms, bool until_stop = false) const {
    const int64_t deadline = now() + std::max(0, ms);
    while (true) {
      pollfd p[] = {{fd_, events, 0}, {stop_, POLLIN, 0}};
      const int n = ::poll(p, until_stop ? 2 : 1, int(std::max<int64_t>(0, deadline - now())));
      if (n < 0 && errno == EINTR) continue;
      return n > 0 && p[0].revents != 0 && !(until_stop && p[1].revents != 0);
    }
  }

  bool fill() {
    at_ = end_ = 0;
    if (!wait(POLLIN, int(deadline_ - now()))) {
      timed_out = true;
      return false;
    }
    const ssize_t n = ::recv(fd_, buffer_, sizeof buffer_, MSG_DONTWAIT);
    end_ = n > 0 ? size_t(n) : 0;
    return end_ > 0;
  }

  template <class F> void address(F get, std::string& ip, int& port) const {
    sockaddr_storage where = {};
    socklen_t size = sizeof where;
    char text[INET6_ADDRSTRLEN] = "";
    if (get(fd_, reinterpret_cast<sockaddr*>(&where), &size) != 0) return;
    if (where.ss_family == AF_INET) {
      const auto& v4 = reinterpret_cast<const sockaddr_in&>(where);
      inet_ntop(AF_INET, &v4.sin_addr, text, sizeof text);
      port = ntohs(v4.sin_port);
    } else if (where.ss_family == AF_INET6) {
      const auto& v6 = reinterpret_cast<const sockaddr_in6&>(where);
      inet_ntop(AF_INET6, &v6.sin6_addr, text, sizeof text);
      port = ntohs(v6.sin6_port);
    }
    ip = text;
  }

  const int fd_, stop_;
  const ConnectionLimits& limits_;
  char buffer_[4096];
  size_t at_ = 0, end_ = 0;             // of buffer_: bytes that were received and not read
  size_t read_bytes_ = 0;               // of the request
  size_t written_bytes_ = 0;            // of the response
  mutable int64_t waited_ms_ = 0;       // for the client to read it
  int64_t started_ = 0, deadline_ = 0;  // of the request, in milliseconds
};

}  // namespace pocket::server
