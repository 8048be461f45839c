// The golden cases of a bundle by onnxruntime-node: other languages get the same numbers.
//   npm install --ignore-scripts onnxruntime-node; node BUNDLE/example.mjs
// (its script only downloads libraries of GPUs)
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'

// from where it is called, not from where this file lies: the bundle brings no packages
const ort = createRequire(join(process.cwd(), 'example.mjs'))('onnxruntime-node')
const folder = import.meta.dirname
const bundle = JSON.parse(readFileSync(join(folder, 'bundle.json'), 'utf8'))
const graphInputs = bundle.graphs['rank.onnx'].inputs.map(({ name, dtype }) => [name, dtype])
const DTYPES = { history_watched: 'float32', ...Object.fromEntries(graphInputs) }
const PADDING = { history_title: '', history_artwork: '', history_watched: null }

// A batch of one. An empty history is a play of padding and length 0.
function tensorOf(name, value) {
  const list = Array.isArray(value)
  const values = list ? (value.length || !(name in PADDING) ? value : [PADDING[name]]) : [value]
  const shape = list ? [1, values.length] : [1]
  if (DTYPES[name] === 'float32') {
    return new ort.Tensor('float32', Float32Array.from(values, (x) => (x === null ? NaN : x)), shape)
  }
  return DTYPES[name] === 'string'
    ? new ort.Tensor('string', values, shape)
    : new ort.Tensor('int64', BigInt64Array.from(values, BigInt), shape)
}

async function ask(session, request) {
  return session.run(Object.fromEntries(session.inputNames.map((name) => [name, request[name]])))
}

const [rank, member, choose] = await Promise.all(
  ['rank', 'member', 'choose'].map((name) => ort.InferenceSession.create(join(folder, `${name}.onnx`)))
)
const historySpan = bundle.history_span
let worst = 0
for (const line of readFileSync(join(folder, 'golden.jsonl'), 'utf8').trim().split('\n')) {
  const { request: said, answer } = JSON.parse(line)
  const request = Object.fromEntries(Object.entries(said).map(([name, value]) => [name, tensorOf(name, value)]))
  const atOnce = await ask(rank, request)
  const before = said.history_title.slice(-historySpan).includes(said.title)
  const inTwo = await ask(choose, {
    ...request,
    ...(await ask(member, request)),
    played_before: new ort.Tensor('bool', [before], [1])
  })
  for (const [name, expected] of Object.entries(answer)) {
    for (const found of [atOnce, inTwo]) {
      const values = found[name].data
      const wanted = Array.isArray(expected) ? expected : [expected]
      wanted.forEach((value, place) => {
        const apart = Math.abs(values[place] - value)
        worst = Number.isNaN(apart) ? Infinity : Math.max(worst, apart)
      })
    }
  }
}
console.log(`max_abs_difference=${worst.toExponential(2)}`)
