/**
 * The blocks of a markdown text, as plain objects: which lines are a paragraph, a list, a table. Nothing is drawn here.
 *
 * A text is read from the left, and what a block is depends on nothing before it. So a reader of a stream may keep every
 * block that is finished: `Blocks.next` says whether more text could still change the one it found.
 *
 * A line is a pair of places in the source, [start, end). Lines inside a quote or a list item are the same lines with a
 * later start; so every character keeps its place in the source, and with it the token that it came from.
 *
 * @typedef {{start: number, end: number}} Line
 * @typedef {{type: string, lines?: Line[], level?: number, language?: string, closed?: boolean, ordered?: boolean,
 *   first?: number, items?: Block[][], blocks?: Block[], head?: Line[], rows?: Line[][], align?: string[]}} Block
 */

const DEEPEST = 6; // quotes in quotes, lists in lists; deeper ones are paragraphs
const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^`\n]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*?))?[ \t]*#*$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:( {1,4})(?=\S)|[ \t]*$| {5,})/;
const DELIMITER = /^[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

/** Blocks of some lines of a source that may still grow. */
export class Blocks {
  /** @param {string} source @param {Line[]} lines @param {number} depth */
  constructor(source, lines, depth = 0) {
    this.source = source;
    this.lines = lines;
    this.depth = depth;
    this.seen = -1;
  }

  text(line) {
    return this.source.slice(line.start, line.end);
  }

  /** The text of a line, undefined after the last; remembers how far was looked. */
  look(index) {
    this.seen = Math.max(this.seen, index);
    return index < this.lines.length ? this.text(this.lines[index]) : undefined;
  }

  /**
   * The block that begins at line `index`, null when only blank lines are left. after: where the next one begins.
   * final: no text that is added to the source can change it.
   */
  next(index) {
    this.seen = -1;
    let at = index;
    while (at < this.lines.length && !this.look(at).trim()) at += 1;
    if (at >= this.lines.length) return null;
    const [block, after] = this.read(at);
    return { block, after, final: this.seen < this.lines.length - 1 }; // the last line may be half a line
  }

  /** All blocks, for text that is whole. @returns {Block[]} */
  all() {
    const found = [];
    for (let at = 0, next; (next = this.next(at)); at = next.after) found.push(next.block);
    return found;
  }

  read(at) {
    const text = this.look(at);
    let match;
    if ((match = FENCE.exec(text))) return this.fence(at, match);
    if ((match = HEADING.exec(text))) return [{ type: 'heading', level: match[1].length, lines: [this.heading(at, match)] }, at + 1];
    if (RULE.test(text)) return [{ type: 'rule' }, at + 1];
    if (this.depth < DEEPEST && QUOTE.test(text)) return this.quote(at);
    if (this.depth < DEEPEST && (match = ITEM.exec(text))) return this.list(at, match);
    if (text.includes('|')) {
      const below = this.look(at + 1);
      if (below !== undefined && DELIMITER.test(below) && below.includes('-')) {
        const head = this.cells(this.lines[at]);
        if (head.length === this.cells(this.lines[at + 1]).length) return this.table(at, head);
      }
    }
    return this.paragraph(at);
  }

  heading(at, match) {
    const { start } = this.lines[at];
    const from = match[2] ? match[0].indexOf(match[2], match[0].indexOf(match[1]) + match[1].length) : match[0].length;
    return { start: start + from, end: start + from + (match[2] ?? '').length };
  }

  fence(at, [, mark, info]) {
    const close = new RegExp(`^ {0,3}${mark[0]}{${mark.length},}[ \\t]*$`);
    let end = at + 1;
    for (let text; (text = this.look(end)) !== undefined && !close.test(text);) end += 1;
    const closed = end < this.lines.length;
    const block = { type: 'code', language: info.trim().split(/\s/)[0], lines: this.lines.slice(at + 1, end), closed };
    return [block, closed ? end + 1 : end];
  }

  quote(at) {
    const inner = [];
    let end = at;
    for (let text; (text = this.look(end)) !== undefined; end += 1) {
      const match = QUOTE.exec(text);
      if (!match) break;
      inner.push({ start: this.lines[end].start + match[0].length, end: this.lines[end].end });
    }
    return [{ type: 'quote', blocks: new Blocks(this.source, inner, this.depth + 1).all() }, end];
  }

  list(at, [, , firstMark]) {
    const ordered = /\d/.test(firstMark);
    const kind = firstMark.at(-1);
    const items = [];
    let end = at;
    for (let text; (text = this.look(end)) !== undefined;) {
      const match = ITEM.exec(text);
      if (!match || match[2].at(-1) !== kind || RULE.test(text)) break;
      const [inner, after] = this.item(end, match);
      items.push(new Blocks(this.source, inner, this.depth + 1).all());
      end = after;
      let blank = end;
      while (this.look(blank) !== undefined && !this.look(blank).trim()) blank += 1;
      if (blank > end && this.look(blank) !== undefined && ITEM.test(this.look(blank))) end = blank;
    }
    return [{ type: 'list', ordered, first: ordered ? Number.parseInt(firstMark, 10) : 1, items }, end];
  }

  /** The lines of one item, dedented, and where the next begins. Blank lines belong to it if what follows them does. */
  item(at, match) {
    const width = match[1].length + match[2].length + (match[3]?.length ?? 1);
    const line = this.lines[at];
    const inner = [{ start: Math.min(line.start + width, line.end), end: line.end }];
    let end = at + 1;
    for (let text; (text = this.look(end)) !== undefined;) {
      if (!text.trim()) {
        let next = end;
        while (this.look(next) !== undefined && !this.look(next).trim()) next += 1;
        if (this.look(next) === undefined || indent(this.look(next)) < width) break;
        for (; end < next; end += 1) inner.push({ start: this.lines[end].end, end: this.lines[end].end });
        continue;
      }
      const depth = indent(text);
      const nested = depth >= 2 && ITEM.test(text.trimStart());
      if (depth < width && !nested && (ITEM.test(text) || this.starts(text))) break;
      const cut = Math.min(leading(text), width, nested ? depth : width);
      inner.push({ start: this.lines[end].start + cut, end: this.lines[end].end });
      end += 1;
    }
    return [inner, end];
  }

  table(at, head) {
    const align = this.cells(this.lines[at + 1]).map((cell) => {
      const text = this.text(cell);
      return text.endsWith(':') ? (text.startsWith(':') ? 'center' : 'right') : 'left';
    });
    const rows = [];
    let end = at + 2;
    for (let text; (text = this.look(end)) !== undefined && text.includes('|'); end += 1) {
      const cells = this.cells(this.lines[end]);
      rows.push(head.map((_, column) => cells[column] ?? { start: this.lines[end].end, end: this.lines[end].end }));
    }
    return [{ type: 'table', head, rows, align }, end];
  }

  /** The cells of a table's line; a bar that is escaped, or in code, is none. @returns {Line[]} */
  cells({ start, end }) {
    const bounds = [];
    let code = false;
    for (let at = start; at < end; at += 1) {
      const character = this.source[at];
      if (character === '\\') at += 1;
      else if (character === '`') code = !code;
      else if (character === '|' && !code) bounds.push(at);
    }
    const trimmed = (from, to) => {
      let [a, b] = [from, to];
      while (a < b && /\s/.test(this.source[a])) a += 1;
      while (b > a && /\s/.test(this.source[b - 1])) b -= 1;
      return { start: a, end: b };
    };
    const cells = [];
    let from = start;
    for (const bar of [...bounds, end]) {
      cells.push(trimmed(from, bar));
      from = bar + 1;
    }
    const empty = (cell) => cell && cell.start === cell.end;
    if (bounds.length && empty(cells[0])) cells.shift();
    if (bounds.length && cells.length > 1 && empty(cells.at(-1))) cells.pop();
    return cells;
  }

  paragraph(at) {
    const lines = [this.lines[at]];
    let end = at + 1;
    for (let text; (text = this.look(end)) !== undefined && text.trim() && !this.starts(text); end += 1) lines.push(this.lines[end]);
    return [{ type: 'paragraph', lines }, end];
  }

  /** Whether a line ends the paragraph above it. Only "1." may begin an ordered list there: others are mostly years. */
  starts(text) {
    if (FENCE.test(text) || HEADING.test(text) || RULE.test(text)) return true;
    if (this.depth >= DEEPEST) return false;
    const item = ITEM.exec(text);
    return QUOTE.test(text) || (item !== null && (/^[-*+]$/.test(item[2]) || Number.parseInt(item[2], 10) === 1));
  }
}

const leading = (text) => text.length - text.trimStart().length;
const indent = (text) => [...text.slice(0, leading(text))].reduce((sum, c) => sum + (c === '\t' ? 4 : 1), 0);
