/** A line chart: several series, a linear or a logarithmic axis, and what stands under the pointer. */
import { el, svg } from '../shell/dom.js';
import { brief, nearest, smooth, thin, ticks } from './series.js';

const WIDTH = 520;
const HEIGHT = 230;
const FEW = 60;
const EDGE = { left: 48, right: 14, top: 10, bottom: 26 };

export class Chart {
  /** title: a text, or a key of words.js as [key]. */
  constructor(title) {
    this.picture = svg('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: 'img', tabindex: 0, on: {
      pointermove: (event) => this.point(event), pointerleave: () => this.leave(), keydown: (event) => this.key(event), blur: () => this.leave(),
    } });
    this.caption = Array.isArray(title) ? el('figcaption', { t: title[0] }) : el('figcaption', {}, title);
    this.legend = el('div', { class: 'legendrow small' });
    this.tip = el('div', { class: 'charttip small number', hidden: true });
    this.host = el('figure', { class: 'card chart' }, this.caption, this.picture, this.legend, this.tip);
    this.lines = [];
  }

  /** lines: {label, colour (a number), dashed, exact (never smoothed), series}; view: {log, weight} */
  draw(lines, view) {
    this.all = lines.filter(({ series }) => series.values.length);
    this.view = view;
    const positive = this.all.every(({ series }) => series.values.some((value) => value > 0));
    this.log = view.log && positive;
    this.lines = this.all.map((line) => {
      const kept = this.log ? keep(line.series) : line.series;
      const weight = kept.values.length < FEW || line.exact ? 0 : view.weight; // a few points, or a plan, are shown as they are
      return { ...line, steps: kept.steps, raw: weight ? kept.values : null, values: smooth(kept.values, weight) };
    });
    if (!this.lines.length) return;
    this.scale();
    const nodes = [...this.axes()];
    for (const { colour, dashed, steps, raw, values } of this.lines) {
      if (raw) nodes.push(svg('path', { d: this.path(thin({ steps, values: raw })), class: `line c${colour} raw` }));
      const points = thin({ steps, values });
      nodes.push(svg('path', { d: this.path(points), class: `line c${colour}${dashed ? ' dashed' : ''}` }));
      if (points.steps.length < 14) nodes.push(...points.steps.map((step, place) => svg('circle', { cx: this.x(step), cy: this.y(points.values[place]), r: 2.6, class: `dot c${colour}` })));
    }
    this.mark = svg('g', { class: 'mark', hidden: true });
    this.picture.replaceChildren(...nodes, this.mark);
    this.legend.replaceChildren(...(this.lines.length > 1 ? this.lines.map(({ label, colour, dashed }) => el('span', {}, el('i', { class: `c${colour}${dashed ? ' dashed' : ''}` }), label)) : []));
    this.picture.setAttribute('aria-label', `${this.caption.textContent}: ${this.lines.map(({ label, values }) => `${label} ${brief(values.at(-1))}`).join(', ')}`);
  }

  /** The ranges; of the values nearly all, so that one spike at the beginning does not flatten the rest. */
  scale() {
    const steps = this.lines.flatMap(({ steps: each }) => [each[0], each.at(-1)]);
    const sorted = this.lines.flatMap(({ values }) => thin({ steps: values, values }, 300).values).sort((a, b) => a - b);
    const cut = (share) => sorted[Math.min(sorted.length - 1, Math.max(0, Math.round(share * (sorted.length - 1))))];
    // a smoothed series of equal numbers differs from them by rounding: that is no range
    let [low, high] = [cut(0), sorted.length > 60 ? Math.max(cut(0.985), this.lines.reduce((most, { values }) => Math.max(most, values.at(-1)), -Infinity)) : cut(1)];
    if (high - low <= 1e-9 * Math.max(Math.abs(low), Math.abs(high))) { low -= Math.abs(low) * 0.1 || 1; high += Math.abs(high) * 0.1 || 1; }
    const forward = this.log ? Math.log : (value) => value;
    const pad = (forward(high) - forward(low)) * 0.05;
    const [a, b] = [forward(low) - pad, forward(high) + pad];
    this.low = this.log ? Math.exp(a) : a;
    this.high = this.log ? Math.exp(b) : b;
    [this.first, this.last] = [Math.min(...steps), Math.max(...steps)];
    this.x = (step) => EDGE.left + (WIDTH - EDGE.left - EDGE.right) * (step - this.first) / Math.max(1, this.last - this.first);
    this.y = (value) => EDGE.top + (HEIGHT - EDGE.top - EDGE.bottom) * (b - forward(Math.max(value, this.log ? 1e-300 : -Infinity))) / (b - a);
  }

  * axes() {
    for (const value of ticks(this.low, this.high, 4, this.log)) {
      yield svg('path', { d: `M${EDGE.left} ${this.y(value)}H${WIDTH - EDGE.right}`, class: 'grid' });
      yield svg('text', { x: EDGE.left - 7, y: this.y(value) + 4, class: 'end' }, brief(value));
    }
    for (const step of ticks(this.first, Math.max(this.last, this.first + 1), 5)) {
      const atEdge = this.x(step) > WIDTH - 30; // where half of it would be cut off
      if (step <= this.last) yield svg('text', { x: atEdge ? WIDTH - 1 : this.x(step), y: HEIGHT - 7, class: atEdge ? 'end' : 'middle' }, brief(step));
    }
  }

  path({ steps, values }) {
    const floor = HEIGHT - EDGE.bottom;
    return steps.map((step, place) => `${place ? 'L' : 'M'}${this.x(step).toFixed(1)} ${Math.max(EDGE.top - 6, Math.min(floor + 4, this.y(values[place]))).toFixed(1)}`).join('');
  }

  point(event) {
    const box = this.picture.getBoundingClientRect();
    const at = (event.clientX - box.left) / box.width * WIDTH;
    this.tell(this.first + (at - EDGE.left) / (WIDTH - EDGE.left - EDGE.right) * (this.last - this.first));
  }

  key(event) {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!move || !this.lines.length) return;
    event.preventDefault();
    const { steps } = this.lines[0];
    const place = this.step === undefined ? steps.length - 1 : nearest(steps, this.step);
    const jump = Math.max(1, Math.round(steps.length / 50)) * move;
    this.tell(steps[Math.max(0, Math.min(steps.length - 1, place + jump))]);
  }

  /** The values of all lines at a step. */
  tell(step) {
    if (!this.lines.length || step < this.first - 1 || step > this.last + 1) return this.leave();
    const found = this.lines.map((line) => ({ line, place: nearest(line.steps, step) }));
    const at = found[0].line.steps[found[0].place];
    this.step = at;
    this.mark.replaceChildren(svg('path', { d: `M${this.x(at)} ${EDGE.top}V${HEIGHT - EDGE.bottom}` }),
      ...found.map(({ line, place }) => svg('circle', { cx: this.x(line.steps[place]), cy: Math.max(EDGE.top, this.y(line.values[place])), r: 3.4, class: `dot c${line.colour}` })));
    this.mark.removeAttribute('hidden');
    this.tip.replaceChildren(el('b', {}, String(at)), ...found.map(({ line, place }) => el('span', {}, el('i', { class: `c${line.colour}` }), `${line.label} `, el('b', {}, brief(line.values[place])))));
    this.tip.hidden = false;
    const share = (this.x(at) - EDGE.left) / (WIDTH - EDGE.left - EDGE.right);
    this.tip.style.left = share > 0.6 ? '' : `${100 * this.x(at) / WIDTH + 3}%`;
    this.tip.style.right = share > 0.6 ? `${100 - 100 * this.x(at) / WIDTH + 3}%` : '';
    return undefined;
  }

  leave() {
    this.step = undefined;
    this.tip.hidden = true;
    this.mark?.setAttribute('hidden', '');
  }
}

/** Only what a logarithm can show. */
function keep({ steps, values }) {
  const found = { steps: [], values: [] };
  values.forEach((value, place) => { if (value > 0) { found.steps.push(steps[place]); found.values.push(value); } });
  return found;
}
