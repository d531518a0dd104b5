// service.hpp: the server as a whole: its routes, who may use them, and its end.
#pragma once

#include <malloc.h>

#include <ctime>
#include <random>

#include "access.hpp"
#include "grammars.hpp"
#include "inside.hpp"
#include "metrics.hpp"
#include "page.hpp"
#include "stream.hpp"
#include "texts.hpp"

namespace pocket::server {

class Service {
 public:
  // Throws Failure.
  explicit Service(const Arguments& a)
      : args_(a),
        keys_(a.api_keys.empty() ? ApiKeys() : ApiKeys::read(a.api_keys)),
        origins_(a.allow_host, a.allow_origin),
        model_(a),
        worker_(model_, a),
        http_(a.connections),
        embeddings_(model_, worker_),
        inside_(model_, worker_) {
    if (!is_loopback(address_name()) && keys_.empty())
      throw Failure{2, "--host " + a.host + ": other machines can reach this address; protect it with --api-keys FILE"};
    std::random_device random;
    next_id_ = uint64_t(random()) << 32 | random();
    add_routes();
    add_rules();
  }

  // Serves until SIGINT or SIGTERM. Throws Failure.
  void run() {
#ifdef M_ARENA_MAX
    mallopt(M_ARENA_MAX, 4);  // of glibc, which gives each of many threads memory of its own, and seldom returns it
    mallopt(M_MMAP_THRESHOLD, 1 << 20);  // larger blocks return to the system when they are freed
#endif
    const int port = http_.bind(args_.host, args_.port);
    if (port < 0)
      throw Failure{1, "--host " + args_.host + " --port " + std::to_string(args_.port) + ": " +
                           (errno ? std::strerror(errno) : "not an address of this machine")};
    std::signal(SIGTERM, on_interrupt);
    std::fprintf(stderr, "serve: %s, context %d tokens, %d replies at once, %.0f MB for keys and values\n",
                 model_.name.c_str(), model_.context(), args_.parallel, double(worker_.figures().limit_bytes) / 1e6);
    std::fprintf(stderr, "serve: listening on http://%s:%d\n", address_name().c_str(), port);
    std::thread end([this] { end_after_signal(); });
    const bool good = http_.listen_after_bind();
    ended_ = true;
    end.join();
    if (!good && !interrupted) throw Failure{1, std::string("listen: ") + std::strerror(errno)};
  }

 private:
  using HttpRequest = httplib::Request;
  using HttpResponse = httplib::Response;
  using Handler = void (Service::*)(const HttpRequest&, HttpResponse&);

  // The address as it is in a URL.
  std::string address_name() const {
    return args_.host.find(':') == std::string::npos ? args_.host : "[" + args_.host + "]";
  }

  // ---- The end ----

  // After a signal: running replies end and their streams are written, new ones get 503, then the server stops.
  void end_after_signal() {
    const auto sleep = [] { std::this_thread::sleep_for(std::chrono::milliseconds(20)); };
    while (!interrupted && !ended_) sleep();
    const auto busy = [this] { return !worker_.idle() || streams_ > 0; };
    if (!ended_ && busy())
      std::fprintf(stderr, "serve: ends after the running replies; press Ctrl-C again to end at once\n");
    worker_.drain();
    while (busy()) sleep();
    http_.end();
  }

  // ---- Rules for all requests ----

  void add_rules() {
    using Response = httplib::Server::HandlerResponse;
    http_.set_pre_routing_handler([this](const HttpRequest& request, HttpResponse& response) {
      try {
        HttpServer::check_body(request, http_.limits);
        check_access(request);
        if (request.method != "OPTIONS") return Response::Unhandled;
        response.status = 204;
      } catch (const Refusal& refusal) {
        send_refusal(response, refusal);
      }
      return Response::Handled;
    });
    http_.set_post_routing_handler([this](const HttpRequest& request, HttpResponse& response) {
      response.set_header("X-Content-Type-Options", "nosniff");
      response.headers.erase("Accept-Ranges");  // which the library sets for HEAD
      if (response.status == 204) response.headers.erase("Content-Length");
      if (HttpServer::connection().must_close) {
        response.headers.erase("Keep-Alive");
        response.headers.erase("Connection");
        response.set_header("Connection", "close");
      }
      const std::string origin = request.get_header_value("Origin");
      if (!origins_.is_foreign_but_allowed(origin)) return;
      response.set_header("Access-Control-Allow-Origin", origin);
      response.set_header("Vary", "Origin");
      if (request.method != "OPTIONS") return;
      response.set_header("Access-Control-Allow-Methods", "GET, POST");
      const std::string wanted = request.get_header_value("Access-Control-Request-Headers");
      response.set_header("Access-Control-Allow-Headers",
                          is_list_of_names(wanted) ? wanted : "Authorization, Content-Type");
    });
    http_.set_exception_handler([](const HttpRequest&, HttpResponse& response, std::exception_ptr) {
      send_refusal(response, {"the request needs more memory than there is", "", "out_of_memory", 503});
    });
    http_.set_logger([this](const HttpRequest& request, const HttpResponse& response) { log(request, response); });
  }

  // Throws Refusal.
  void check_access(const HttpRequest& request) const {
    const std::string host = request.get_header_value("Host"), origin = request.get_header_value("Origin");
    if (!(host.empty() && request.version == "HTTP/1.0") && !origins_.accept_host(host))
      throw Refusal{"Host: '" + host.substr(0, 80) + "' is not a name of this server; --allow-host adds names", "",
                    "host_not_allowed", 403};
    if (!origins_.accept_origin(origin, host))
      throw Refusal{
          "Origin: pages of '" + origin.substr(0, 80) + "' may not use this server; --allow-origin adds origins", "",
          "origin_not_allowed", 403};
    const bool open = request.path == "/" || request.path == "/health" || request.method == "OPTIONS" ||
                      (request.path == "/explain" && request.method == "GET");
    if (!open && !keys_.accept(request.get_header_value("Authorization")))
      throw Refusal{"expected an API key of this server: Authorization: Bearer KEY", "", "invalid_api_key", 401};
  }

  void log(const HttpRequest& request, const HttpResponse& response) {
    requests_.add(response.status);
    if (args_.quiet || request.path == "/health" || request.path == "/metrics") return;
    char time[32];
    const std::time_t now = std::time(nullptr);
    std::tm parts = {};
    std::strftime(time, sizeof time, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &parts));
    const Connection& c = HttpServer::connection();
    char line[256];
    std::snprintf(line, sizeof line, " %d, %.3f s%s", response.status, c.elapsed(), c.note.c_str());
    print_message(time, request.remote_addr + " " + request.method + " " + request.path.substr(0, 80) + line);
  }

  // ---- Routes ----

  void add_routes() {
    get("/", &Service::send_page);
    get("/explain", &Service::send_inside_page);
    get("/health", &Service::send_health);
    get("/metrics", &Service::send_metrics);
    get("/v1/models", &Service::send_models);
    get("/v1/models/" + in_pattern(model_.name), &Service::send_model);
    get("/tokenizer_info", &Service::send_tokenizer_info);
    post("/v1/chat/completions", &Service::complete_chat);
    post("/v1/completions", &Service::complete_text);
    post("/v1/embeddings", &Service::embed);
    post("/explain", &Service::explain);
    post("/tokenize", &Service::send_tokens);
    post("/detokenize", &Service::send_text);
  }

  // A text as a regular expression.
  static std::string in_pattern(const std::string& text) {
    std::string out;
    for (const char c : text) out += std::isalnum(uint8_t(c)) ? std::string{c} : std::string("\\") + c;
    return out;
  }

  void get(const std::string& path, Handler handler) { http_.Get(path, handled(handler)); }
  void post(const std::string& path, Handler handler) { http_.Post(path, handled(handler)); }

  httplib::Server::Handler handled(Handler handler) {
    return [this, handler](const HttpRequest& request, HttpResponse& response) {
      try {
        (this->*handler)(request, response);
      } catch (Refusal refusal) {
        const bool cancelled = refusal.status == 503 && !worker_.draining();
        if (cancelled && has_hung_up(HttpServer::connection().fd()))
          refusal = {"the client has hung up", "", "client_closed_request", 499};  // nginx's status, for the log
        send_refusal(response, refusal);
        if (refusal.status == 429 || refusal.status == 503)
          response.set_header("Retry-After", std::to_string(worker_.retry_after()));
      }
    };
  }

  void send_page(const HttpRequest&, HttpResponse& response) {
    std::random_device random;
    std::string nonce;
    for (int i = 0; i < 2; i++) nonce += openai::hex(uint64_t(random()) << 32 | random());
    send_html(response, page(nonce), page_policy(nonce));
  }
  // The page of --explain without data, which the chat page shows in a panel.
  void send_inside_page(const HttpRequest&, HttpResponse& response) {
    send_html(response, explain::page_with("null", explain::random_nonce()), kInsidePolicy);
  }
  static void send_html(HttpResponse& response, const std::string& html, const std::string& policy) {
    response.set_content(html, "text/html; charset=utf-8");
    response.set_header("Cache-Control", "no-store");
    response.set_header("Referrer-Policy", "no-referrer");
    response.set_header("Content-Security-Policy", policy);
  }

  void send_health(const HttpRequest&, HttpResponse& response) {
    if (worker_.draining()) throw Refusal{"the server is shutting down", "", "shutting_down", 503};
    send_json(response, {{"status", "ok"}});
  }

  void send_metrics(const HttpRequest&, HttpResponse& response) {
    response.set_content(
        metrics_text(worker_.figures(), requests_, http_.connections(), model_.llama.model.bytes_per_token),
        "text/plain; version=0.0.4");
  }

  OrderedJson model_json() const {
    return {{"id", model_.name},
            {"object", "model"},
            {"created", started_},
            {"owned_by", "pocketllama"},
            {"max_model_len", model_.context()}};
  }
  void send_models(const HttpRequest&, HttpResponse& response) {
    OrderedJson models = OrderedJson::array();
    models.push_back(model_json());
    send_json(response, {{"object", "list"}, {"data", std::move(models)}});
  }
  void send_model(const HttpRequest&, HttpResponse& response) { send_json(response, model_json()); }

  // The body of a request. Large ones are parsed one at a time, because JSON takes many times the memory of its text.
  // `use` must not wait for the worker.
  template <class Use> auto with_json(const HttpRequest& request, const Use& use) {
    constexpr size_t kLarge = 64 << 10;
    std::unique_lock lock(large_, std::defer_lock);
    if (request.body.size() > kLarge) lock.lock();
    if (args_.log_prompts) print_message("serve: request", request.body);
    const Json body = openai::parse_json(request.body);
    if (body.is_object()) model_.check_model(body);
    return use(body);
  }

  void send_tokenizer_info(const HttpRequest&, HttpResponse& response) { send_json(response, tokenizer_info(model_)); }
  void send_tokens(const HttpRequest& request, HttpResponse& response) {
    send_json(response, with_json(request, [&](const Json& body) { return tokenize(model_, body, request.body); }));
  }
  void send_text(const HttpRequest& request, HttpResponse& response) {
    send_json(response, with_json(request, [&](const Json& body) { return detokenize(model_, body); }));
  }
  void embed(const HttpRequest& request, HttpResponse& response) {
    const Embeddings::Task task = with_json(request, [&](const Json& body) { return embeddings_.read(body); });
    send_json(response, embeddings_.reply(task, HttpServer::connection().fd()));
  }

  // The data of the page of --explain, for the reply to a request of the endpoint of its `messages`, or `prompt`.
  void explain(const HttpRequest& request, HttpResponse& response) {
    const openai::Request parsed = with_json(request, [&](const Json& body) {
      const bool chat = body.is_object() && body.contains("messages");
      return openai::RequestParser::parse(chat ? openai::Endpoint::chat : openai::Endpoint::text, body,
                                          openai::Service::server, request.body, model_.tool_format);
    });
    response.set_content(inside_.data(parsed, HttpServer::connection().fd()) + "\n", kJsonType);
  }

  // ---- Completions ----

  void complete_chat(const HttpRequest& request, HttpResponse& response) {
    complete(openai::Endpoint::chat, request, response);
  }
  void complete_text(const HttpRequest& request, HttpResponse& response) {
    complete(openai::Endpoint::text, request, response);
  }

  void complete(openai::Endpoint endpoint, const HttpRequest& request, HttpResponse& response) {
    openai::Request parsed = with_json(request, [&](const Json& body) {
      return openai::RequestParser::parse(endpoint, body, openai::Service::server, request.body, model_.tool_format);
    });
    worker_.check_size(parsed);
    std::random_device random;
    if (!parsed.has_seed) parsed.sampling.seed = random();  // 32 bits, which every JSON reader can hold
    const auto reply = std::make_shared<Reply>(std::move(parsed), model_, HttpServer::connection().fd());
    reply->info = {openai::hex(next_id_++), model_.name,        fingerprint_,
                   reply->prompt_tokens(),  std::time(nullptr), reply->request.sampling.seed};
    std::unique_ptr<CountedStream> stream;  // counted before its reply can end
    if (reply->request.stream) stream = std::make_unique<CountedStream>(streams_);
    const auto job = start(reply);
    if (stream)
      return send_stream(request, response,
                         std::make_shared<EventStream>(std::move(stream), reply, job, model_.llama.tokenizer(),
                                                       [this](const Reply& r) { note(r); }));
    reply->wait();
    note(*reply);
    send_json(response, openai::response_body(reply->info, reply->completions()));
  }

  // For the log: what a finished reply was.
  void note(const Reply& reply) const {
    HttpServer::connection().note =
        ", prompt " + std::to_string(reply.prompt_tokens()) + ", new " + std::to_string(reply.generated()) + " tokens";
    if (!args_.log_prompts) return;
    for (const Completion* completion : reply.completions()) {
      print_message("serve: reply", completion->text());
      for (const openai::ToolCall& call : completion->calls())
        print_message("serve: call", call.name + " " + call.arguments);
    }
  }

  // Hands a request to the worker. Throws Refusal.
  std::shared_ptr<Worker::Job> start(const std::shared_ptr<Reply>& reply) {
    std::vector<Generation> generations;
    const int vocab_size = model_.llama.vocab_size();
    const std::shared_ptr<TokenGrammar> grammar = grammars_.find(reply->request);
    for (size_t i = 0; i < reply->choices(); i++) {
      Generation g = model_.generation(reply->request, reply->prompt(i), int(i) % reply->request.choices);
      if (grammar) g.constraint.emplace(grammar, g.stop_ids, reply->completion(i).at_start());
      g.on_token = [reply, i, vocab_size](int id, const float* logits) {
        reply->add(i, reply->completion(i).push(id, logits, vocab_size));
        return !reply->completion(i).ended();
      };
      g.on_end = [reply, i](openai::End end, const std::string& error) { reply->end(i, end, error); };
      if (reply->completion(i).wants_prompt())
        g.on_prompt = [reply, i, vocab_size](size_t position, const float* logits) {
          const std::vector<int>& prompt = reply->prompt(i);
          if (position + 1 < prompt.size()) reply->completion(i).push_prompt(prompt[position + 1], logits, vocab_size);
        };
      generations.push_back(std::move(g));
    }
    return worker_.submit(std::move(generations), reply->fd);
  }

  const Arguments args_;
  const ApiKeys keys_;
  const Origins origins_;
  openai::ServedModel model_;
  const std::string fingerprint_ = "fp_" + openai::hex(model_.settings_hash());
  Worker worker_;
  HttpServer http_;
  Embeddings embeddings_;
  Inside inside_;
  Grammars grammars_{model_.llama};
  RequestCounter requests_;
  std::mutex large_;  // held while a large body is parsed
  std::atomic<uint64_t> next_id_;
  std::atomic<bool> ended_{false};
  std::atomic<int> streams_{0};  // that are open
  const std::time_t started_ = std::time(nullptr);
};

}  // namespace pocket::server
