// stream.hpp: a reply as server-sent events.
#pragma once

#include "http_server.hpp"
#include "reply.hpp"
#include "worker.hpp"

namespace pocket::server {

inline std::string event(const OrderedJson& body) { return "data: " + openai::to_line(body) + "\n\n"; }

// Counts open streams, this one from its construction to its destruction.
class CountedStream {
 public:
  explicit CountedStream(std::atomic<int>& open) : open_(open) { open_++; }
  ~CountedStream() { open_--; }
  CountedStream(const CountedStream&) = delete;

 private:
  std::atomic<int>& open_;
};

// Writes a reply while it is generated. It ends when the reply does, or the client is gone.
class EventStream {
 public:
  // finished: receives the reply before its last event.
  EventStream(std::unique_ptr<CountedStream> counted, std::shared_ptr<Reply> reply, std::shared_ptr<Worker::Job> job,
              const Tokenizer& tokenizer, std::function<void(const Reply&)> finished)
      : counted_(std::move(counted)),
        reply_(std::move(reply)),
        job_(std::move(job)),
        tokenizer_(tokenizer),
        finished_(std::move(finished)) {}
  // The worker looks at the client's socket until all has ended.
  ~EventStream() {
    job_->cancelled = true;
    try {
      reply_->wait();
    } catch (const Refusal&) {
    }
  }
  EventStream(const EventStream&) = delete;

  // Writes the next events. False if the client is gone.
  bool write(httplib::DataSink& sink) {
    std::string events;
    bool last = false;
    try {
      const std::deque<Delta> deltas = reply_->next();
      for (const Delta& d : deltas) events += event(openai::delta_body(reply_->info, reply_->request, tokenizer_, d));
      last = deltas.empty();
      if (last) finished_(*reply_);
      if (last && reply_->request.include_usage)
        events += event(openai::usage_body(reply_->info, reply_->request, reply_->generated()));
    } catch (const Refusal& refusal) {
      events = event(openai::error_body(refusal));
      last = true;
    }
    if (last) events += "data: [DONE]\n\n";
    if (!sink.write(events.data(), events.size())) return false;
    if (last) sink.done();
    return true;
  }

 private:
  const std::unique_ptr<CountedStream> counted_;
  std::shared_ptr<Reply> reply_;
  std::shared_ptr<Worker::Job> job_;
  const Tokenizer& tokenizer_;
  const std::function<void(const Reply&)> finished_;
};

// Makes a response the stream of a reply.
inline void send_stream(const httplib::Request& request, httplib::Response& response,
                        std::shared_ptr<EventStream> stream) {
  response.status = 200;
  response.set_header("Cache-Control", "no-cache");
  response.set_header("X-Accel-Buffering", "no");  // nginx
  const auto write = [stream](size_t, httplib::DataSink& sink) { return stream->write(sink); };
  if (request.version != "HTTP/1.0") return response.set_chunked_content_provider("text/event-stream", write);
  HttpServer::connection().must_close = true;  // which is the end of the response
  response.set_content_provider("text/event-stream", write);
}

}  // namespace pocket::server
