/**
 * What stands inside a line of markdown: emphasis, code, links. Gives a tree of plain objects over places in the text.
 *
 * @typedef {{type: 'text', from: number, to: number} | {type: 'break'}
 *   | {type: 'code' | 'strong' | 'em' | 'del' | 'link', children: Inline[], href?: string}} Inline
 */

const DEEPEST = 6;
const SCHEMES = /^(?:https?:\/\/|mailto:)/i;
const ADDRESS = /https?:\/\/[^\s<>"'`|\\，。；！？、）》」]+/y;
const LINK = /\[((?:[^[\]\\\n]|\\[^\n]){0,500})\]\([ \t]*<?([^\s<>()]{1,2000}(?:\([^\s<>()]*\)[^\s<>()]*)?)>?(?:[ \t]+"[^"\n]{0,300}")?[ \t]*\)/y;
const PUNCTUATION = /[!-/:-@[-`{-~]/;

/** An address that may be followed, or null: only the web and mail; no javascript:, data:, file: or relative ones. */
export function safeAddress(written) {
  // eslint-disable-next-line no-control-regex
  const plain = written.replace(/[\u0000-\u0020\u200b-\u200f\u2028-\u202e\ufeff]/g, '');
  if (!SCHEMES.test(plain)) return null;
  try {
    const { href, protocol } = new URL(plain);
    return ['http:', 'https:', 'mailto:'].includes(protocol) ? href : null;
  } catch {
    return null;
  }
}

/** @param {string} text @returns {Inline[]} */
export function inline(text) {
  return new Reader(text).read(0, text.length, 0);
}

/** Remembers closers that are not there, so that a text of nothing but openers is read in linear time. */
class Reader {
  constructor(text) {
    this.text = text;
    this.missing = new Map();
  }

  read(from, to, depth) {
    const found = [];
    let plain = from;
    const flush = (end) => { if (end > plain) found.push({ type: 'text', from: plain, to: end }); };
    for (let at = from; at < to;) {
      const match = this.match(at, to, depth);
      if (!match) { at += 1; continue; }
      flush(at + (match.keep ?? 0));
      if (match.node) found.push(match.node);
      at = match.end;
      plain = match.plain ?? at;
    }
    flush(to);
    return found;
  }

  /** What begins at a place: {node, end}, or null. */
  match(at, to, depth) {
    const character = this.text[at];
    if (character === '\n') return { node: { type: 'break' }, end: at + 1 };
    if (character === '\\') return this.escaped(at, to);
    if (character === '`') return this.code(at, to);
    if (depth >= DEEPEST) return null;
    if (character === '*' || character === '_' || character === '~') return this.emphasis(at, to, depth);
    if (character === '!' && this.text[at + 1] === '[') return this.link(at + 1, to, depth);
    if (character === '[') return this.link(at, to, depth);
    if (character === 'h') return this.address(at, to);
    return null;
  }

  escaped(at, to) {
    const next = this.text[at + 1];
    if (at + 1 >= to || !next) return null;
    if (next === '\n') return { node: { type: 'break' }, end: at + 2 };
    return PUNCTUATION.test(next) ? { node: null, end: at + 2, plain: at + 1 } : null;
  }

  code(at, to) {
    let size = 1;
    while (this.text[at + size] === '`') size += 1;
    const line = this.text.indexOf('\n', at);
    const stop = line < 0 ? to : Math.min(line, to);
    const close = this.find('`'.repeat(size), at + size, stop, (place) => this.text[place - 1] !== '`' && this.text[place + size] !== '`');
    if (close < 0) return { node: { type: 'text', from: at, to: at + size }, end: at + size };
    let [from, end] = [at + size, close];
    const inside = this.text.slice(from, end);
    if (inside.length > 2 && inside.startsWith(' ') && inside.endsWith(' ') && inside.trim()) [from, end] = [from + 1, end - 1];
    return { node: { type: 'code', children: from < end ? [{ type: 'text', from, to: end }] : [] }, end: close + size };
  }

  emphasis(at, to, depth) {
    const mark = this.text[at];
    const size = this.text[at + 1] === mark ? 2 : 1;
    if (mark === '~' && size === 1) return null;
    const from = at + size;
    const wordBefore = at > 0 && /[\p{L}\p{N}]/u.test(this.text[at - 1]);
    const three = size === 2 && this.text[from] === mark && /[^\s*_~]/.test(this.text[from + 1] ?? ' '); // "***both***"
    const opens = from < to && !/\s/.test(this.text[from]) && (this.text[from] !== mark || three) && !(mark === '_' && wordBefore);
    const close = opens ? this.closer(mark, size, from + 1, to) : -1;
    if (close < 0) return { node: { type: 'text', from: at, to: from }, end: from };
    const type = mark === '~' ? 'del' : size === 2 ? 'strong' : 'em';
    return { node: { type, children: this.read(from, close, depth + 1) }, end: close + size };
  }

  closer(mark, size, from, to) {
    const fits = (place) => {
      if (/[\s\\]/.test(this.text[place - 1])) return false;
      if (mark === '_' && /[\p{L}\p{N}]/u.test(this.text[place + size] ?? '')) return false;
      if (size === 2) return true;
      const alone = place + 1 >= to || this.text[place + 1] !== mark; // half of a pair closes nothing
      return alone && this.text[place - 1] !== mark;
    };
    const close = this.find(mark.repeat(size), from, to, fits);
    // "***both***": the inner pair ends first
    return close >= 0 && size === 2 && this.text[close + 2] === mark && close + 2 < to ? close + 1 : close;
  }

  /** The first place of `what` that fits, in [from, to); -1, and known to be so from there on, when there is none. */
  find(what, from, to, fits) {
    const key = `${what}${to}`;
    if (from >= (this.missing.get(key) ?? Infinity)) return -1;
    for (let at = this.text.indexOf(what, from); at >= 0 && at + what.length <= to; at = this.text.indexOf(what, at + 1)) {
      if (fits(at)) return at;
    }
    this.missing.set(key, Math.min(from, this.missing.get(key) ?? Infinity));
    return -1;
  }

  /** [text](address); an image is a link to it, for nothing is loaded from elsewhere. An unsafe one stays as written. */
  link(at, to, depth) {
    LINK.lastIndex = at;
    const match = LINK.exec(this.text);
    if (!match || LINK.lastIndex > to) return null;
    const href = safeAddress(match[2]);
    const end = LINK.lastIndex;
    if (!href) return { node: { type: 'text', from: at, to: end }, end };
    const children = this.read(at + 1, at + 1 + match[1].length, depth + 1).filter((child) => child.type !== 'link');
    return { node: { type: 'link', href, children: children.length ? children : [{ type: 'text', from: at, to: end }] }, end };
  }

  address(at, to) {
    if (at > 0 && /[\p{L}\p{N}]/u.test(this.text[at - 1])) return null;
    ADDRESS.lastIndex = at;
    const match = ADDRESS.exec(this.text);
    if (!match) return null;
    const end = Math.min(to, at + match[0].replace(/[.,;:!?)\]*_~]+$/, '').length);
    const href = safeAddress(this.text.slice(at, end));
    return href ? { node: { type: 'link', href, children: [{ type: 'text', from: at, to: end }] }, end } : null;
  }
}
