// The reference filter of the conformance kit: conformance/README.md says what it does.
import { log, count } from 'weir:filter/host@0.1.0';
import { filter } from './weir.js';

const text = new TextDecoder();
const utf8 = new TextEncoder();
const blank = 0x20;
const semicolon = 0x3b;

let context, prefix, seen;

export const { init, process } = filter({
  start(ctx, config) {
    context = utf8.encode(`${ctx.entry} ${ctx.topic} ${ctx.host}`);
    const json = text.decode(config);
    const isString = /^"[^\\]*"$/s.test(json);
    if (json !== '' && !isString) throw 'config: a string without escapes';
    prefix = json === '' ? utf8.encode('> ') : config.slice(1, -1);
    seen = 0n;
  },

  line(line, out, place) {
    const number = seen++;
    const space = line.indexOf(blank);
    const word = text.decode(space < 0 ? line : line.subarray(0, space));
    const rest = space < 0 ? line.subarray(line.length) : line.subarray(space + 1);
    if (space < 0) {
      switch (word) {
        case 'aside': return out.setAside();
        case 'trap': return unreachable();
        case 'context': return out.replace(context);
        case 'seen': return out.replace(utf8.encode(String(number)));
        case 'where': return out.replace(utf8.encode(`${place.path}@${place.offset}@${place.unixMs}`));
      }
    }
    switch (word) {
      case 'DEBUG': return out.drop();
      case 'one': return out.replace(prefix, rest);
      case 'split': {
        for (let from = 0; from <= rest.length; ) {
          const end = rest.indexOf(semicolon, from);
          out.line(rest.subarray(from, end < 0 ? rest.length : end));
          from = end < 0 ? rest.length + 1 : end + 1;
        }
        return;
      }
      case 'many': {
        for (let lines = Number(text.decode(rest)); lines > 0; lines--) out.line(utf8.encode('x'));
        return;
      }
      case 'log': log(3, text.decode(rest)); break;
      case 'count': count(text.decode(rest), 1n); break;
    }
    out.keep();
  },
});

// What is thrown beside a result is a trap.
function unreachable() {
  throw new Error('trap was asked for');
}
