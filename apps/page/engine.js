// engine.js: the C interface of apps/c/pocketllama.h, compiled to WebAssembly, for JavaScript. Used by worker.js in the
// page and by the tests in node. It needs nothing of emscripten's JavaScript.
'use strict';

const MOST_MEMORY = 2 ** 32;    // bytes that a module can address
const ENGINE_BYTES = 32 << 20;  // of these for the engine and a short context

// An error of the engine, in words for the user.
class EngineError extends Error {}

// An instance of a module of pocketllama: its exports. own: what it imports beyond a clock, by name.
function instantiate(module, own = {}) {
  const imports = {};
  // What the C library would ask of a system is answered by "not supported": 52 is ENOSYS. The engine works without.
  for (const {module: from, name} of WebAssembly.Module.imports(module))
    (imports[from] ??= {})[name] = own[name] ?? (() => (name.startsWith('__syscall') ? -52 : 52));
  imports.wasi_snapshot_preview1.clock_time_get = (id, precision, result) => {
    const now = BigInt(Math.round(performance.now() * 1e6));
    new DataView(c.memory.buffer).setBigUint64(result >>> 0, now, true);
    return 0;
  };
  imports.wasi_snapshot_preview1.proc_exit = () => {
    throw new EngineError('The engine has stopped; reload the page.');
  };
  const c = new WebAssembly.Instance(module, imports).exports;
  return c;
}

class Engine {
  // module: a WebAssembly.Module of pocketllama. workers: for the threads of a module with threads (threads.js).
  constructor(module, workers = null) {
    this.workers = workers;
    this.c = instantiate(module, workers?.imports());
    if (workers) workers.c = this.c;
    this.c._initialize();
    this.result = this.c.malloc(64);  // for functions that store results
    this.model = this.session = 0;
  }

  // ---- Memory: it may move whenever the engine reserves more, so that no view may be kept ----
  view() { return new DataView(this.c.memory.buffer); }
  bytes(at, n) { return new Uint8Array(this.c.memory.buffer, at >>> 0, n); }
  text(at) {
    const all = new Uint8Array(this.c.memory.buffer);
    return new TextDecoder().decode(all.slice(at >>> 0, all.indexOf(0, at >>> 0)));  // a copy: it refuses shared memory
  }
  // Calls f with the address of a C string.
  withText(text, f) {
    const encoded = new TextEncoder().encode(text.replaceAll('\0', '') + '\0');
    const at = this.c.malloc(encoded.length) >>> 0;
    if (!at) throw new EngineError('out of memory');
    this.bytes(at, encoded.length).set(encoded);
    try {
      return f(at);
    } finally {
      this.c.free(at);
    }
  }
  // Throws the engine's error if a call has failed: its result is negative, or a null handle.
  check(result) {
    if (result < 0) throw new EngineError(this.text(this.c.pocket_error()));
    return result;
  }
  checkHandle(handle) {
    if (!handle) throw new EngineError(this.text(this.c.pocket_error()));
    return handle;
  }

  // Reserves memory for good, on a 64-byte boundary; 0: there is none. In parts, since sbrk() takes less than 2 GB.
  reserve(size) {
    const part = 1 << 30, start = this.c.sbrk(64);
    if (start === -1) return 0;
    for (let left = size; left > 0; left -= part)
      if (this.c.sbrk(Math.min(left, part)) === -1) return 0;
    return Math.ceil((start >>> 0) / 64) * 64;
  }

  // ---- Models ----

  // Reserves room for a model file of so many bytes; which `chunks`, an async iterable of Uint8Array,
  // fills, and opens it. Returns info().
  async open(size, chunks, progress = () => {}) {
    const room = size + ENGINE_BYTES <= MOST_MEMORY ? this.reserve(size) : 0;
    if (!room) throw new EngineError(outOfMemory(size));
    let filled = 0;
    for await (const chunk of chunks) {
      if (filled + chunk.length > size) break;
      this.bytes(room + filled, chunk.length).set(chunk);
      filled += chunk.length;
      progress(filled);
    }
    if (filled !== size) throw new EngineError('The file changed while it was read. Open it again.');
    this.size = size;
    this.model = this.checkHandle(this.c.pocket_model_open_memory(room, size));
    return this.info();
  }

  info() {
    const at = this.c.malloc(64) >>> 0;
    this.check(this.c.pocket_model_info(this.model, at));
    const v = this.view(), int = i => v.getInt32(at + 4 * i, true);
    const info = {vocabulary: int(0), context: int(1), dim: int(2), layers: int(4), chat: int(9) === 1,
                  provenance: this.text(v.getUint32(at + 56, true))};
    this.c.free(at);
    return info;
  }

  // Compares logits with the hash in the model file. Returns how many kernel sets gave the same bits; '' means all.
  selfTest(kernel = '') {
    return kernel ? this.withText(kernel, name => this.check(this.c.pocket_self_test(this.model, name)))
                  : this.check(this.c.pocket_self_test(this.model, 0));
  }

  // ---- The session ----

  // Starts a session with room for so many tokens.
  start(context) {
    if (this.session) this.c.pocket_session_free(this.session);
    const at = this.result >>> 0, v = this.view();
    const threads = 1 + (this.workers?.idle.length ?? 0);
    [context, threads, 0].forEach((value, i) => v.setInt32(at + 4 * i, value, true));  // int8 keys and values
    this.session = this.checkHandle(this.c.pocket_session_new(this.model, at));
  }
  threads() { return 1 + (this.workers?.running.size ?? 0); }  // of the session
  kernel() { return this.text(this.c.pocket_kernel(this.session)); }
  position() { return this.check(this.c.pocket_position(this.session)); }
  rewind(position) { this.check(this.c.pocket_rewind(this.session, position)); }
  // Stores the settings of a sampler; returns their address.
  stored({seed, temperature, top_p}) {
    const at = this.result >>> 0, v = this.view();
    v.setBigUint64(at, BigInt(seed), true);
    [temperature, top_p, 0, 1].forEach((value, i) => v.setFloat32(at + 8 + 4 * i, value, true));
    v.setInt32(at + 24, 0, true);
    return at;
  }
  sampling(options) { this.check(this.c.pocket_set_sampling(this.session, this.stored(options))); }
  // What happened inside the model in the tokens before position `end`: the data of apps/explain, as JSON. From position
  // `prompt` on they were chosen with these options. ended: because the model ended the text.
  explain(prompt, end, ended, options) {
    const at = this.c.pocket_page_explain(this.session, prompt, end, ended ? 1 : 0, this.stored(options));
    return this.text(this.checkHandle(at));
  }
  append(ids) {
    const at = this.c.malloc(4 * ids.length + 4) >>> 0, v = this.view();
    ids.forEach((id, i) => v.setInt32(at + 4 * i, id, true));
    const n = this.c.pocket_append(this.session, at, ids.length);
    this.c.free(at);
    return this.check(n);
  }
  appendText(text) { return this.withText(text, at => this.check(this.c.pocket_append_text(this.session, at))); }
  appendMessage(system, message) {
    return this.withText(system, s =>
      this.withText(message, m => this.check(this.c.pocket_append_message(this.session, s, m))));
  }
  // Processes at most n of the appended tokens; returns how many are left.
  process(n) { return this.check(this.c.pocket_process(this.session, n)); }
  // The logits of the last token, copied.
  logits() {
    const at = this.checkHandle(this.c.pocket_logits(this.session)) >>> 0;
    return new Float32Array(this.c.memory.buffer, at, this.info().vocabulary).slice();
  }
  // The next token: {text, end}.
  next() {
    const at = this.result >>> 0;
    const more = this.check(this.c.pocket_next(this.session, at, at + 4, at + 8));
    const v = this.view(), text = this.bytes(v.getUint32(at + 4, true), v.getUint32(at + 8, true));
    return {text: new TextDecoder().decode(text.slice()), end: more === 0};
  }
}

function outOfMemory(size) {
  return `This model takes ${megabytes(size)} of memory, ` + (size + ENGINE_BYTES > MOST_MEMORY
    ? 'but a page can use at most 4 GB. Use ./run, or a smaller model: export/convert has --type q4.'
    : 'which the browser does not have now. Close other tabs, above all those with a model, or use a smaller model.');
}
const megabytes = n => (n < 999.5e6 ? `${(n / 1e6).toFixed(n < 9.95e6 ? 1 : 0)} MB` : `${(n / 1e9).toFixed(1)} GB`);

// What a file that is no model seems to be, by its first bytes; '' for a model.
function wrongFormat(head) {
  const starts = (text, at = 0) => [...text].every((c, i) => head[at + i] === c.charCodeAt(0));
  if (starts('PKTLLAMA')) return '';
  const convert = 'Convert it first: export/convert';
  if (starts('GGUF')) return `This is a GGUF file. ${convert} FILE.gguf -o model.bin`;
  if (starts('PK\x03\x04')) return `This is a ZIP file, perhaps of PyTorch. ${convert} FILE -o model.bin`;
  if (head.length > 9 && head[8] === 123) return `This seems to be a safetensors file. ${convert} FOLDER -o model.bin`;
  return 'This is not a pocketllama model. models/get and export/convert make files that this page can open: model.bin';
}
