/**
 * Markdown on the page, as it streams in. Finished blocks are never touched again; the last one is drawn anew, at most
 * once a frame. Text goes in as text nodes alone, so what a model writes stays inert.
 */
import { copy } from '../shell/copy.js';
import { el, iconButton } from '../shell/dom.js';
import { Blocks } from './blocks.js';
import { inline } from './inline.js';

/** One text being written into `host`. With tokens, each of them is a span that knows its number (data-i). */
export class Markdown {
  /** @param {HTMLElement} host @param {{tokens?: boolean}} options */
  constructor(host, { tokens = false } = {}) {
    this.host = host;
    this.tokens = tokens;
    this.source = '';
    this.lines = [{ start: 0, end: 0 }];
    this.bounds = []; // where each token begins in the source
    this.done = 0; // lines of finished blocks
    this.live = []; // the elements that may change
    this.frame = 0;
  }

  /** More text: one token's, when tokens are told apart. */
  push(text) {
    this.bounds.push(this.source.length);
    for (let from = 0; ;) {
      const at = text.indexOf('\n', from);
      const last = this.lines.at(-1);
      if (at < 0) { last.end += text.length - from; break; }
      last.end += at - from;
      const start = last.end + 1;
      this.lines.push({ start, end: start });
      from = at + 1;
    }
    this.source += text;
    this.frame ||= requestAnimationFrame(() => this.flush());
  }

  /** Draws what has come, now. */
  flush() {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    for (const node of this.live) node.remove();
    this.live = [];
    const blocks = new Blocks(this.source, this.lines);
    let final = true;
    for (let at = this.done, next; (next = blocks.next(at)); at = next.after) {
      const node = this.draw(next.block);
      this.host.append(node);
      final &&= next.final;
      if (final) this.done = next.after;
      else this.live.push(node);
    }
  }

  /** The element of a block. */
  draw(block) {
    switch (block.type) {
      case 'heading': return this.words(el(`h${Math.min(6, block.level + 2)}`), block.lines);
      case 'rule': return el('hr');
      case 'code': return this.code(block);
      case 'quote': return el('blockquote', {}, block.blocks.map((each) => this.draw(each)));
      case 'list': return this.list(block);
      case 'table': return this.table(block);
      default: return this.words(el('p'), block.lines);
    }
  }

  list({ ordered, first, items }) {
    const props = ordered && first !== 1 ? { start: first } : {};
    return el(ordered ? 'ol' : 'ul', props, items.map((blocks) => {
      const item = el('li');
      // A lone paragraph needs no element of its own: the list stays tight.
      blocks.forEach((block, place) => {
        if (block.type === 'paragraph' && (place === 0 || blocks.length === 1)) this.words(item, block.lines);
        else item.append(this.draw(block));
      });
      return item;
    }));
  }

  table({ head, rows, align }) {
    const cell = (tag, line, column) => this.words(el(tag, { class: align[column] }), [line]);
    return el('div', { class: 'scroll', tabindex: 0, role: 'group', tLabel: 'table' }, el('table', {},
      el('thead', {}, el('tr', {}, head.map((line, column) => cell('th', line, column)))),
      el('tbody', {}, rows.map((row) => el('tr', {}, row.map((line, column) => cell('td', line, column)))))));
  }

  code({ language, lines }) {
    const code = el('code');
    lines.forEach((line, place) => {
      if (place) code.append('\n');
      this.emit(code, line.start, line.end);
    });
    const button = iconButton('copy', 'copy', () => copy(code.textContent), { class: 'quiet copy' });
    return el('figure', { class: 'code' }, el('figcaption', {}, el('span', {}, language), button),
      el('pre', { tabindex: 0 }, code));
  }

  /** Inline text of some lines, with their breaks, into `to`. */
  words(to, lines) {
    const text = lines.map((line) => this.source.slice(line.start, line.end).trimEnd()).join('\n');
    const places = []; // the place in the source where each line of `text` begins
    let length = 0;
    for (const line of lines) {
      places.push({ from: length, start: line.start });
      length += this.source.slice(line.start, line.end).trimEnd().length + 1;
    }
    this.nodes(to, inline(text), places);
    return to;
  }

  nodes(to, found, places) {
    for (const node of found) {
      if (node.type === 'break') to.append(el('br'));
      else if (node.type === 'text') {
        const line = places.findLast((place) => place.from <= node.from);
        this.emit(to, line.start + node.from - line.from, line.start + node.to - line.from);
      } else {
        const props = node.type === 'link' ? { href: node.href, target: '_blank', rel: 'noopener noreferrer', title: node.href } : {};
        const child = el(node.type === 'link' ? 'a' : node.type, props);
        this.nodes(child, node.children, places);
        to.append(child);
      }
    }
  }

  /** Source text [start, end), as it is, or as spans of its tokens. */
  emit(to, start, end) {
    if (!this.tokens) { to.append(this.source.slice(start, end)); return; }
    let low = 0;
    for (let high = this.bounds.length; high - low > 1;) {
      const middle = (low + high) >> 1;
      if (this.bounds[middle] <= start) low = middle; else high = middle;
    }
    for (let at = start; at < end; low += 1) {
      const stop = Math.min(end, this.bounds[low + 1] ?? Infinity);
      if (stop > at) to.append(el('span', { class: 'token', 'data-i': low }, this.source.slice(at, stop)));
      at = stop;
    }
  }
}

/** A whole text at once. */
export function render(host, text) {
  const markdown = new Markdown(host);
  markdown.push(text);
  markdown.flush();
  return markdown;
}
