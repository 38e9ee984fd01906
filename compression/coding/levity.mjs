// Decodes `.levity` files in a browser or in Node 18 and later, without dependencies. The format is described in
// `container.py` beside this file, whose names are used here.
//
//     import { decode } from "./levity.mjs";
//     const { onnx, tensors } = await decode(await (await fetch("model.levity")).arrayBuffer());
//     tensors.get("conv1.weight")  // { dtype, dims, data }: data is a typed array, or bytes for types that have none

const TOTAL = 1 << 14, NO_ONES = 255, SMALLEST = 64, CLASSES = 27;
const SPARSE = 1, TRANSPOSED = 2, CODEBOOK = 4, ROWS = 8, COLUMNS = 16, SIGNS = 32, LINES = 64, STORED = 128;
const EIGHTHS = [16777216, 15384775, 14107901, 12937002, 11863283, 10878679, 9975792, 9147842];
const ADD = (sum, value) => sum + value;
// By number of `TensorProto.DataType`: name, typed array, bytes of an element, bits of a float's mantissa, signed.
const TYPES = {
  1: ["float32", Float32Array, 4, 23], 2: ["uint8", Uint8Array, 1], 3: ["int8", Int8Array, 1, 0, true],
  4: ["uint16", Uint16Array, 2], 5: ["int16", Int16Array, 2, 0, true], 6: ["int32", Int32Array, 4, 0, true],
  7: ["int64", BigInt64Array, 8, 0, true], 9: ["bool", Uint8Array, 1], 10: ["float16", Uint16Array, 2, 10],
  11: ["float64", Float64Array, 8, 52], 12: ["uint32", Uint32Array, 4], 13: ["uint64", BigUint64Array, 8],
  14: ["complex64", Float32Array, 4, 23], 15: ["complex128", Float64Array, 8, 52], 16: ["bfloat16", Uint16Array, 2, 7],
  17: ["float8e4m3fn"], 18: ["float8e4m3fnuz"], 19: ["float8e5m2"], 20: ["float8e5m2fnuz"], 21: ["uint4"],
  22: ["int4"], 23: ["float4e2m1"], 24: ["float8e8m0"], 25: ["uint2"], 26: ["int2"],
};
const DICTIONARY = "TWF0TXVsSW50ZWdlckR5bmFtaWNRdWFudGl6ZUxpbmVhckRlcXVhbnRpemVMaW5lYXJfcXVhbnRpemVkX3NjYWxlX3plcm9fcG9pbnREZXF1YW50" +
  "aXplTGluZWFyX091dHB1dBIUYWkub25ueC5tbBISY29tLm1pY3Jvc29mdE1hdE11bE5CaXRzYmxvY2tfc2l6ZWFjY3VyYWN5X2xldmVscGtnLnRv" +
  "cmNoLm9ubnhtYWluX2dyYXBoIgZDb25jYXQiB1NvZnRtYXgiBVNsaWNlIgVTcGxpdCIGR2F0aGVyIgRDYXN0IglVbnNxdWVlemUiB1NxdWVlemUi" +
  "BVNoYXBlIgRTcXJ0IgNQb3ciA0VyZiIDRGl2IgNTdWIiBVdoZXJlIgZFeHBhbmQiBFRhbmgiBEdlbHUiEkxheWVyTm9ybWFsaXphdGlvbiIKUmVk" +
  "dWNlTWVhbiIEQ2xpcCIJSGFyZFN3aXNoIgtIYXJkU2lnbW9pZCIHU2lnbW9pZCoLCgRheGlzGP+gAQIqDwoIa2VlcGRpbXMYAaABAioRCgRwZXJt" +
  "QABAAkABQAOgAQciCVRyYW5zcG9zZSoQCglhbGxvd3plcm8YAKABAiIHUmVzaGFwZSoRCgdlcHNpbG9uFazFJzegAQEqEgoIbW9tZW50dW0VZmZm" +
  "P6ABASISQmF0Y2hOb3JtYWxpemF0aW9uKhQKDXRyYWluaW5nX21vZGUYAKABAiILQXZlcmFnZVBvb2wqGAoRY291bnRfaW5jbHVkZV9wYWQYAaAB" +
  "AiIRR2xvYmFsQXZlcmFnZVBvb2wvYmxvY2tzL2xheWVycy5mZWF0dXJlcy5jb252LmJuLmF0dGVudGlvbi5zZWxmLnF1ZXJ5LmtleS52YWx1ZS5v" +
  "dXRwdXQuZGVuc2UuY2xhc3NpZmllci5lbWJlZGRpbmdzLmVuY29kZXJydW5uaW5nX21lYW4ucnVubmluZ192YXJudW1fYmF0Y2hlc190cmFja2Vk" +
  "aW5fcHJval93ZWlnaHRsYXllcm5vcm1kb3duc2FtcGxlbm9ybTFub3JtMmZjMWZjMggHEgdweXRvcmNoGgZpbnB1dGxvZ2l0c291dHB1dGltYWdl" +
  "b25ueDo6Q29udl9iYXRjaGJhdGNoX3NpemUSCm1haW5fZ3JhcGh0b3JjaF9qaXQiA0FkZCIDTXVsIgZNYXRNdWwKEy8zL01heFBvb2xfb3V0cHV0" +
  "XzAiB01heFBvb2wqEAoJY2VpbF9tb2RlGACgAQIqEgoJZGlsYXRpb25zQAFAAaABByoVCgxrZXJuZWxfc2hhcGVAAkACoAEHKhEKBHBhZHNAAEAA" +
  "QABAAKABByoUCg1zdG9yYWdlX29yZGVyGACgAQIqEAoHc3RyaWRlc0ACQAKgAQcyABITLzQvRmxhdHRlbl9vdXRwdXRfMBoAIgdGbGF0dGVuKgsK" +
  "BGF4aXMYAaABAjIACnMKEy80L0ZsYXR0ZW5fb3V0cHV0XzAKCDUud2VpZ2h0CgY1LmJpYXMSEC81L0dlbW1fb3V0cHV0XzAaACIER2VtbSoPCgVh" +
  "bHBoYRUAAIA/oAEBKg4KBGJldGEVAACAP6ABASoNCgZ0cmFuc0IYAaABAjIACi4KEC81L0dlbW1fb3V0cHV0XzASEC82L1JlbHVfb3V0cHV0XzAa" +
  "ACIEUmVsdTIACpYBCghjb252MS53ZWlnaHQKBmNvbnYxLmJpYXMKCDAud2VpZ2h0CgYwLmJpYXMSEC8wL0NvbnZfb3V0cHV0XzAaACIEQ29udioS" +
  "CglkaWxhdGlvbnNAAUABoAEHKgwKBWdyb3VwGAGgAQIqFQoMa2VybmVsX3NoYXBlQAVABaABByoRCgRwYWRzQABAAEAAQACgAQcqEAoHc3RyaWRl" +
  "c0ABQAGgAQcqFQoMa2VybmVsX3NoYXBlQANAA6ABByoRCgRwYWRzQAFAAUABQAGgAQcyACoMCDIQAUIGMi5iaWFzKhQIMggUCAUIBRABQggyLndl" +
  "aWdodEqAgAFaIAoFaW1hZ2USFwoVCAESEQoDEgFuCgIIAQoCCBwKAggcWh4KBWlucHV0EhUKEwgBEg8KBxIFYmF0Y2gKAwjgAWIZCgZsb2dpdHMS" +
  "DwoNCAESCQoDEgFuCgIICmIbCgZvdXRwdXRCBAoAEBFCAhARCAgSABoAMgA6lAkKkwEKBWltYWdlCggwLndlaWdodA==";

export class LevityError extends Error {}

class Reader {
  constructor(bytes, place) { this.bytes = bytes; this.place = place; this.at = 0; }
  fail(what) { throw new LevityError(`The .levity file is damaged in its ${this.place}: ${what}.`); }
  take(count) {
    if (this.at + count > this.bytes.length) this.fail("it ends too early");
    return this.bytes.subarray(this.at, this.at += count);
  }
  byte() { return this.take(1)[0]; }
  varint() {
    for (let result = 0, factor = 1; factor <= 2 ** 49; factor *= 128) {
      const byte = this.byte();
      result += (byte & 127) * factor;
      if (byte < 128) return result;
    }
    this.fail("a number is too large");
  }
  words(count, width) {
    const part = this.take(count * width);
    return Array.from({ length: count }, (_, i) => number(part, i * width, width));
  }
}

function number(bytes, at, width) {
  let value = 0;
  for (let i = width; i--;) value = value * 256 + bytes[at + i];
  return value;
}

let crcTable;
function crc32(bytes) {
  crcTable ??= Uint32Array.from({ length: 256 }, (_, n) => {
    for (let k = 8; k--;) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
    return n;
  });
  let crc = 0xffffffff;
  for (const byte of bytes) crc = crcTable[(crc ^ byte) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

async function inflate(packed, size, reader) {
  // The preset dictionary goes in front as a block that is stored.
  const preset = Uint8Array.from(atob(DICTIONARY), (c) => c.charCodeAt(0)), n = preset.length;
  const stream = new Blob([Uint8Array.of(0, n & 255, n >> 8, ~n & 255, (~n >> 8) & 255), preset, packed]).stream();
  const chunks = [];
  let total = 0;
  try {
    for await (const chunk of stream.pipeThrough(new DecompressionStream("deflate-raw"))) {
      if ((total += chunk.length) > n + size) break;
      chunks.push(chunk);
    }
  } catch { total = -1; }
  if (total !== n + size) reader.fail("it does not unpack to what the header says");
  return concat(chunks).subarray(n);
}

function concat(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  parts.reduce((at, part) => (whole.set(part, at), at + part.length), 0);
  return whole;
}

// The tensors that belong into a graph without data: see `splice.py`.
const PARTS = {
  model: { 7: "graph", 20: "training", 25: "function" }, training: { 1: "graph", 2: "graph" },
  graph: { 1: "node", 5: "tensor", 15: "sparse" }, function: { 7: "node", 11: "attribute" }, node: { 5: "attribute" },
  attribute: { 5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse" },
  sparse: { 1: "tensor", 2: "tensor" }, tensor: {},
};
function findHoles(graph) {
  const reader = new Reader(graph, "graph"), holes = [];
  let taken = 0;
  const walk = (kind, end, depth) => {
    if (depth > 48) reader.fail("messages nest too deep");
    const own = [], tensor = { name: "", type: 0, dims: [] };
    while (end === null ? reader.at < graph.length : reader.at + taken < end) {
      const tag = long(), wire = tag % 8, field = Math.floor(tag / 8);
      if (wire === 0) {
        const value = long();
        if (field === 1) tensor.dims.push(value);
        if (field === 2) tensor.type = value;
      } else if (wire === 2) {
        const size = long(), inner = PARTS[kind][field];
        if (inner && size >= SMALLEST) walk(inner, reader.at + taken + size, depth + 1);
        else if (kind === "tensor" && field === 9 && size >= SMALLEST) {
          own.push({ at: reader.at, size, tensor });
          taken += size;
        } else {
          const body = reader.take(size);
          if (kind === "tensor" && field === 8) tensor.name = new TextDecoder().decode(body);
          if (kind === "tensor" && field === 1) {
            for (const part = new Reader(body, "graph"); part.at < size;) tensor.dims.push(part.varint());
          }
        }
      } else reader.take(wire === 1 ? 8 : wire === 5 ? 4 : reader.fail("a field of an unknown kind"));
    }
    if (end !== null && reader.at + taken !== end) reader.fail("a message does not end where it says");
    holes.push(...own.map(({ at, size, tensor: { name, type, dims } }) => ({ at, size, name, type, dims })));
  };
  const long = () => { // up to 64 bits, of which sizes and dimensions use few
    for (let result = 0, factor = 1, count = 0; count < 10; factor *= 128, count++) {
      const byte = reader.byte();
      result += (byte & 127) * factor;
      if (byte < 128) return result;
    }
    return reader.fail("a number of more than 64 bits");
  };
  walk("model", null, 0);
  return holes;
}

// Tables: see `tables.py` and `huffman.py`.
function readRows(reader) {
  let bit = 0;
  const next = () => {
    if (bit >> 3 >= reader.bytes.length) reader.fail("it ends too early");
    return (reader.bytes[bit >> 3] >> (7 - (bit++ & 7))) & 1;
  };
  const bits = (count) => { let value = 0; while (count--) value = value * 2 + next(); return value; };
  const gamma = () => { let zeros = 0; while (!next()) zeros++; return 2 ** zeros + bits(zeros) - 1; };
  const rice = (k) => { let ones = 0; while (next()) ones++; return ones * 2 ** k + bits(k); };
  return Array.from({ length: gamma() }, () => {
    const row = new Array(256).fill(0), first = gamma(), last = first + gamma();
    if (last > 255) reader.fail("a symbol does not exist");
    if (first === last) row[first] = 1;
    else {
      const coarse = bits(1);
      let value = bits(7);
      const k = bits(3);
      for (let symbol = first; symbol <= last; symbol++) {
        if (symbol > first) { const folded = rice(k); value += folded & 1 ? -((folded + 1) / 2) : folded / 2; }
        row[symbol] = value << coarse;
      }
    }
    return row;
  });
}

function fromCodes(codes) {
  const weights = codes.map((code) => (code < 16 ? code : (8 + (code & 7)) * 2 ** ((code >> 3) - 1)));
  const total = weights.reduce(ADD), found = weights.map((w) => (w ? Math.max(1, Math.floor(w * TOTAL / total)) : 0));
  let rest = TOTAL - found.reduce(ADD);
  if (rest < 0) found[found.indexOf(Math.max(...found))] += rest;
  for (let symbol = 0; symbol < 256 && rest > 0; symbol++) if (found[symbol]) { found[symbol]++; rest--; }
  return found;
}

function geometric(parameter) {
  const unit = 2 ** 24, found = [];
  let none = unit - (EIGHTHS[parameter & 7] >> (parameter >> 3));
  for (let i = rans.gapShift(parameter); i > 0; i--) none = Math.floor(none * none / unit);
  let left = unit;
  for (let symbol = 0; symbol < 255; symbol++) {
    const following = Math.floor(left * none / unit);
    found.push(Math.max(1, (left - following) >> 10));
    left = following;
  }
  found.push(Math.max(1, left >> 10));
  found[0] += TOTAL - found.reduce(ADD);
  return found;
}

// Entropy coders: rows become tables, and `decode` gives `count` symbols, the i-th by table `tableOf(i)`.
const rans = {
  escape: 255,
  gapShift: (parameter) => Math.max(0, (parameter >> 3) - 3),
  table(row) { return this.lookup(fromCodes(row)); },
  gaps(parameter) { return this.lookup(geometric(parameter)); },
  lookup(frequencies) {
    const symbols = new Uint8Array(TOTAL), below = new Uint32Array(257);
    frequencies.forEach((frequency, s) => symbols.fill(s, below[s], below[s + 1] = below[s] + frequency));
    return { symbols, below, frequencies };
  },
  decode(reader, count, tableOf) {
    const out = new Uint8Array(count);
    if (!count) return out;
    const lanes = reader.varint(), states = reader.words(lanes, 4), words = reader.words(reader.varint(), 2);
    let used = 0;
    for (let i = 0; i < count; i++) {
      const { symbols, below, frequencies } = tableOf(i), state = states[i % lanes], slot = state % TOTAL;
      const symbol = out[i] = symbols[slot];
      let next = frequencies[symbol] * Math.floor(state / TOTAL) + slot - below[symbol];
      if (next < 65536) next = next * 65536 + words[used++];
      states[i % lanes] = next;
    }
    if (used !== words.length || states.some((state) => state !== 65536)) reader.fail("a sequence does not fit");
    return out;
  },
};
const huffman = {
  escape: 11,
  gapShift: (parameter) => parameter >> 3,
  table(lengths) {
    const symbols = new Uint8Array(4096), bits = new Uint8Array(4096), present = lengths.filter((length) => length);
    if (present.length === 1) return { symbols: symbols.fill(lengths.indexOf(1)), bits };
    for (let length = 1, at = 0; length <= 12; length++) {
      lengths.forEach((own, symbol) => {
        if (own !== length) return;
        symbols.fill(symbol, at, at + (4096 >> length));
        bits.fill(length, at, at += 4096 >> length);
      });
    }
    return { symbols, bits };
  },
  gaps() { return this.table(Array.from({ length: 256 }, (_, s) => (s > 11 ? 0 : Math.min(s + 1, 11)))); },
  decode(reader, count, tableOf) {
    const out = new Uint8Array(count);
    if (!count) return out;
    const interval = reader.varint(), size = reader.varint();
    for (let places = Math.ceil(count / interval); places > 1; places--) reader.varint();
    const data = reader.take(size);
    let bit = 0;
    for (let i = 0; i < count; i++) {
      const byte = bit >> 3, window = ((data[byte] << 16) | (data[byte + 1] << 8) | data[byte + 2]) >>> 0;
      const { symbols, bits } = tableOf(i), slot = (window >> (12 - (bit & 7))) & 4095;
      out[i] = symbols[slot];
      bit += bits[slot];
    }
    if (bit + 7 >> 3 !== size) reader.fail("a sequence does not fit");
    return out;
  },
};

function readTensor(reader, hole, tables, coder) {
  let [, , width = 1, mantissa = 0, signed = false] = TYPES[hole.type] ?? [];
  if (hole.size % width) [width, mantissa, signed] = [1, 0, false];
  const count = hole.size / width, fits = hole.dims.length > 1 && hole.dims[0] > 0 && count % hole.dims[0] === 0;
  const rows = fits && hole.dims[0] <= count ? hole.dims[0] : 1, columns = count / rows;
  const form = reader.byte(), has = (flag) => (form & flag) !== 0, out = new Uint8Array(hole.size);
  if (form === STORED) return out.set(reader.take(hole.size)), out;
  const table = (index) => tables[index] ?? reader.fail(`table ${index} does not exist`);
  const lines = !has(LINES) ? 1 : has(CODEBOOK) ? rows : columns, books = has(CODEBOOK | LINES), starts = [0];
  if (books) for (const size of reader.take(lines)) starts.push(starts[starts.length - 1] + size + 1);
  const codebook = books && reader.take(starts[lines] * width).slice();
  const line = (element) => (!has(LINES) ? 0 : has(CODEBOOK) ? Math.floor(element / columns) : element % columns);
  const [height, turns] = has(TRANSPOSED) ? [columns, rows] : [rows, columns];
  const sideTables = () => [ROWS, COLUMNS].filter(has).map(() => reader.varint());
  let side = [], zero, lag = 0, steps = [], bias = 0, contexts = [], coded = count, signCounts = [];
  if (has(SPARSE)) {
    zero = reader.take(codebook ? 1 : width).slice();
    lag = reader.varint();
    if (lag) for (const byte of reader.take(10)) steps.push(byte & 15, byte >> 4);
    side = sideTables();
    const number = reader.byte();
    bias = reader.varint();
    for (let k = 0; k < number; k++) {
      const parameter = reader.byte();
      contexts.push(parameter === NO_ONES ? { symbols: 0, shift: 0 }
        : { symbols: reader.varint(), shift: coder.gapShift(parameter), table: coder.gaps(parameter) });
    }
    coded = reader.varint();
    if (coded > count) reader.fail("more weights than places");
    if (has(SIGNS)) signCounts = Array.from({ length: 5 }, () => reader.varint());
  } else if (has(ROWS | COLUMNS)) {
    const folded = reader.varint();
    bias = folded & 1 ? -(folded + 1) / 2 : folded / 2;
    side = sideTables();
  }
  const planes = Array.from({ length: codebook ? 1 : width }, () => {
    const mode = reader.byte();
    return { mode, value: mode === 0 ? reader.byte() : mode === 2 ? reader.varint() : 0 };
  });
  // Levels of rows and columns.
  const rowCount = has(ROWS) ? height : 0, sideCount = rowCount + (has(COLUMNS) ? turns : 0);
  const levels = coder.decode(reader, sideCount, (i) => table(i < rowCount ? side[0] : side[side.length - 1]));
  const rowLevel = (i) => (has(ROWS) ? levels[i] : 0), columnLevel = (j) => (has(COLUMNS) ? levels[rowCount + j] : 0);
  // Gaps and planes.
  const tableOf = [];
  for (const context of contexts) for (let i = 0; i < context.symbols; i++) tableOf.push(context.table);
  const gapSymbols = tableOf.length;
  planes.forEach(({ mode, value }, index) => {
    if (mode !== 2) return;
    if (!index && has(SIGNS)) {
      signCounts.forEach((times, k) => { for (let i = 0; i < times; i++) tableOf.push(table(value + k)); });
    } else if (!index && !has(SPARSE) && has(ROWS | COLUMNS)) {
      for (let i = 0; i < rows; i++) {
        for (let j = 0; j < columns; j++) {
          const level = rowLevel(i) + columnLevel(j) - bias;
          tableOf.push(table(value + Math.min(Math.max(level, 0), CLASSES - 1)));
        }
      }
    } else for (let i = 0; i < coded; i++) tableOf.push(table(value));
  });
  const symbols = coder.decode(reader, tableOf.length, (i) => tableOf[i]);
  const gaps = readGaps(reader, contexts, symbols, coder.escape);
  let position = gapSymbols;
  const parts = planes.map(({ mode, value }) => {
    if (mode === 0) return new Uint8Array(coded).fill(value);
    return mode === 1 ? reader.take(coded) : symbols.subarray(position, position += coded);
  });
  if (reader.at !== reader.bytes.length) reader.fail("bytes too many");
  const put = (element, source) => { // the bytes of one element
    if (codebook) {
      look(element, parts[0][source]);
    } else unfold(out, element * width, width, mantissa, signed, (plane) => parts[plane][source]);
  };
  const look = (element, symbol) => {
    const own = line(element), at = starts[own] + symbol;
    if (at >= starts[own + 1]) reader.fail("a symbol that the codebook does not have");
    for (let b = 0; b < width; b++) out[element * width + b] = codebook[at * width + b];
  };
  if (!has(SPARSE)) { for (let i = 0; i < count; i++) put(i, i); return out; }
  const rest = width === 1 && signed ? Uint8Array.of(zero[0] ^ 128) : zero;
  for (let i = 0; i < count; i++) codebook ? look(i, zero[0]) : out.set(rest, i * width);
  readPlaces({ reader, height, turns, lag, steps, bias, contexts, gaps, rowLevel, columnLevel, signCounts, coded },
    (source) => parts[0][source] > zero[0],
    (i, j, source) => put(has(TRANSPOSED) ? j * columns + i : i * columns + j, source));
  return out;
}

function unfold(out, at, width, mantissa, signed, plane) {
  for (let b = 0; b < width; b++) out[at + b] = plane(width - 1 - b);
  if (!mantissa && !signed) return;
  if (width === 1) { out[at] ^= 128; return; }
  let value = 0n;
  for (let b = width; b--;) value = (value << 8n) | BigInt(out[at + b]);
  const top = BigInt(8 * width - 1), m = BigInt(mantissa), low = (1n << m) - 1n;
  const exponent = ((1n << top) - 1n) & ~low;
  value = mantissa ? ((value >> 1n) & exponent) | (((value >> m) & 1n) << top) | (value & low)
    : (value >> 1n) ^ (value & 1n ? (1n << (top + 1n)) - 1n : 0n);
  for (let b = 0; b < width; b++, value >>= 8n) out[at + b] = Number(value & 255n);
}

function readGaps(reader, contexts, symbols, escape) {
  let at = 0, bit = 0;
  const uppers = contexts.map((context) => {
    const found = [];
    let upper = 0;
    for (let i = 0; i < context.symbols; i++, at++) {
      upper += symbols[at];
      if (symbols[at] !== escape) { found.push(upper); upper = 0; }
    }
    return found;
  });
  const bits = uppers.reduce((sum, found, k) => sum + found.length * contexts[k].shift, 0);
  const low = reader.take((bits + 7) >> 3);
  return uppers.map((found, k) => found.map((upper) => {
    for (let b = contexts[k].shift; b--; bit++) upper = upper * 2 + ((low[bit >> 3] >> (7 - (bit & 7))) & 1);
    return upper;
  }));
}

// Places of weights, turn by turn: see `sparse.py`.
function readPlaces(form, isPositive, put) {
  const { reader, height, turns, lag, steps, bias, contexts, gaps, rowLevel, columnLevel, signCounts, coded } = form;
  const signs = new Int8Array(turns * height), totals = new Uint32Array(turns);
  const before = (j, i, distance) => (j < distance ? 0 : signs[(j - distance) * height + i]);
  const left = gaps.map((gap) => gap[0] ?? Infinity), used = gaps.map(() => 0);
  let source = 0;
  const sources = signCounts.map((_, k) => signCounts.slice(0, k).reduce(ADD, 0));
  for (let j = 0; j < turns; j++) {
    const sum = (totals[j - 1] ?? 0) + (lag ? totals[j - lag] ?? 0 : 0), length = sum ? 32 - Math.clz32(sum) : 0;
    for (let i = 0; i < height; i++) {
      let level = rowLevel(i) + columnLevel(j) - bias, around = 0;
      if (lag) {
        const [a, b, c, d] = [1, lag, lag - 1, lag + 1].map((distance) => before(j, i, distance));
        const far = Math.abs(c) + Math.abs(d) + Math.abs(before(j, i, 2)) + Math.abs(before(j, i, 2 * lag));
        level += steps[Math.abs(a) + Math.abs(b)] + steps[3 + Math.min(far, 3)] + steps[7 + Math.min(length, 11)];
        around = Math.min(Math.max(a + b + c + d, -2), 2) + 2;
      }
      const context = Math.min(Math.max(level, 0), contexts.length - 1);
      if (left[context]-- > 0) continue;
      left[context] = gaps[context][++used[context]] ?? Infinity;
      if (source === coded) reader.fail("more weights than values");
      const value = signCounts.length ? sources[around]++ : source;
      source++;
      signs[j * height + i] = !signCounts.length || isPositive(value) ? 1 : -1;
      totals[j]++;
      put(i, j, value);
    }
  }
  if (source !== coded) reader.fail("values without a place");
}

/** The ONNX file of an ArrayBuffer or Uint8Array, byte for byte, and its coded tensors by name. */
export async function decode(buffer) {
  const file = new Uint8Array(buffer), reader = new Reader(file, "header");
  if (new TextDecoder().decode(file.subarray(0, 6)) !== "LEVITY") reader.fail("this is another format");
  reader.take(6);
  if (reader.byte() !== 1) reader.fail("it has another version");
  const coder = [rans, huffman][reader.byte()], sha256 = reader.take(32);
  const [size, graphSize, packedSize, tablesSize, count] = Array.from({ length: 5 }, () => reader.varint());
  if (count > file.length) reader.fail("it ends too early");
  const sizes = [packedSize, tablesSize, ...Array.from({ length: count }, () => reader.varint())];
  const headEnd = reader.at;
  const check = (part, place) => {
    if (crc32(part) !== number(reader.take(4), 0, 4)) new Reader(part, place).fail("its checksum does not match");
    return part;
  };
  check(file.subarray(0, headEnd), "header");
  if (!coder) reader.fail("an unknown coder");
  const places = ["graph", "tables", ...Array.from({ length: count }, (_, k) => `stream ${k}`)];
  const [packed, tables, ...streams] = sizes.map((part, k) => check(reader.take(part), places[k]));
  if (reader.at !== file.length) reader.fail("bytes too many");
  const graph = await inflate(packed, graphSize, new Reader(packed, "graph")), holes = findHoles(graph);
  const total = holes.reduce((sum, hole) => sum + hole.size, graph.length);
  if (holes.length !== count || total !== size) reader.fail("its tensors are not those of the graph");
  const rows = readRows(new Reader(tables, "tables")).map((row) => coder.table(row));
  const result = new Map(), parts = [];
  let at = 0;
  holes.forEach((hole, k) => {
    const data = readTensor(new Reader(streams[k], places[k + 2]), hole, [undefined, ...rows], coder);
    const [dtype = "unknown", array, width = 1] = TYPES[hole.type] ?? [];
    const typed = array && hole.size % width === 0 ? new array(data.buffer) : data;
    result.set(hole.name, { dtype, dims: hole.dims, data: typed });
    parts.push(graph.subarray(at, hole.at), data);
    at = hole.at;
  });
  const onnx = concat([...parts, graph.subarray(at)]);
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", onnx));
  if (digest.some((byte, i) => byte !== sha256[i])) reader.fail("what is decoded has another SHA-256");
  return { onnx, tensors: result };
}
