// model.mjs MODULE MODEL: one answer of a module of the page per line of standard input, as JSON, without the page:
//   {"selfTest": "scalar"}            the number of kernel sets that give the bits of the file's hash; "": of all sets
//   {"kernel": true}                  the name of the kernel set in use
//   {"logits": [ids], "to": FILE}     writes the logits of each token, float32 (tokens, vocabulary)
//   {"tell": PROMPT, "seed": N, "n": N}   up to n [256] tokens, and tok/s
import fs from 'node:fs';
import readline from 'node:readline';

const source = fs.readFileSync(new URL('../../apps/page/engine.js', import.meta.url), 'utf8');
const Engine = new Function(source + '; return Engine;')();
const [module, model] = process.argv.slice(2);

const engine = new Engine(await WebAssembly.compile(fs.readFileSync(module)));
await engine.open(fs.statSync(model).size, fs.createReadStream(model, {highWaterMark: 8 << 20}));
engine.start(512);

const answers = {
  selfTest: ({selfTest}) => engine.selfTest(selfTest),
  kernel: () => engine.kernel(),
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
