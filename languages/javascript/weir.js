// A filter of weir in JavaScript: lines in, a verdict for each out.
//
//   export const { init, process } = filter({ start(context, config) { … }, line(line, out, place) { … } });
//
// `line` is a Uint8Array that is valid during the call, and `out` says what becomes of it: keep(), drop(),
// setAside(), replace(...parts) by one line, or line(...parts) for each of several. What `start` throws
// as a string is the error of `init`; anything else that is thrown is a trap, which costs the line.

const DROP = 0, KEEP = 1, SET_ASIDE = 255;

class Out {
  constructor(lines) {
    this.verdicts = new Uint8Array(lines);
    this.at = 0;
    this.bytes = new Uint8Array(1 << 12);
    this.length = 0;
    this.ends = [];
  }
  keep() { this.verdicts[this.at] = KEEP; }
  drop() { this.verdicts[this.at] = DROP; }
  setAside() { this.verdicts[this.at] = SET_ASIDE; }
  replace(...parts) { this.line(...parts); }
  line(...parts) {
    for (const part of parts) this.write(part);
    this.ends.push(this.length);
    this.verdicts[this.at] = Math.max(this.verdicts[this.at], 1) + 1;
  }
  write(part) {
    if (this.length + part.length > this.bytes.length) {
      const more = new Uint8Array(2 * (this.length + part.length));
      more.set(this.bytes.subarray(0, this.length));
      this.bytes = more;
    }
    this.bytes.set(part, this.length);
    this.length += part.length;
  }
}

export function filter({ start, line }) {
  return {
    init(context, config) {
      start?.(context, config);
    },
    process({ path, offset, unixMs, bytes, starts, ends }) {
      const out = new Out(starts.length);
      // Most filters never ask where a line stands, and a BigInt costs much.
      const place = { path, unixMs, get offset() { return BigInt.asUintN(64, offset + BigInt(starts[out.at])); } };
      for (let i = 0; i < starts.length; i++) {
        out.at = i;
        line(bytes.subarray(starts[i], ends[i]), out, place);
      }
      const { verdicts, length } = out;
      return { verdicts, bytes: out.bytes.subarray(0, length), ends: Uint32Array.from(out.ends) };
    },
  };
}
