// worker.hpp: the thread that computes: it takes requests from the threads of the clients, and generates all of them
// together, pass by pass.
#pragma once

#include <poll.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "connection.hpp"
#include "options.hpp"

namespace pocket::server {

using openai::Generation;
using openai::Refusal;

// What the worker has done and is doing. Tokens and passes are sums since the start.
struct WorkerFigures {
  uint64_t prompt_tokens = 0, reused_tokens = 0, new_tokens = 0, passes = 0, cancelled = 0;
  size_t running = 0, waiting = 0, kept = 0;  // texts; kept: sessions of ended ones
  size_t reserved_bytes = 0, kept_bytes = 0, limit_bytes = 0;
  double tokens_per_second = 0;  // generated in the last seconds
};

class Worker {
 public:
  // The generations of a request.
  struct Job {
    int fd;  // the client's socket, which has to stay open until all of them have ended
    std::vector<Generation> generations = {};
    std::vector<openai::Scheduler::Ticket> tickets = {};
    size_t unfinished = 0;  // generations
    double started = 0;
    std::atomic<bool> cancelled{false};  // set by the client's thread
    explicit Job(int client) : fd(client) {}
  };

  // The model must outlive the worker. Throws Failure.
  Worker(openai::ServedModel& model, const Arguments& a)
      : places_(size_t(a.parallel)),
        queue_(size_t(a.queue)),
        limits_(limits_of(model, a)),
        scheduler_(model.workspace, model.session_options(), limits_) {
    figures_.limit_bytes = limits_.kv_bytes;
    thread_ = std::thread([this] { run(); });
  }
  ~Worker() {
    drain();
    {
      std::lock_guard lock(mutex_);
      ended_ = true;
      wake_.notify_one();
    }
    thread_.join();
  }

  // Whether a request has no more replies than there are places to run and to wait. Throws Refusal.
  void check_size(const openai::Request& request) const {
    const size_t replies = request.prompts.size() * size_t(request.choices);
    if (replies <= places_ + queue_) return;
    const std::string param = request.choices == 1 ? "prompt" : "n";
    openai::refuse(param,
                   "at most " + std::to_string(places_ + queue_) +
                       " replies to a request, for all of its prompts (--parallel plus --queue)",
                   std::to_string(replies));
  }

  // Starts the generations of a request. Their callbacks are called by the worker's thread, and on_end in any case. If
  // the client hangs up, they are cancelled before the next pass. admitted: an earlier part of the request was accepted,
  // so that the limit of the queue does not apply. Throws Refusal.
  std::shared_ptr<Job> submit(std::vector<Generation> generations, int fd, bool admitted = false) {
    auto job = std::make_shared<Job>(fd);
    job->unfinished = generations.size();
    job->generations = std::move(generations);
    job->started = seconds();
    std::lock_guard lock(mutex_);
    if (draining_) throw Refusal{"the server is shutting down", "", "shutting_down", 503};
    if (!admitted && unfinished_ + job->unfinished > places_ + queue_)
      throw Refusal{"too many requests are waiting; try again later", "", "rate_limit_exceeded", 429};
    unfinished_ += job->unfinished;
    inbox_.push_back(job);
    wake_.notify_one();
    return job;
  }

  // Texts that can be submitted now and run at once; at least 1.
  size_t room() const {
    std::lock_guard lock(mutex_);
    const size_t all = places_ + queue_;
    return std::clamp<size_t>(all - std::min(all, unfinished_), 1, places_);
  }

  // Seconds after which a client that was refused should try again: an estimate.
  int retry_after() const {
    std::lock_guard lock(mutex_);
    const double all = mean_seconds_ * double(unfinished_) / double(places_) / 2;
    return int(std::max(1.0, std::min(60.0, std::ceil(all))));
  }

  // Accepts no more requests. Running ones continue, and waiting ones are cancelled.
  void drain() {
    std::lock_guard lock(mutex_);
    draining_ = true;
    wake_.notify_one();
  }
  bool draining() const {
    std::lock_guard lock(mutex_);
    return draining_;
  }
  bool idle() const {
    std::lock_guard lock(mutex_);
    return unfinished_ == 0;
  }

  WorkerFigures figures() const {
    std::lock_guard lock(mutex_);
    WorkerFigures f = figures_;
    f.waiting += inbox_.size();
    if (seconds() - rate_updated_ > 3) f.tokens_per_second = 0;
    return f;
  }

 private:
  static openai::Scheduler::Limits limits_of(const openai::ServedModel& model, const Arguments& a) {
    openai::Scheduler::Limits limits = model.limits();
    limits.kept = size_t(a.kept);
    return limits;
  }

  void run() try {
    while (true) {
      const bool busy = scheduler_.running() + scheduler_.waiting() > 0;
      if (!take_inbox(busy)) return;
      cancel_abandoned();
      scheduler_.step();
      publish();
    }
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "serve: out of memory; a smaller --memory, --ctx or --parallel needs less\n");
    std::_Exit(1);
  }

  // Starts new requests; waits for one if there is nothing to do. False at the end.
  bool take_inbox(bool busy) {
    std::vector<std::shared_ptr<Job>> arrived;
    {
      std::unique_lock lock(mutex_);
      if (!busy) wake_.wait(lock, [&] { return !inbox_.empty() || ended_; });
      if (ended_ && !busy && inbox_.empty()) return false;
      arrived.swap(inbox_);
      if (draining_) scheduler_.cancel_waiting();
    }
    for (const auto& job : arrived) {
      for (Generation& g : job->generations) {
        wrap(job, g);
        job->tickets.push_back(scheduler_.submit(std::move(g)));
      }
      job->generations.clear();
      jobs_.push_back(job);
    }
    return true;
  }

  // Adds the worker's own accounts to the callbacks.
  void wrap(const std::shared_ptr<Job>& job, Generation& g) {
    prompt_tokens_ += g.prompt.size();
    if (g.on_token)
      g.on_token = [this, on_token = std::move(g.on_token)](int id, const float* logits) {
        new_tokens_++;
        return on_token(id, logits);
      };
    g.on_end = [this, job, on_end = std::move(g.on_end)](openai::End end, const std::string& error) {
      if (end == openai::End::cancelled) cancelled_++;
      job->unfinished--;
      {
        std::lock_guard lock(mutex_);
        unfinished_--;
        mean_seconds_ += (seconds() - job->started - mean_seconds_) / 16;
      }
      on_end(end, error);  // after which the client's thread may close the socket
    };
  }

  // Cancels requests whose clients are gone.
  void cancel_abandoned() {
    jobs_.erase(std::remove_if(jobs_.begin(), jobs_.end(), [](const auto& job) { return job->unfinished == 0; }),
                jobs_.end());
    polled_.clear();
    for (const auto& job : jobs_) polled_.push_back({job->fd, POLLRDHUP, 0});
    if (polled_.empty() || ::poll(polled_.data(), polled_.size(), 0) < 0) return;
    for (size_t i = 0; i < jobs_.size(); i++)
      if (polled_[i].revents != 0 || jobs_[i]->cancelled)
        for (const auto ticket : jobs_[i]->tickets) scheduler_.cancel(ticket);
  }

  void publish() {
    const double now = seconds();
    std::lock_guard lock(mutex_);
    WorkerFigures& f = figures_;
    if (now - rate_updated_ >= 1) {
      f.tokens_per_second = now - rate_updated_ < 3 ? double(new_tokens_ - rate_tokens_) / (now - rate_updated_) : 0;
      rate_updated_ = now;
      rate_tokens_ = new_tokens_;
    }
    f.prompt_tokens = prompt_tokens_;
    f.reused_tokens = scheduler_.reused();
    f.new_tokens = new_tokens_;
    f.passes = scheduler_.passes();
    f.cancelled = cancelled_;
    f.running = scheduler_.running();
    f.waiting = scheduler_.waiting();
    f.kept = scheduler_.kept();
    f.reserved_bytes = scheduler_.reserved_bytes();
    f.kept_bytes = scheduler_.kept_bytes();
  }

  const size_t places_, queue_;
  const openai::Scheduler::Limits limits_;

  // Of the worker's thread.
  openai::Scheduler scheduler_;
  std::vector<std::shared_ptr<Job>> jobs_;
  std::vector<pollfd> polled_;  // of jobs_
  uint64_t prompt_tokens_ = 0, new_tokens_ = 0, cancelled_ = 0;

  mutable std::mutex mutex_;  // of all that follows
  std::condition_variable wake_;
  std::vector<std::shared_ptr<Job>> inbox_;
  size_t unfinished_ = 0;  // generations, in the inbox too
  bool draining_ = false, ended_ = false;
  double mean_seconds_ = 1;  // of a generation, from its submission
  WorkerFigures figures_;
  double rate_updated_ = seconds();
  uint64_t rate_tokens_ = 0;

  std::thread thread_;
};

}  // namespace pocket::server
