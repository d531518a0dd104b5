// http_server.hpp: cpp-httplib's server with the limits of connection.hpp, and with its errors as OpenAI's JSON.
#pragma once

#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "../openai/response.hpp"
#include "access.hpp"
#include "connection.hpp"

namespace pocket::server {

using openai::OrderedJson;
using openai::Refusal;

inline constexpr const char* kJsonType = "application/json";

inline void send_json(httplib::Response& response, const OrderedJson& body, int status = 200) {
  response.status = status;
  response.set_content(openai::to_line(body) + "\n", kJsonType);
}

inline void send_refusal(httplib::Response& response, const Refusal& refusal) {
  send_json(response, openai::error_body(refusal), refusal.status);
  if (refusal.status == 401) response.set_header("WWW-Authenticate", "Bearer");
}

// A thread per connection, which ends with it. In the library's pool of threads that stay, each keeps the memory that the
// allocator caches for it: with hundreds of them, the process grows for many thousand requests.
class ConnectionThreads : public httplib::TaskQueue {
 public:
  // most: at once; connections beyond it wait.
  explicit ConnectionThreads(size_t most) : most_(most) {}

  // void, or since version 0.15 of the library, whether the task was accepted.
  using Accepted = decltype(std::declval<httplib::TaskQueue&>().enqueue(std::function<void()>()));
  Accepted enqueue(std::function<void()> task) override {
    std::lock_guard lock(mutex_);
    waiting_.push_back(std::move(task));
    if (running_ < most_) {
      try {
        std::thread([this] { run(); }).detach();
        running_++;
      } catch (const std::system_error&) {  // no more threads: one that is running takes the task
      }
    }
    return Accepted(true);
  }
  // Waits until all tasks have ended.
  void shutdown() override {
    std::unique_lock lock(mutex_);
    ended_.wait(lock, [this] { return running_ == 0; });
  }

 private:
  void run() {
    std::unique_lock lock(mutex_);
    while (!waiting_.empty()) {
      const std::function<void()> task = std::move(waiting_.front());
      waiting_.pop_front();
      lock.unlock();
      task();
      lock.lock();
    }
    running_--;
    ended_.notify_all();
  }

  const size_t most_;
  std::mutex mutex_;  // of all that follows
  std::condition_variable ended_;
  std::deque<std::function<void()>> waiting_;
  size_t running_ = 0;  // threads
};

class HttpServer : public httplib::Server {
 public:
  // connections: at once, with a thread each.
  explicit HttpServer(int connections) : most_(connections), stop_(eventfd(0, EFD_CLOEXEC)) {
    new_task_queue = [this] { return new ConnectionThreads(size_t(most_) + kSpareThreads); };
    // The library's default shares a port with other servers that listen on it.
    set_socket_options([](socket_t fd) {
      const int yes = 1;
      setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    });
    set_keep_alive_timeout(limits.idle_ms / 1000);
    set_keep_alive_max_count(kMostRequests);
    set_error_handler(
        Handler([this](const httplib::Request& request, httplib::Response& response) { explain(request, response); }));
  }
  ~HttpServer() override { ::close(stop_); }

  ConnectionLimits limits;

  // Returns the port; -1 on failure, with errno set.
  int bind(const std::string& host, int port) {
    errno = 0;
    if (port > 0 && !bind_to_port(host, port)) port = -1;
    if (port == 0) port = bind_to_any_port(host);
    if (port > 0) ::listen(svr_sock_, SOMAXCONN);  // the library's backlog of 5 delays clients that come together
    return port;
  }

  // Ends listen_after_bind(), once the requests in progress have ended. Another thread may call it.
  void end() {
    stopping_ = true;
    const uint64_t one = 1;
    if (::write(stop_, &one, sizeof one) != sizeof one) return;  // cannot fail: the counter is 0 or small
    stop();
  }

  int connections() const { return active_; }

  // The connection whose request this thread handles.
  static Connection& connection() { return *current(); }

  // For a pre-routing handler: whether the rest of a request can be read. Throws Refusal.
  static void check_body(const httplib::Request& request, const ConnectionLimits& limits) {
    connection().head_done = true;
    const auto values = [&](const char* name) { return request.get_header_value_count(name); };
    if (request.has_header("Content-Encoding"))
      throw Refusal{"Content-Encoding: this header is not supported", "", "invalid_header", 415};
    const std::string length = request.get_header_value("Content-Length");
    const std::string coding = request.get_header_value("Transfer-Encoding");
    const bool good = values("Content-Length") + values("Transfer-Encoding") <= 1 &&
                      length.find_first_not_of("0123456789") == length.npos &&
                      (coding.empty() || equal_without_case(coding, "chunked")) && values("Host") <= 1;
    if (!good) throw Refusal{"expected one Content-Length, or Transfer-Encoding: chunked", "", "invalid_header"};
    if (length.size() > 18 || (!length.empty() && std::stoull(length) > limits.body_bytes))
      throw Refusal{"expected a body of at most " + std::to_string(limits.body_bytes) + " bytes, found a larger one",
                    "", "request_too_large", 413};
    if (request.method != "POST") {
      if (!coding.empty() || (!length.empty() && std::stoull(length) > 0))
        throw Refusal{"expected no body with " + request.method, "", "invalid_header"};
      return;
    }
    if (length.empty() && coding.empty())
      throw Refusal{"expected Content-Length, or Transfer-Encoding: chunked", "", "invalid_header", 411};
    std::string type = request.get_header_value("Content-Type");
    type = type.substr(0, std::min(type.find_first_of("; "), type.size()));
    if (!equal_without_case(type, kJsonType))
      throw Refusal{"Content-Type: expected application/json, found '" + type.substr(0, 80) + "'", "", "invalid_header",
                    415};
  }

 private:
  static constexpr int kSpareThreads = 8;        // that tell clients beyond the limit so
  static constexpr size_t kMostRequests = 1000;  // of a connection
  using Setup = std::function<void(httplib::Request&)>;

  static Connection*& current() {
    static thread_local Connection* connection = nullptr;
    return connection;
  }

  bool process_and_close_socket(socket_t fd) override {
    Connection c(fd, stop_, limits);
    const int active = ++active_;
    bool good = true;
    if (active > most_) {
      send_raw(c, 503, "Service Unavailable",
               {"expected at most " + std::to_string(most_) + " connections, found more; --connections allows more", "",
                "too_many_connections", 503});
    } else {
      current() = &c;
      for (size_t i = 1; i <= kMostRequests && c.await_request(); i++) {
        const bool last = stopping_ || i == kMostRequests || active_ > most_ / 4 * 3;
        bool closed = false;
        good = call(&HttpServer::process_request, c, last, closed);
        if (!good && !c.wrote && c.timed_out) send_raw(c, 408, "Request Timeout", timeout());
        if (!good && !c.wrote && c.too_large) send_raw(c, 431, "Request Header Fields Too Large", large_head());
        if (!good || closed || last || c.must_close) break;
      }
      current() = nullptr;
    }
    c.close_gently();
    ::close(fd);
    active_--;
    return good;
  }

  // The function of the library that handles a request has more parameters since version 0.16; `More` of later ones are
  // optional.
  bool call(bool (httplib::Server::*process)(httplib::Stream&, bool, bool&, const Setup&), Connection& c, bool last,
            bool& closed) {
    return (this->*process)(c, last, closed, ignore_range);
  }
  template <class... More>
  bool call(bool (httplib::Server::*process)(httplib::Stream&, const std::string&, int, const std::string&, int, bool,
                                             bool&, const Setup&, More*...),
            Connection& c, bool last, bool& closed) {
    std::string remote, local;
    int remote_port = 0, local_port = 0;
    c.get_remote_ip_and_port(remote, remote_port);
    c.get_local_ip_and_port(local, local_port);
    return (this->*process)(c, remote, remote_port, local, local_port, last, closed, ignore_range,
                            static_cast<More*>(nullptr)...);
  }

  // The library would cut any response that it knows the size of.
  static void ignore_range(httplib::Request& request) { request.ranges.clear(); }

  Refusal timeout() const {
    return {"expected a whole request within " + std::to_string(limits.request_ms / 1000) + " s", "", "request_timeout",
            408};
  }
  Refusal large_head() const {
    return {"expected headers of at most " + std::to_string(limits.head_bytes) + " bytes, found more", "",
            "request_too_large", 431};
  }

  static void send_raw(Connection& c, int status, const char* reason, const Refusal& refusal) {
    const std::string body = openai::error_body(refusal).dump() + "\n";
    const std::string response = "HTTP/1.1 " + std::to_string(status) + " " + reason +
                                 "\r\nContent-Type: application/json\r\nConnection: close\r\nRetry-After: 1\r\n" +
                                 "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
    c.write(response.data(), response.size());
  }

  // Completes a response with an error. After it the connection ends, because the rest of the request may be unread.
  void explain(const httplib::Request& request, httplib::Response& response) {
    Connection& c = connection();
    c.must_close = true;
    const std::string models = "/v1/models/";
    if (response.body.empty()) {
      if (c.timed_out)
        send_refusal(response, timeout());
      else if (c.too_large)
        send_refusal(response, c.head_done ? Refusal{"expected a body of at most " + std::to_string(limits.body_bytes) +
                                                         " bytes, found a larger one",
                                                     "", "request_too_large", 413}
                                           : large_head());
      else if (response.status == 404 && request.path.rfind(models, 0) == 0)
        send_refusal(response,
                     {"no such model: " + request.path.substr(models.size(), 80), "model", "model_not_found", 404});
      else if (response.status == 404)
        send_refusal(response,
                     {"no such route: " + request.method + " " + request.path.substr(0, 80), "", "not_found", 404});
      else
        send_refusal(response, {"expected a valid HTTP request, found an error", "", "invalid_http", response.status});
    }
  }

  const int most_, stop_;
  std::atomic<int> active_{0};
  std::atomic<bool> stopping_{false};
};

}  // namespace pocket::server
