/* pocketllama.h: language models on a CPU, for C99 and for any language that can call C.
 *
 *     pocket_model *model = pocket_model_open("model.bin", 0);
 *     pocket_session *session = pocket_session_new(model, NULL);
 *     if (!session || pocket_append_text(session, "Once upon a time") < 0 ||
 *         pocket_generate(session, 100, print, NULL) < 0)
 *       fprintf(stderr, "%s\n", pocket_error());
 *     pocket_session_free(session);
 *     pocket_model_free(model);
 *
 * Errors. A function that fails returns NULL or a negative number, and pocket_error() has the reason. A null handle
 * makes a function fail and keeps the reason of the failure before, so that a chain of calls may be checked once, as
 * above.
 *
 * Ownership. Each pocket_..._new..., _open and _fork has its _free, which accepts NULL. A session keeps its model and
 * its adapters open, and an adapter its model, so that they may be freed in any order. The library copies all texts,
 * ids and structures that it receives. Texts are UTF-8.
 *
 * Threads. Any number of threads may use a model or an adapter, and free it when none uses it. A session belongs to one
 * thread at a time, except for pocket_cancel(). Sessions that use the same model at the same time do not affect each
 * other.
 *
 * The same model, tokens, options and seed give the same text on every machine, for any number of threads.
 */
#ifndef POCKETLLAMA_H
#define POCKETLLAMA_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define POCKET_API __attribute__((visibility("default")))
#else
#define POCKET_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this interface. It changes with every function, structure or meaning that is not compatible. */
#define POCKET_API_VERSION 1

/* Returns the POCKET_API_VERSION that the library was built with. A program that loads it at run time compares them. */
POCKET_API int pocket_api_version(void);

/* Returns why the last call of this thread that failed did so: one line of text, "" if none has failed yet. Valid until
 * the next call that fails in this thread. */
POCKET_API const char* pocket_error(void);

/* ---- Models ---- */

typedef struct pocket_model pocket_model; /* an open model file */

/* A flag of pocket_model_open(): reads the file into memory instead of mapping it. A mapped file must not change while
 * the model is open: the process gets SIGBUS if it is truncated. */
#define POCKET_COPY 1

/* Opens a model file, and checks all of it but the values of the weights. flags: 0 or POCKET_COPY. Returns NULL if the
 * file cannot be read, is damaged, or is no model of the Llama architecture; the error names the file and the field. */
POCKET_API pocket_model* pocket_model_open(const char* path, unsigned flags);

/* The same for the contents of a model file in memory, on a 64-byte boundary. The model uses them in place: the caller
 * keeps them unchanged until the model is closed, and frees them. */
POCKET_API pocket_model* pocket_model_open_memory(const void* data, size_t bytes);

/* Gives up the caller's reference. The model is closed when its last session is freed. */
POCKET_API void pocket_model_free(pocket_model* model);

typedef struct pocket_info {
  int32_t vocab_size;     /* tokens; ids are 0 to vocab_size - 1 */
  int32_t context;        /* tokens that the model was trained for; the default context of a session */
  int32_t dim;            /* width of the residual stream */
  int32_t hidden_dim;     /* width inside the feed-forward block */
  int32_t layers;         /* transformer blocks */
  int32_t heads;          /* query heads */
  int32_t kv_heads;       /* key/value heads */
  int32_t head_dim;       /* width of one head */
  int32_t bos;            /* id of the token that starts a text; -1: none */
  int32_t has_chat;       /* 1: the model has a chat template, which pocket_append_message() requires */
  uint64_t file_bytes;    /* size of the model file */
  uint64_t checksum;      /* identifies the model */
  const char* provenance; /* lines of text: source, licence, quantization; valid as long as the model */
} pocket_info;

/* Describes a model. Returns 0, or -1 on failure. */
POCKET_API int pocket_model_info(const pocket_model* model, pocket_info* info);

/* Compares the logits of the tokens that a model file has for this purpose with the hash in the file. kernel: a kernel
 * set of this CPU, such as "avx2" or "scalar"; NULL: each of them. Returns how many sets gave the same bits, 0 if there
 * is no such set or no self-test in the file, or -1 on failure: other bits, or out of memory. */
POCKET_API int pocket_self_test(const pocket_model* model, const char* kernel);

/* Encodes a text. bos: 1 adds the token that starts a text, if the model uses one. The text of a control token becomes
 * ordinary tokens. Stores the first `capacity` ids; ids may be NULL if capacity is 0. Returns the number of all ids,
 * which may be more, or -1 on failure. */
POCKET_API int pocket_encode(const pocket_model* model, const char* text, int bos, int32_t* ids, int capacity);

/* Decodes n tokens as a text of their own. Control tokens have no text. Stores the first `capacity` bytes, without a
 * terminating zero; text may be NULL if capacity is 0. Returns the number of all bytes, which may be more, or -1 on
 * failure. */
POCKET_API int64_t pocket_decode(const pocket_model* model, const int32_t* ids, int n, char* text, size_t capacity);

/* ---- Adapters: changes of a model, of low rank (LoRA) ----
 *
 *     pocket_scaled_adapter pirate = {pocket_adapter_open(model, "pirate"), 0.5};
 *     pocket_session *session = pocket_session_new_with_adapters(model, NULL, &pirate, 1);
 *     pocket_adapter_free(pirate.adapter);
 *
 * The text is that of ./run --lora pirate:0.5. Sessions over one model may have different adapters.
 */

typedef struct pocket_adapter pocket_adapter; /* an open adapter of a model */

/* Opens a LoRA adapter, and checks that it is valid and fits the model. folder: adapter_config.json with
 * adapter_model.safetensors or .bin, as PEFT and models/train save them. The files stay open and must not change; they
 * may be deleted. Returns NULL on failure; the error names the file and the field. */
POCKET_API pocket_adapter* pocket_adapter_open(pocket_model* model, const char* folder);

/* Gives up the caller's reference. Sessions keep what they use. No thread may be using the handle. */
POCKET_API void pocket_adapter_free(pocket_adapter* adapter);

/* ---- Sessions: texts in progress ----
 *
 * A session is a list of tokens and what the model keeps of them, the KV cache. Functions append tokens, which are
 * processed when logits are needed.
 */

typedef struct pocket_session pocket_session;

/* Zero means the default. */
typedef struct pocket_options {
  int32_t context; /* tokens that the session has room for; 0: as many as the model was trained for */
  int32_t threads; /* 0: one per CPU */
  int32_t kv_f32;  /* 1: keys and values as float32; 0: int8, unless the weights are float32 */
} pocket_options;

/* Starts an empty session. options: NULL for the defaults. Memory is used as the context fills. Returns NULL on
 * failure: an option out of range, or out of memory. */
POCKET_API pocket_session* pocket_session_new(pocket_model* model, const pocket_options* options);

/* An adapter times a factor: 1 is as trained, 0 has no effect. */
typedef struct pocket_scaled_adapter {
  pocket_adapter* adapter;
  double scale; /* finite */
} pocket_scaled_adapter;

/* Starts an empty session of the model with n adapters, which apply to all of its tokens and cannot be changed. Their
 * effects add up. The session holds references to them; the array may be freed. Sessions with the same adapter and
 * scale share its memory. n <= 0: none, as pocket_session_new(). Returns NULL on failure; also if an adapter is NULL or
 * was opened by another handle of the model's file, if a scale is not finite, or if the ranks of the adapters, each
 * rounded up to a multiple of 16, are more than 1024 for a matrix. */
POCKET_API pocket_session* pocket_session_new_with_adapters(pocket_model* model, const pocket_options* options,
                                                            const pocket_scaled_adapter* adapters, int n);

/* Returns an independent copy of a session: its tokens, KV cache, adapters and sampling state. NULL on failure. */
POCKET_API pocket_session* pocket_session_fork(const pocket_session* session);

/* Frees a session. No thread may be using it. */
POCKET_API void pocket_session_free(pocket_session* session);

/* How tokens are chosen. POCKET_SAMPLING initializes it with the defaults, which every session starts with. */
typedef struct pocket_sampling {
  uint64_t seed;        /* of the random numbers */
  float temperature;    /* 0: always the most likely token; 1: as trained */
  float top_p;          /* only the likeliest tokens that together hold this much probability; 1: all */
  float min_p;          /* only tokens at least this likely, relative to the most likely one; 0: all */
  float repeat_penalty; /* logits of the last 64 tokens are divided by it (multiplied if negative); 1: unchanged */
  int32_t top_k;        /* only the k most likely tokens; 0: all */
} pocket_sampling;
#define POCKET_SAMPLING \
  { 0, 0.8f, 0.9f, 0.0f, 1.0f, 0 }

/* Chooses tokens by these options from now on, starting from their seed. sampling: NULL for the defaults. Returns 0, or
 * -1 if a value is out of range. */
POCKET_API int pocket_set_sampling(pocket_session* session, const pocket_sampling* sampling);

/* Appends n tokens. Returns the number of tokens of the session, or -1 on failure: an id outside the vocabulary, or
 * more tokens than the context has room for. Nothing is appended then. */
POCKET_API int pocket_append(pocket_session* session, const int32_t* ids, int n);

/* Encodes and appends a text; at the start of the session with the token that starts a text, if the model uses one.
 * Returns as pocket_append(). */
POCKET_API int pocket_append_text(pocket_session* session, const char* text);

/* Appends a turn of a chat by the model's template: the end of the last reply, the message, and the beginning of the
 * next reply, which pocket_generate() writes. The first turn of a session includes the system prompt (NULL or "": that
 * of the template, if it has one); later turns ignore it. Returns as pocket_append(); fails also if the model has no
 * chat template, or if the template does not take the system prompt. */
POCKET_API int pocket_append_message(pocket_session* session, const char* system, const char* message);

/* Processes at most n of the appended tokens; n <= 0: all. Not required: it divides the time that a long text takes, to
 * show progress or to stop in between. Returns the number of tokens still to be processed, or -1 on failure. */
POCKET_API int pocket_process(pocket_session* session, int n);

/* Processes the appended tokens. Returns the logits of the last token of the session, (vocab_size,): a score for each
 * token that may come next. They belong to the session and are valid until the next call with it. NULL on failure: an
 * empty session, out of memory, cancelled, or a text that ended with a full context, which has no room for its last
 * token. The tokens remain appended. */
POCKET_API const float* pocket_logits(pocket_session* session);

/* Generates one token and appends it. Stores the token, and its text: whole UTF-8 characters, not terminated by a zero
 * and valid until the next call with the session. It is empty while a character is incomplete. An empty session starts
 * from the token that starts a text. Returns 1; 0 at the end of the text, which is a stop token of the model, not
 * appended, or a full context: id is -1 then, and the text the rest of an incomplete character; -1 on failure: out of
 * memory, cancelled, an empty session of a model without a token that starts a text. */
POCKET_API int pocket_next(pocket_session* session, int32_t* id, const char** text, size_t* bytes);

/* Receives what pocket_next() stores. Returns 0 to continue, or another number to stop. It must return, not jump, and
 * may use this session only to call pocket_cancel() and pocket_position(). */
typedef int (*pocket_on_text)(const char* text, size_t bytes, int32_t id, void* user);

/* Calls pocket_next() up to n times; n <= 0: until the end of the text. on_text may be NULL. `user` is passed to it.
 * Returns the number of new tokens, or -1 on failure, after which the tokens so far remain. Several calls give the same
 * text as one. */
POCKET_API int pocket_generate(pocket_session* session, int n, pocket_on_text on_text, void* user);

/* Returns the name of the kernel set that a session uses, the fastest of this CPU: "avx2", "scalar", ... It is a constant.
 * "" on failure. */
POCKET_API const char* pocket_kernel(const pocket_session* session);

/* Returns the number of tokens of the session, or -1 on failure. */
POCKET_API int pocket_position(const pocket_session* session);

/* Forgets all tokens but the first `position`. 0: also returns the memory of the KV cache to the system. Returns the
 * number of tokens of the session, or -1 on failure. */
POCKET_API int pocket_rewind(pocket_session* session, int position);

/* Makes the running, or else the next, pocket_process(), pocket_logits() or pocket_generate() fail with the error
 * "cancelled" within a fraction of the time of a token. May be called by any thread and by a signal handler while the
 * session exists. The next call continues where the cancelled one ended; it repeats at most 128 tokens. */
POCKET_API void pocket_cancel(pocket_session* session);

#ifdef __cplusplus
}
#endif

#endif /* POCKETLLAMA_H */
