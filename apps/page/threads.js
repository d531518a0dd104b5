// threads.js: threads for the module that is built with them, where a page may share memory. Each thread is a worker
// with an instance of its own of the module, and the same memory. The engine calls pthread_create as anywhere; here are
// the functions that the C library imports for it. Comes after engine.js in the same script, in the worker of the model
// and in the workers of its threads.
'use strict';

const MOST_THREADS = 8;         // more than a small model has work for
const THREAD_STACK = 1 << 20;   // bytes, as in the Makefile for the first thread
const FIRST_MEMORY = 4 << 20;   // bytes, as in the Makefile
const WORKER_START_MS = 20000;  // at most
const EAGAIN = 6;               // of the C library: no more threads

class Threads {
  // Starts n workers, for threads besides the first one. makeWorker(): a new worker, whose messages go to runThread().
  // Throws if there is no shared memory, or if a worker does not start.
  static async start(module, n, makeWorker) {
    const memory = new WebAssembly.Memory({initial: FIRST_MEMORY / 65536, maximum: MOST_MEMORY / 65536, shared: true});
    const threads = new Threads();
    const ready = worker => new Promise((resolve, reject) => {
      worker.onmessage = ({data}) => (data.ready ? resolve() : reject(new Error(data.problem)));
      worker.onerror = event => {
        event.preventDefault?.();  // not to the console
        reject(new Error(event.message ?? 'a worker cannot be started'));
      };
      setTimeout(() => reject(new Error('a worker does not start')), WORKER_START_MS);
      worker.postMessage({module, memory});
    });
    try {
      for (let i = 0; i < n; i++) threads.idle.push(makeWorker());
      await Promise.all(threads.idle.map(ready));
    } catch (error) {
      threads.stop();
      throw error;
    }
    threads.memory = memory;
    return threads;
  }

  memory = null;
  c = null;             // the exports of the first thread's instance, which must be set before it runs
  idle = [];            // workers without a thread
  running = new Map();  // workers with one, by its address
  stacks = new Map();   // by worker

  // What the first thread's instance imports.
  imports() {
    return {
      memory: this.memory,
      __emscripten_init_main_thread_js: first => this.c._emscripten_thread_init(first, 0, 0, 1, 0),
      __pthread_create_js: (thread, attributes, f, argument) => this.create(thread, f, argument),
      __emscripten_thread_cleanup: thread => this.joined(thread),
      _emscripten_default_pthread_stack_size: () => 16,  // not used: workers keep their stacks
    };
  }
  // Starts f(argument) as a thread; if no worker is idle, the C library reports that there are no more threads.
  create(thread, f, argument) {
    const worker = this.idle.at(-1), stack = this.stacks.get(worker) || (worker && this.c.malloc(THREAD_STACK));
    if (!stack) return EAGAIN;
    this.idle.pop();
    this.stacks.set(worker, stack);
    this.running.set(thread, worker);
    worker.postMessage({thread, f, argument, stack: stack + THREAD_STACK});
    return 0;
  }
  joined(thread) {
    this.idle.push(this.running.get(thread));
    this.running.delete(thread);
    this.c._emscripten_thread_free_data(thread);
  }
  stop() {
    for (const worker of [...this.idle, ...this.running.values()]) worker.terminate();
  }
}

// In the worker of a thread: receives the messages of Threads, first {module, memory}, then {thread, f, argument,
// stack}. reply: sends a message back.
let threadInstance = null;
function runThread(data, reply) {
  if (data.module) {
    try {
      threadInstance = instantiate(data.module, {memory: data.memory});
      reply({ready: true});
    } catch (error) {
      reply({problem: error.message});
    }
    return;
  }
  const c = threadInstance;
  c._emscripten_thread_init(data.thread, 0, 0, 1, 0);  // may wait, and has no tasks of others
  c.stackRestore(data.stack);
  c.__wasm_init_tls(c.malloc(c.__tls_size.value));  // thread_local variables, which _emscripten_thread_exit() frees
  c._emscripten_thread_exit(c.__indirect_function_table.get(data.f)(data.argument));
}
