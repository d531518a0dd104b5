// worker.js: runs a model in a Web Worker, so that the page stays responsive. engine.js and threads.js come before it
// in the same script. Requests and replies are messages:
//
//   {check}                          a File that is to be opened
//     -> {checked}                   the File, if its format and size are right
//   {open, name, modules}            open: a File, or a gzip file's bytes of `size` bytes; modules: {relaxed, simd128},
//                                    before them `threads` if workers may share memory
//     -> {progress}                  0 to 1
//     -> {opened: {name, size, module, kernel, threads, notice, chat, instructions, context}}
//   {request, story: text, options}  request: a number, which replies repeat; options: {seed, temperature, top_p,
//                                    max_tokens}
//   {request, message: text, system, options}   the next turn of a chat
//   {forget: true}                   the chat starts again
//     -> {request, text}             a part of the reply, and last
//     -> {request, done: {tokens, seconds, threads, stopped, full}}
//   {inside: request}                what happened inside the model in the reply to this request
//     -> {request: inside, data}     for apps/explain/page.html, as JSON
//   {stop: true}                     ends the reply
//   -> {request, problem, opening}   in words for the user; the model remains usable if it was open
'use strict';

const CONTEXT = 4096;     // tokens of a session at most: it reserves all its memory at once
const PROMPT_PART = 32;   // tokens of a prompt between two looks for a stop
const SLICE_MS = 30;      // time between two looks

let engine = null, context = 0, stopped = false;
const replies = new Map();  // by request: where each is in the session, for `inside`

// Lets messages in.
const breathe = () => new Promise(resolve => {
  const channel = new MessageChannel();
  channel.port1.onmessage = () => {
    channel.port1.close();
    resolve();
  };
  channel.port2.postMessage(0);
});

async function* chunksOf(blob) {
  const step = 8 << 20;  // larger than a stream's, smaller than what doubles the memory of a model
  for (let at = 0; at < blob.size; at += step) yield new Uint8Array(await blob.slice(at, at + step).arrayBuffer());
}
async function* unpacked(bytes) {
  const reader = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip')).getReader();
  for (let part; !(part = await reader.read()).done;) yield part.value;
}

// The first module whose kernels are exact here: relaxed SIMD may round differently, which its kernel set checks. The
// result's `notice`: why there are no threads, if they could not be started.
async function firstExact(modules, open) {
  let notice = '';
  for (const [name, bytes] of Object.entries(modules)) {
    if (!WebAssembly.validate(bytes)) continue;
    const module = await WebAssembly.compile(bytes);
    let workers = null;
    if (name === 'threads') {
      const n = Math.min(navigator.hardwareConcurrency, MOST_THREADS);
      if (n < 2) continue;
      try {
        workers = await Threads.start(module, n - 1, () => new Worker(location.href, {name: 'thread'}));
      } catch (error) {
        notice = `one thread: ${error.message}`;
        continue;
      }
    }
    engine = new Engine(module, workers);
    const info = await open();
    startSession(Math.min(info.context, CONTEXT), engine.size);
    if (engine.kernel() !== 'scalar') return {...info, module: name, notice};
    workers?.stop();
    engine = null;
  }
  throw new EngineError('This browser cannot run the engine: it lacks WebAssembly SIMD or exceptions. Chrome 123, ' +
                        'Firefox 120, Safari 17.5 and later have both.');
}

// Refuses a file that cannot be opened for its format or size, by a look at its first bytes.
async function check(file) {
  const problem = wrongFormat(new Uint8Array(await file.slice(0, 16).arrayBuffer())) ||
                  (file.size + ENGINE_BYTES > MOST_MEMORY ? outOfMemory(file.size) : '');
  if (problem) throw new EngineError(problem);
  return file;
}

// With half of the context, and so on, if there is no memory for more.
function startSession(most, size) {
  for (context = most; ; context >>= 1) {
    try {
      return engine.start(context);
    } catch (error) {
      if (!error.message.includes('cannot reserve')) throw error;
      if (context < 512) throw new EngineError(outOfMemory(size));
    }
  }
}

async function open({open: source, name, size, modules}) {
  engine = null;
  const file = source instanceof Blob;
  if (file) size = (await check(source)).size;
  let last = 0;
  const progress = n => {
    if (performance.now() - last < 50) return;
    last = performance.now();
    postMessage({progress: n / size});
  };
  const info = await firstExact(modules, () => engine.open(size, file ? chunksOf(source) : unpacked(source), progress));
  engine.selfTest(engine.kernel());
  const instructions = `\n${info.provenance}`.includes('\nwrites on command: --words');
  return {name, size, module: info.module, kernel: engine.kernel(), threads: engine.threads(), notice: info.notice,
          chat: info.chat, instructions, context};
}

// Generates the reply to what was appended.
async function reply({request, options}) {
  stopped = false;
  engine.sampling(options);
  const prompt = engine.position();
  let ended = false;
  const waiting = [];
  let last = performance.now(), tokens = 0, full = false;
  const look = async () => {
    if (performance.now() - last < SLICE_MS) return;
    if (waiting.length) postMessage({request, text: waiting.splice(0).join('')});
    await breathe();
    last = performance.now();
  };
  for (let left = 1; left > 0 && !stopped; await look()) left = engine.process(PROMPT_PART);
  const started = performance.now();
  while (!stopped && tokens < options.max_tokens) {
    const {text, end} = engine.next();
    if (text) waiting.push(text);
    if (end) {
      full = engine.position() >= context;
      ended = !full;
      break;
    }
    tokens++;
    await look();
  }
  const seconds = (performance.now() - started) / 1000;
  if (waiting.length) postMessage({request, text: waiting.join('')});
  replies.set(request, [prompt, engine.position(), ended, options]);
  return {tokens, seconds, threads: engine.threads(), stopped, full};
}

async function answer(request) {
  if (request.check) return {checked: await check(request.check)};
  if (request.open) return {opened: await open(request)};
  if (request.inside) return {request: request.inside, data: engine.explain(...replies.get(request.inside))};
  if (request.forget || request.story !== undefined) {
    engine.rewind(0);
    replies.clear();
  }
  if (request.forget) return null;
  const before = engine.position();
  try {
    if (request.story !== undefined) engine.appendText(request.story);
    else engine.appendMessage(request.system, request.message);
    return {request: request.request, done: await reply(request)};
  } catch (error) {
    engine.rewind(before);
    if (!error.message.includes('context has room')) throw error;
    throw new EngineError(`The model takes ${context} tokens in all. ` +
                          (before > 0 ? 'Start a new chat, or shorten the message.' : 'Shorten the text.'));
  }
}

let queue = Promise.resolve();  // one request after the other
onmessage = ({data}) => {
  if (self.name === 'thread') return runThread(data, postMessage);  // in the worker of a thread
  if (data.stop) {
    stopped = true;
    return;
  }
  queue = queue.then(() => answer(data)).then(
    result => { if (result) postMessage(result); },
    error => postMessage({request: data.request, inside: data.inside, opening: Boolean(data.open),
                          problem: inWords(error, data.name ?? data.check?.name)}));
};

// file: the name of the one that was to be opened, if any.
function inWords(error, file) {
  if (error instanceof EngineError) {
    const text = error.message.replace(/^memory: /, '') + (/[.!?]$/.test(error.message) ? '' : '.');
    const next = /damaged|truncated/.test(text) ? ' Copy, download or convert it again.' : '';
    return file ? `${file}: ${text}${next}` : text[0].toUpperCase() + text.slice(1);
  }
  if (error instanceof RangeError)
    return 'The browser has no memory left for this. Close other tabs, or use a smaller model.';
  if (error.name === 'NotReadableError' || error.name === 'NotFoundError')
    return `${file}: The file cannot be read. Was it moved or deleted? Open it again.`;
  return `The engine has failed (${error.message}). Reload the page; if it happens again, please report it.`;
}
