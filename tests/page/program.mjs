// program.mjs MODULE [ARGUMENTS]: runs a program that was compiled to WebAssembly, with standard output, arguments and a
// clock, and no files.
import fs from 'node:fs';

const [file, ...args] = process.argv.slice(2);
const module = await WebAssembly.compile(fs.readFileSync(file));
let memory;
const view = () => new DataView(memory.buffer);
const words = [file, ...args].map(word => Buffer.from(word + '\0'));
const imports = {env: {}, wasi_snapshot_preview1: {}};
for (const {module: from, name} of WebAssembly.Module.imports(module))
  imports[from][name] = () => (name.startsWith('__syscall') ? -52 : 52);  // ENOSYS
Object.assign(imports.wasi_snapshot_preview1, {
  fd_write(fd, vectors, count, written) {
    let total = 0;
    for (let i = 0; i < count; i++, vectors += 8) {
      const n = view().getUint32(vectors + 4, true);
      fs.writeSync(fd, new Uint8Array(memory.buffer, view().getUint32(vectors, true), n));
      total += n;
    }
    view().setUint32(written, total, true);
    return 0;
  },
  args_sizes_get(count, bytes) {
    view().setUint32(count, words.length, true);
    view().setUint32(bytes, Buffer.concat(words).length, true);
    return 0;
  },
  args_get(pointers, at) {
    for (const word of words) {
      view().setUint32(pointers, at, true);
      new Uint8Array(memory.buffer).set(word, at);
      pointers += 4;
      at += word.length;
    }
    return 0;
  },
  clock_time_get(id, precision, result) {
    view().setBigUint64(result, BigInt(Math.round(performance.now() * 1e6)), true);
    return 0;
  },
  environ_sizes_get(count, bytes) {
    view().setUint32(count, 0, true);
    view().setUint32(bytes, 0, true);
    return 0;
  },
  environ_get: () => 0,
  proc_exit(status) { process.exit(status); },
});
const {exports} = await WebAssembly.instantiate(module, imports);
memory = exports.memory;
exports._start();
