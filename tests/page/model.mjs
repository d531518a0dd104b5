// model.mjs MODULE MODEL [THREADS]: one answer of a module of the page per line of standard input, as JSON, without the
// page. THREADS: for the module that has them.
//   {"selfTest": "scalar"}            the number of kernel sets that give the bits of the file's hash; "": of all sets
//   {"kernel": true}                  the name of the kernel set in use
//   {"threads": true}                 the number of threads in use
//   {"logits": [ids], "to": FILE}     writes the logits of each token, float32 (tokens, vocabulary)
//   {"tell": PROMPT, "seed": N, "n": N}   up to n [256] tokens, and tok/s
import fs from 'node:fs';
import readline from 'node:readline';
import {Worker} from 'node:worker_threads';

const read = name => fs.readFileSync(new URL(`../../apps/page/${name}.js`, import.meta.url), 'utf8');
const source = read('engine') + read('threads');
const {Engine, Threads} = new Function(source + '; return {Engine, Threads};')();
const [file, model, threads] = process.argv.slice(2);

// node's worker for a thread, with the interface of a browser's.
function makeWorker() {
  const worker = new Worker(source + `
    const {parentPort} = require('node:worker_threads');
    parentPort.on('message', data => runThread(data, message => parentPort.postMessage(message)));`, {eval: true});
  worker.on('message', data => worker.onmessage({data}));
  worker.on('error', error => { throw error; });
  return worker;
}

const module = await WebAssembly.compile(fs.readFileSync(file));
const engine = new Engine(module, threads ? await Threads.start(module, threads - 1, makeWorker) : null);
await engine.open(fs.statSync(model).size, fs.createReadStream(model, {highWaterMark: 8 << 20}));
engine.start(256);

const answers = {
  selfTest: ({selfTest}) => engine.selfTest(selfTest),
  kernel: () => engine.kernel(),
  threads: () => engine.threads(),
  logits({logits: ids, to}) {
    engine.rewind(0);
    const file = fs.openSync(to, 'w');
    for (const id of ids) {
      engine.append([id]);
      fs.writeSync(file, engine.logits());
    }
    fs.closeSync(file);
    return ids.length;
  },
  tell({tell: prompt, seed, n = 256}) {
    engine.rewind(0);
    engine.sampling({seed, temperature: 0.8, top_p: 0.9});
    engine.appendText(prompt);
    engine.process(0);
    const started = performance.now();
    let text = prompt, tokens = 0;
    for (let next; tokens < n && !(next = engine.next()).end; tokens++) text += next.text;
    return {text, speed: tokens / (performance.now() - started) * 1000};
  },
};
for await (const line of readline.createInterface({input: process.stdin})) {
  const request = JSON.parse(line), kind = Object.keys(answers).find(name => name in request);
  console.log(JSON.stringify(answers[kind](request)));
}
process.exit();  // threads wait for work
